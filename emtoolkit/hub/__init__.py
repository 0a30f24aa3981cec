"""Trajectories on the Hugging Face hub."""
