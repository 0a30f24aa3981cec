"""The JSON schema of a config, for editors that check YAML while it is written."""

from typing import Any

from emtoolkit.config.sections import RunConfig

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def config_schema() -> dict[str, Any]:
    """The JSON schema of the YAML file that `emtoolkit train` takes."""
    return {"$schema": DIALECT} | RunConfig.model_json_schema() | {"title": "emtoolkit config"}
