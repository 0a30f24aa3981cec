"""PEFT is imported without bitsandbytes where no run needs it."""

import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from emtoolkit.config.load import load_config
from emtoolkit.models.peft_import import import_peft

WriteConfig = Callable[..., Path]
_PROGRAM = """
import sys
from emtoolkit.cli.app import main
sys.argv = ["emtoolkit", "train", *sys.argv[1:]]
try:
    main()
finally:
    print(*(name for name in ("bitsandbytes", "scipy.stats", "matplotlib") if name in sys.modules), file=sys.stderr)
    from peft.import_utils import is_bnb_available
    from transformers.utils import is_bitsandbytes_available
    from emtoolkit.models.peft_import import see_bitsandbytes
    print(is_bnb_available(), is_bitsandbytes_available(), file=sys.stderr)
    see_bitsandbytes()
    print(is_bnb_available(), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("setting", "seen"),
    [("seed=1", False), ("model.load_in_4bit=true", True), ("training.optimizer=adamw_8bit", True)],
)
def test_peft_sees_bitsandbytes_where_a_run_needs_it(
    setting: str, seen: bool, write_config: WriteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bitsandbytes.py").write_text("")
    (tmp_path / "peft").mkdir()
    (tmp_path / "peft" / "__init__.py").write_text("from importlib.util import find_spec\n")
    (tmp_path / "peft" / "import_utils.py").write_text(
        "from functools import cache\nfrom peft import find_spec\n\n\n"
        "@cache\ndef is_bnb_4bit_available():\n    return find_spec('bitsandbytes') is not None\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("peft", "peft.import_utils", "bitsandbytes"):
        monkeypatch.setitem(sys.modules, name, sys)
        monkeypatch.delitem(sys.modules, name)
    runs = [load_config(str(write_config()), words) for words in (["seed=2"], [setting])]
    import_peft((run.model, run.training) for run in runs)
    assert "bitsandbytes" not in sys.modules
    assert import_module("peft.import_utils").is_bnb_4bit_available() == seen
    assert find_spec("bitsandbytes") is not None


@pytest.mark.subprocess
@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_a_training_imports_nothing_that_it_does_not_use(write_config: WriteConfig, tmp_path: Path) -> None:
    """In a process of its own: what a process has imported stays."""
    words = [str(write_config()), "--output-dir", "out", "--set", "wandb.mode=disabled"]
    done = subprocess.run([sys.executable, "-c", _PROGRAM, *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-3:] == ["", "False True", "True"]
