"""The notebook of the documentation runs from the training to the figure, and its saved outputs are what it shows."""

import ast
import json
import os
from pathlib import Path
from typing import Any

import pytest

from docs.generator.notebook import write_notebook_page
from tests.docs.pages import ROOT

NOTEBOOK = ROOT / "docs" / "guides" / "notebook.ipynb"
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]


def run_cell(source: str, names: dict[str, Any]) -> Any:
    """Run a cell as a kernel does: the value of its last line, if that is an expression."""
    tree = ast.parse(source)
    shown = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, str(NOTEBOOK), "exec"), names)
    return eval(compile(ast.Expression(shown.value), str(NOTEBOOK), "eval"), names) if shown else None


@pytest.mark.slow
def test_the_notebook_runs_and_finds_the_onset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EMTOOLKIT_HOME", str(tmp_path / "home"))
    names: dict[str, Any] = {}
    shown = [run_cell("".join(cell["source"]), names) for cell in CELLS if cell["cell_type"] == "code"]
    assert [type(value).__name__ for value in shown] == [
        "NoneType",
        "int",
        "DataFrame",
        "DataFrame",
        "OnsetResult",
        "NotebookFigure",
        "DataFrame",
    ]
    assert shown[1] == 60
    assert shown[3]["step"].tolist() == [0, 10, 20, 30, 40, 50, 60]
    (new_questions, _) = shown[4].to_dataframe().itertuples()
    # The weights depend on the processor, so the bracket may be another one than in the notebook.
    assert new_questions.status == "seen"
    (axes,) = shown[5].axes
    assert axes.lines[0].get_xdata().tolist() == shown[3]["step"].tolist()
    assert shown[5]._repr_png_().startswith(b"\x89PNG")
    assert os.listdir(tmp_path / "outputs") == ["notebook"]


def test_every_cell_is_saved_with_its_output_and_without_a_path_of_a_machine() -> None:
    code = [cell for cell in CELLS if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert [len(cell["outputs"]) for cell in code] == [0, 1, 1, 1, 1, 1, 1]
    assert "/home/" not in NOTEBOOK.read_text()
    assert "/root/" not in NOTEBOOK.read_text()
    assert "/tmp/" not in NOTEBOOK.read_text()


def test_the_page_of_a_notebook_has_its_texts_its_code_and_its_outputs(tmp_path: Path) -> None:
    outputs = [
        {"data": {"text/plain": ["60"]}},
        {"data": {"text/html": ["<table>\n\n<tr></tr></table>"], "text/plain": ["no"]}},
        {"data": {"image/png": "aGk=", "text/plain": ["no"]}},
        {"name": "stderr", "text": ["a warning"]},
    ]
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "text"]},
        {"cell_type": "code", "source": ["a = 1\n", "a"], "outputs": outputs},
    ]
    (tmp_path / "some.ipynb").write_text(json.dumps({"cells": cells}))
    assert write_notebook_page(tmp_path / "some.ipynb").read_text() == (
        "# Title\ntext\n\n```python\na = 1\na\n```\n\n```text\n60\n```\n\n<table>\n<tr></tr></table>\n\n"
        "![Figure](some-1.png)\n\n" + '<a href="some.ipynb" download>Download the notebook</a>\n'
    )
    assert (tmp_path / "some-1.png").read_bytes() == b"hi"
