"""`python -m emtoolkit` is the console script."""

from emtoolkit.cli.app import main

main()
