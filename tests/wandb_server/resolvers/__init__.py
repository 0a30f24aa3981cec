"""The answers to GraphQL fields, by subject; a field not named here is an attribute of the thing in the store."""

MODULES = [
    f"{__name__}.{subject}" for subject in ("projects", "runs", "history", "artifacts", "artifact_changes", "sweeps")
]
