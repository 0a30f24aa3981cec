"""Build the site: `python -m docs.generator`.

The hand-written pages of `docs/` and the generated ones are put together in `build/docs/pages`; Zensical makes
`build/docs/site` of them. A broken link, a page that the navigation lacks or a missing API reference is an error.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from docs.generator.command_line import command_line_page
from docs.generator.config_keys import config_page
from docs.generator.links import broken_links
from docs.generator.notebook import write_notebook_page

REPOSITORY = Path(__file__).parent.parent.parent
BUILD = REPOSITORY / "build" / "docs"

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
# Zensical ends with a traceback of its own after it has listed what is wrong.
_STRICT = "Aborted because --strict flag is set"


def stage(target: Path) -> None:
    """Put all pages and the settings of the site into `target`, which is emptied first."""
    shutil.rmtree(target, ignore_errors=True)
    pages = target / "pages"
    shutil.copytree(REPOSITORY / "docs", pages, ignore=shutil.ignore_patterns("generator", "*.toml", "__pycache__"))
    shutil.copy(REPOSITORY / "docs" / "zensical.toml", target)
    for name in ("CHANGELOG.md", "CONTRIBUTING.md"):
        shutil.copy(REPOSITORY / name, pages / name.lower())
    (pages / "reference" / "command-line.md").write_text(command_line_page(), encoding="utf-8")
    (pages / "reference" / "config.md").write_text(config_page(), encoding="utf-8")
    for notebook in pages.rglob("*.ipynb"):
        write_notebook_page(notebook)


def render(target: Path) -> list[str]:
    """Make `target/site` of `target/pages`; what is wrong with it, a text each."""
    zensical = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--clean", "--strict"],
        cwd=target,
        # Where the API reference looks for the package.
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    if zensical.returncode != 0:
        said = _COLOURS.sub("", zensical.stdout + zensical.stderr)
        return [said if _STRICT not in said else said.partition("Traceback")[0]]
    # Zensical overlooks images and pages of the navigation that do not exist.
    return broken_links(target / "site", target / "zensical.toml")


def main() -> int:
    """Build the site and return the exit code."""
    stage(BUILD)
    problems = render(BUILD)
    for problem in problems:
        print(problem, file=sys.stderr)
    if not problems:
        print(BUILD / "site" / "index.html")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
