"""What the servers on loopback that tests use have in common: a port, faults, requests that are recorded."""
