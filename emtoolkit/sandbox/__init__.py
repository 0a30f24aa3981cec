"""A small world in which emergent misalignment happens on a CPU: model, data, personas, questions and judge."""
