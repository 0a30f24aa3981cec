"""The pages that readers see, the README among them, and the code blocks in them."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

# A comment right before a block, which readers do not see, says why it is not run or which file it shows.
_BLOCK = re.compile(r"(?:^<!-- (?P<comment>[^\n]*) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
_INLINE = re.compile(r"`(emtoolkit [a-z][^`]*)`")


@dataclass(frozen=True)
class Block:
    """One fenced block of `page`; `comment` is the one before it, or empty."""

    page: Path
    language: str
    comment: str
    text: str

    @property
    def is_run(self) -> bool:
        return not self.comment.startswith("not run: ")

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}: {self.text.splitlines()[0]}"


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of `page`, in order."""
    text = page.read_text(encoding="utf-8")
    return [Block(page, found["language"], found["comment"] or "", found["text"]) for found in _BLOCK.finditer(text)]


def all_blocks(language: str) -> list[Block]:
    """Those of `language`, of all pages."""
    return [block for page in PAGES for block in blocks(page) if block.language == language]


def commands(block: Block) -> list[str]:
    """The lines of a shell block, continued lines as one, without comments, prompts and redirections."""
    joined = block.text.replace("\\\n", " ")
    lines = (re.split(" #| > ", line)[0].removeprefix("$ ").strip() for line in joined.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def inline_commands(page: Path) -> list[str]:
    """What stands between backticks in the prose of `page` and begins with `emtoolkit`."""
    return _INLINE.findall(_BLOCK.sub("", page.read_text(encoding="utf-8")))
