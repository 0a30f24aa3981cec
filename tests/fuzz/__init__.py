"""Random and almost right text for every parser of foreign text: `make fuzz`, and a short form in the tests."""
