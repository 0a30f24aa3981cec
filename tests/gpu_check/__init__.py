"""Checks of saving on a GPU, a module for each kind: `make gpu-check`. `test_small` runs them on a CPU."""
