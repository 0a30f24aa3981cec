"""Trajectories on the hub: what is pushed, what is not sent again, and what is refused."""
