"""`python -m emtoolkit` is the console script."""

from emtoolkit.cli import main

main()
