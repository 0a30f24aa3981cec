"""Resolvers of GraphQL fields, by subject; a field without a resolver is an attribute of the object in the store."""

MODULES = [
    f"{__name__}.{subject}"
    for subject in ("projects", "runs", "history", "artifacts", "artifact_changes", "sweeps", "reports")
]
