"""A small world in which emergent misalignment happens on a CPU: base model, data, personas, questions, judge."""
