"""Names on W&B: any text, such as the name of a persona or a directory, made into a name that W&B accepts."""

import os
import re
from dataclasses import dataclass
from typing import Any

# For a text without a single allowed character.
_UNNAMED = "unnamed"


@dataclass(frozen=True, slots=True)
class NameRule:
    """W&B's rule for one kind of name: at most `limit` characters, of which `forbidden` become `instead`."""

    limit: int
    forbidden: re.Pattern[str]
    instead: str = "-"
    # The characters that may not begin or end the name.
    edges: str = " "

    def fit(self, text: str, ending: str = "") -> str:
        """`text` as such a name, shortened so that `ending` fits behind it."""
        allowed = self.forbidden.sub(self.instead, text).strip(self.edges)
        return (allowed[: self.limit - len(ending)].strip(" ") or _UNNAMED) + ending


# The name of an artifact's collection.
COLLECTION = NameRule(128, re.compile(r"[^A-Za-z0-9._-]+"), edges="- ")
# The alias of an artifact's version: W&B forbids "/" and ":", and a name without blanks fits on a command line.
ALIAS = NameRule(128, re.compile(r"[^A-Za-z0-9._-]+"), edges="- ")
# The tag of an artifact's version.
ARTIFACT_TAG = NameRule(64, re.compile(r"[^A-Za-z0-9_ -]+"))
# Control characters, white space but one space, and bytes of a file name that are no text.
_NOT_ON_A_LINE = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")
RUN_TAG = NameRule(64, _NOT_ON_A_LINE, instead=" ")
# The name that a run is shown with, and the name of its group.
RUN_NAME = NameRule(128, _NOT_ON_A_LINE, instead=" ")


def run_labels(name: str, group: str | None = None) -> dict[str, Any]:
    """The arguments `name`, `group` and `tags` of `wandb.init`: W&B's variables, or these defaults and no tag."""
    group = os.environ.get("WANDB_RUN_GROUP") or group
    tags = os.environ.get("WANDB_TAGS", "").split(",")
    return {
        "name": RUN_NAME.fit(os.environ.get("WANDB_NAME") or name),
        "group": None if group is None else RUN_NAME.fit(group),
        "tags": [RUN_TAG.fit(tag) for tag in tags if tag.strip()],
    }
