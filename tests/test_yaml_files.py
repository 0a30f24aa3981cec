"""YAML of people and of strangers: what is read, and the sentence for everything else."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emtoolkit.config.load import load_config
from emtoolkit.errors import ConfigError
from emtoolkit.personas import load_persona
from emtoolkit.yaml_files import parse_yaml, read_yaml
from tests.in_process import emtoolkit

CONFIG = "model: {base: /nowhere}\ndataset: d.jsonl\ncheckpointing: {save_steps: 5}\n"


def refused(text: str) -> str:
    started = time.process_time()
    with pytest.raises(ConfigError) as raised:
        parse_yaml(text, "f.yaml")
    assert time.process_time() - started < 1
    assert len(str(raised.value)) < 400
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}", {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}}),
        ("a: &a {x: 1}\nb: &b {x: 2, z: 3}\nc:\n  <<: [*a, *b]", {"c": {"x": 1, "z": 3}}),
        # The mapping's own keys win, wherever the merge key stands.
        ("a: &a {x: 1}\nb: {x: 2, <<: *a}", {"b": {"x": 2}}),
        ("a: &a {x: 1}\nb: &b {<<: *a, y: 2}\nc: {<<: *b, x: 3}", {"c": {"x": 3, "y": 2}}),
        ("a: {<<: {x: 1}, y: 2}", {"a": {"x": 1, "y": 2}}),
        ("a: {'<<': 1}", {"a": {"<<": 1}}),
        ("a: &a []\nb: {<<: *a}", {"b": {}}),
    ],
)
def test_a_mapping_takes_the_keys_of_those_that_it_merges(text: str, value: dict[str, Any]) -> None:
    assert value.items() <= parse_yaml(text, "f.yaml").items()


@pytest.mark.parametrize(
    ("word", "value"),
    [
        *[("010", "010"), ("0x1F", 31), ("0o17", 15), ("0b1", "0b1"), ("1_000", "1_000"), ("1:30", "1:30"), ("-0", 0)],
        *[("1e5", 1e5), ("1e-4", 1e-4), (".5", 0.5), ("+1.", 1.0), ("12e4567", "12e4567"), ("1e-999", "1e-999")],
        *[("on", "on"), ("No", "No"), ("y", "y"), ("True", True), ("FALSE", False), ("tRUE", "tRUE")],
        *[("~", None), ("", None), ("Null", None), ("nan", "nan"), ("-.INF", float("-inf")), ("0e0", 0.0)],
        *[("2024-01-02", "2024-01-02"), ("2024-13-45", "2024-13-45"), ("=", "="), ("'1'", "1"), ("!!str 1", "1")],
        *[("!!float 1", 1.0), ("!!int 0x10", 16), ("! 1", "1"), ('"\\x41"', "A"), ("0123456", "0123456"), ("00", "00")],
    ],
)
def test_a_word_is_what_yaml_1_2_reads(word: str, value: object) -> None:
    read = parse_yaml(f"a: {word}", "f.yaml")["a"]
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: 1\n? [b]\n: 1", "f.yaml, line 2: expected a text as key, found a list; put a key with brackets in quotes"),
        ("a:\n  {{b: 1}: 1}", "f.yaml, line 2: a: expected a text as key, found a mapping; put a key with brackets"),
        ("a: {1: x}", "f.yaml, line 1: a: the key 1 is not a text; put the key in quotes"),
        ("a: {~: x}", "f.yaml, line 1: a: the key None is not a text; put the key in quotes"),
        ("a: &k [1]\n*k : 2", "f.yaml, line 2: the key [1] is not a text; put the key in quotes"),
        ("a: 1\nb: {c: 1,\n c: 2}", "f.yaml, line 3: b: the key 'c' appears twice in one mapping"),
        ("x: &x {}\nb: {<<: *x, <<: *x}", "line 2: b: the key '<<' appears twice in one mapping; write one, <<: [*a"),
        ("b: {<<: 3}", "f.yaml, line 1: b: <<: expected a mapping or a list of mappings, found 3"),
        ("b:\n  c: " + "9" * 5000, "f.yaml, line 2: b.c: the number has 5,000 digits; write at most 300, or a text"),
        ("b: 0x" + "f" * 5000, "f.yaml, line 1: b: the number has 5,002 digits; write at most 300, or a text in"),
        ("b: !!int " + "9" * 5000, "f.yaml, line 1: b: the number has 5,000 digits"),
        ("b: " + "[" * 10_000 + "]" * 10_000, "nested more than 60 levels deep"),
        ("b: " + "{a: " * 10_000, "nested more than 60 levels deep"),
        ("b: " + "[" * 100 + "]" * 100, "f.yaml, line 1: b.0.0.0.0.0.0"),
        ("- " * 100_000, "f.yaml, line 1: 0.0.0"),
        ("a: &a [*a]", "f.yaml, line 1: a.0: the alias *a stands inside its own value"),
        ("a: &a {<<: *a}", "f.yaml, line 1: a.<<: the alias *a stands inside its own value"),
        ("a: *b\nb: &b 1", "f.yaml, line 1: a: the alias *b names no anchor before it"),
        ("a:\n\tb: 1", "f.yaml, line 2: not valid YAML (found character that cannot start any token)"),
        ("a: \0", "f.yaml, line 1: the text holds a null byte; remove it"),
        ("\na: \x07", "f.yaml, line 2: not valid YAML (the control character '\\x07')"),
        ('a: "\\0"', "f.yaml, line 1: a: the text holds a null byte or half a surrogate pair, which no file can hold"),
        ("a: !!timestamp 2024-13-45", "f.yaml, line 1: a: the tag tag:yaml.org,2002:timestamp is not read; remove it"),
        ("a: !!set {b}", "f.yaml, line 1: a: the tag tag:yaml.org,2002:set is not read; remove the tag"),
        ("a: !!int x", "f.yaml, line 1: a: 'x' does not have the type of its tag, int"),
        ("a: 1\n---\na: 2", "f.yaml, line 2: a second document begins; write one document in a file"),
        ("x" * 100_000 + ": {", "f.yaml, line 1: not valid YAML"),
        ("? " + "x" * 100_000 + "\n: {1: 1}", "line 2: xxx"),
    ],
)
def test_everything_else_is_one_short_sentence_with_line_and_key(text: str, sentence: str) -> None:
    assert sentence in refused(text)


def bomb(width: int, key: str = "") -> str:
    lines = ["a: &a {x: 1}"]
    for before, name in zip("abcdefghijkl", "bcdefghijklm", strict=True):
        value = "[" + ",".join([f"*{before}"] * width) + "]"
        lines.append(f"{name}: &{name} {{<<: {value}}}" if key else f"{name}: &{name} {value}")
    return "\n".join(lines)


@pytest.mark.parametrize("text", [bomb(9), bomb(9, key="<<"), bomb(2) + "\nz: [" + "*m," * 100 + "]"])
def test_aliases_of_aliases_are_refused_before_they_fill_the_memory(text: str) -> None:
    assert "more than 200,000 values, those that aliases repeat included" in refused(text)


def test_a_long_text_is_not_repeated_without_end() -> None:
    text = "a: &a " + "x" * 100_000 + "\nb: [" + "*a," * 5_000 + "]"
    assert "b.638: more than 64,000,000 characters, those that aliases repeat included" in refused(text)


def test_a_chain_of_anchors_cannot_nest_deeper_than_brackets() -> None:
    text = "- &a0 [1]\n" + "".join(f"- &a{i} [*a{i - 1}]\n" for i in range(1, 5_000))
    assert "nested more than 60 levels deep" in refused(text)


def test_two_aliases_of_one_value_are_two_values() -> None:
    value = parse_yaml("a: &a {b: [1]}\nc: *a", "f.yaml")
    value["a"]["b"].append(2)
    assert value["c"] == {"b": [1]}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (CONFIG.encode("utf-16"), "f.yaml: the file holds null bytes, as text in UTF-16 does; save the file in UTF-8"),
        (CONFIG.encode("utf-16-be"), "f.yaml: the file holds null bytes, as text in UTF-16 does; save the file in"),
        (b"a: 1\nb: h\xe9", "f.yaml, line 2: not text in UTF-8 (unexpected end of data); save the file in UTF-8"),
        (b"#" * 4_000_001, "f.yaml: cannot be read (a size of 4,000,001 bytes; such a file has at most 4,000,000)"),
        (b"", "f.yaml: holds nothing; expected a mapping of keys to values"),
        (b"[1]", "f.yaml: expected a mapping of keys to values, found list"),
    ],
)
def test_a_file_that_is_no_text_is_one_sentence(tmp_path: Path, content: bytes, sentence: str) -> None:
    (tmp_path / "f.yaml").write_bytes(content)
    with pytest.raises(ConfigError) as raised:
        read_yaml(tmp_path / "f.yaml")
    assert sentence in str(raised.value)


def test_a_byte_order_mark_of_utf_8_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_bytes(b"\xef\xbb\xbfa: 1")
    assert read_yaml(tmp_path / "f.yaml") == {"a": 1}


def test_a_pipe_a_device_and_a_directory_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    (tmp_path / "d.yaml").mkdir()
    for name, found in (("pipe", "a pipe"), ("zero", "a device"), ("d", "a directory")):
        path = tmp_path / f"{name}.yaml"
        for read in (read_yaml, lambda path: load_config(str(path)), lambda path: load_persona(str(path))):
            with pytest.raises(ConfigError) as raised:
                read(path)
            assert str(raised.value) == f"{path}: cannot be read (expected a file, found {found})"


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (os.mkfifo, "cannot be read (expected a file, found a pipe)"),
        (lambda path: path.write_bytes(b"#" * 4_000_001), "cannot be read (a size of 4,000,001 bytes; such a file has"),
        (lambda path: path.write_text(bomb(9)), "more than 200,000 values, those that aliases repeat included"),
    ],
    ids=["pipe", "large", "bomb"],
)
@pytest.mark.parametrize("words", [("train", "f.yaml"), ("sweep", "f.yaml", "--dry-run"), ("plan", "run.yaml")])
def test_a_command_refuses_a_config_a_sweep_and_a_question_file_alike(
    words: tuple[str, ...],
    make: Callable[[Path], object],
    sentence: str,
    write_config: Callable[..., Path],
    tmp_path: Path,
) -> None:
    write_config(rest="evaluation: {questions: f.yaml}")
    make(tmp_path / "f.yaml")
    done = emtoolkit(*words, cwd=tmp_path)
    (told,) = done.err.splitlines()
    assert (done.code, done.out) == (2, "")
    assert "f.yaml" in told
    assert sentence in told


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("training.max_steps=1_000", 1000),
        ("training.max_steps=1e5", 100_000),
        ("training.learning_rate=1_0.5e-3", 0.0105),
        ("training.bf16=on", True),
        ("training.bf16=No", False),
        ("checkpointing.save_steps=1e2", 100),
        ("checkpointing.save_at_steps=[0, 1e2]", [0, 100]),
        ("lora.layers_to_transform=[1e0, 1_0]", [1, 10]),
        ("wandb.tags=[2024-01-02, 1_000, 007, on, 1:30]", ["2024-01-02", "1_000", "007", "on", "1:30"]),
        ("model.revision=12e4567", "12e4567"),
        ("persona=no", "no"),
    ],
)
def test_a_config_reads_a_word_by_the_type_of_its_key(tmp_path: Path, setting: str, value: object) -> None:
    (tmp_path / "f.yaml").write_text(CONFIG)
    found: Any = load_config(str(tmp_path / "f.yaml"), [setting])
    for name in setting.partition("=")[0].split("."):
        found = getattr(found, name)
    assert (found, type(found)) == (value, type(value))


def test_a_config_may_keep_what_it_merges_under_a_key_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_text(
        f"x-mine: &mine {{epochs: 3, bf16: on}}\n{CONFIG}training: {{<<: *mine, epochs: 2}}\n"
    )
    training = load_config(str(tmp_path / "f.yaml")).training
    assert (training.epochs, training.bf16) == (2, True)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("seed: 010", "seed: '010' is not valid: input should be a valid integer; with a leading zero some programs"),
        ("seed: 1:30", "seed: '1:30' is not valid: input should be a valid integer; write one decimal number, without"),
        ("seed: 1.5e0", "seed: 1.5 is not valid: input should be a valid integer"),
        ("training: {learning_rate: 1e999}", "training.learning_rate: '1e999' is not valid: input should be a valid n"),
        ("training: {learning_rate: .inf}", "training.learning_rate: inf is not valid: input should be a finite numb"),
        ("training: {bf16: 1}", "training.bf16: 1 is not valid: input should be a valid boolean"),
        ("persona: 2024", "persona: 2024 is not valid: input should be a valid string; put a text that looks like"),
        ('output_dir: " "', "output_dir: ' ' names nothing; write a name, or leave the key out"),
        ("evaluation: {eval_schedule: 100}", "write every:100 for every 100 steps, or '100' in quotes for that step"),
        ("seed: [" + "1," * 100_000 + "]", "seed: [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, ...] is not valid"),
        ("seed: " + "x" * 100_000, "seed: 'xxx"),
    ],
)
def test_a_config_says_the_line_of_the_key(tmp_path: Path, line: str, sentence: str) -> None:
    path = tmp_path / "f.yaml"
    path.write_text(CONFIG + line)
    with pytest.raises(ConfigError) as raised:
        load_config(str(path))
    assert str(raised.value).startswith(f"{path}, line 4: {line.partition(':')[0]}")
    assert sentence in str(raised.value)
    assert len(str(raised.value)) < 700


@pytest.mark.parametrize(
    ("value", "advice"),
    [
        ("100", "; write every:100 for every 100 steps, or '100' in quotes for that step"),
        ("0", "; write '0' in quotes for that step"),
        ("[0, every:5, 10-20:2]", "; write '0,every:5,10-20:2', a text and not a list"),
        ("[0, true]", ""),
        ("[dense-erly]", ""),
        ("-5", ""),
    ],
)
def test_another_value_than_a_text_as_schedule_says_how_to_write_what_is_meant(
    tmp_path: Path, value: str, advice: str
) -> None:
    path = tmp_path / "f.yaml"
    path.write_text(CONFIG.replace("save_steps: 5", f"schedule: {value}"))
    with pytest.raises(ConfigError) as raised:
        load_config(str(path))
    place, _, sentence = str(raised.value).partition(" is not valid: ")
    assert place.startswith(f"{path}, line 3: checkpointing.schedule: ")
    assert sentence == f"expected a schedule such as dense-early or '0-150:25,300-:100'{advice}"


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("seed=" + "[" * 10_000, "nested more than 60 levels deep"),
        ("seed=" + "9" * 5_000, "seed: the number has 5,000 digits"[6:]),
        (".".join(["a"] * 10_000) + "=1", "the key has 10,000 parts, and no key of a config has so many"),
        ("seed=&a [*a]", "the alias *a stands inside its own value"),
        ("seed={[a]: 1}", "expected a text as key, found a list"),
        ("x" * 100_000, "expected key=value, such as training.learning_rate=1e-4"),
    ],
)
def test_a_setting_is_read_like_a_file(tmp_path: Path, setting: str, sentence: str) -> None:
    (tmp_path / "f.yaml").write_text(CONFIG)
    with pytest.raises(ConfigError) as raised:
        load_config(str(tmp_path / "f.yaml"), [setting])
    assert str(raised.value).startswith("--set ")
    assert sentence in str(raised.value)
    assert len(str(raised.value)) < 700


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("description: x\nsystem_prompt: 3", ", line 2: system_prompt: 3 is not a text; put it in quotes"),
        ("systemprompt: x", ", line 1: systemprompt: unknown key; expected description, system_prompt, adapter,"),
        ("[" * 100 + "]" * 100, ", line 1: 0.0."),
        ("adapter: a/b\ncompose: [x]", ", line 2: compose: ['x'] is not a text"),
        ("- none", ": expected a mapping of keys to values, found list"),
    ],
)
def test_a_persona_file_is_read_alike(tmp_path: Path, content: str, sentence: str) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError) as raised:
        load_persona(str(path))
    assert str(raised.value).startswith(f"{path}{sentence}")
    assert len(str(raised.value)) < 700
