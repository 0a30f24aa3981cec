"""The documentation site builds, and its generator refuses what readers would stumble over."""

import re
import shutil
from pathlib import Path

import pytest

from docs.generator.__main__ import render, stage
from docs.generator.command_line import command_line_page
from docs.generator.config_keys import config_page
from docs.generator.links import broken_links
from docs.generator.markdown import cell
from tests.docs.pages import ROOT


@pytest.mark.subprocess
def test_the_site_builds_without_a_broken_link(tmp_path: Path) -> None:
    stage(tmp_path)
    assert render(tmp_path) == []
    assert (tmp_path / "site" / "reference" / "python.html").is_file()


@pytest.mark.subprocess
@pytest.mark.parametrize(
    ("page", "problems"),
    [
        (
            "[there](nowhere.md) [and there](other.md#nowhere)\n",
            ["page does not exist", "anchor does not exist", "2 issues found"],
        ),
        ("::: emtoolkit.Trajectory.nowhere\n", ["emtoolkit.Trajectory.nowhere"]),
        ("![nothing](nothing.png)\n", ["index.html: nothing.png: there is no such file"]),
    ],
    ids=["broken links", "missing reference", "missing picture"],
)
def test_a_site_with_a_fault_is_refused(tmp_path: Path, page: str, problems: list[str]) -> None:
    # Two pages, with the settings of the whole site but for its navigation.
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "index.md").write_text(page)
    (tmp_path / "pages" / "other.md").write_text("# Other\n")
    shutil.copy(ROOT / "docs" / "style.css", tmp_path / "pages")
    settings = (ROOT / "docs" / "zensical.toml").read_text()
    navigation = 'nav = ["index.md", "other.md"]'
    (tmp_path / "zensical.toml").write_text(re.sub(r"^nav = \[$.*?^\]$", navigation, settings, flags=re.M | re.S))
    (found,) = render(tmp_path)
    assert all(problem in found for problem in problems)


def test_the_navigation_lists_every_page_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "there.html").write_text("")
    (tmp_path / "unlisted.html").write_text("")
    settings = tmp_path / "zensical.toml"
    settings.write_text('[project]\nnav = [{ "Guides" = ["there.md", "gone.md"] }]\n')
    assert broken_links(tmp_path, settings) == [
        "zensical.toml: nav: there is no page gone.md",
        "zensical.toml: nav: the page unlisted.md is missing",
    ]


def test_a_page_loads_nothing_from_the_network(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text('<script src="https://example.org/x.js"></script>')
    settings = tmp_path / "zensical.toml"
    settings.write_text('[project]\nnav = ["index.md"]\n')
    assert broken_links(tmp_path, settings) == ["index.html: https://example.org/x.js is loaded from the network"]


def test_the_command_line_page_has_every_command_with_its_options() -> None:
    page = command_line_page()
    assert "## emtoolkit sandbox evaluate\n" in page
    assert "emtoolkit download COLLECTION [OPTIONS]\n" in page
    assert "\n| `--set` `KEY=VALUE` | " in page


def test_the_config_page_has_every_section_with_types_and_defaults() -> None:
    page = config_page()
    assert "\n## `datasets.NAME`\n" in page
    assert "\n| `dtype` | `float32`, `bfloat16`, `float16`<br>default `float32` | " in page
    assert "\n| `batch_size` | whole number ≥ 1<br>default `2` | " in page
    assert "\n| `base` | text<br>required | " in page
    assert "\n| `lora` | [section](#lora) or `null` | " in page
    assert "\n## `evaluation.probe`\n" in page
    assert "\n| `probe` | [section](#evaluationprobe) or `null` | " in page


def test_a_placeholder_in_a_help_text_is_no_html() -> None:
    assert cell("By default `a|<b>`,\n  or outputs/<persona>.") == "By default `a|<b>`, or outputs/&lt;persona>."
    assert cell("one|two") == "one\\|two"
