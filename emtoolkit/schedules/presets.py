"""The presets of the schedule grammar: named schedules in `configs/schedules/`, shipped inside the package."""

from emtoolkit.errors import ScheduleError
from emtoolkit.paths import shipped


def shipped_presets() -> dict[str, str]:
    """The text of every preset, by name.

    Raises:
        ScheduleError: a file is not YAML, or has no text under `schedule`.
    """
    import yaml  # slow to import, and most schedules name no preset

    presets = {}
    for path in sorted(shipped("schedules").glob("*.yaml")):
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise ScheduleError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
        if not isinstance(content, dict) or not isinstance(content.get("schedule"), str):
            raise ScheduleError(f"{path}: expected the keys description and schedule, both text")
        presets[path.stem] = content["schedule"]
    return presets
