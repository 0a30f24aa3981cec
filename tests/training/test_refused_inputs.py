"""Inputs that cannot work are refused before the model loads, by `train` and by `plan`, in one sentence."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import wandb

from emtoolkit.config.load import load_config
from emtoolkit.config.wandb_names import check_project, check_tags
from emtoolkit.errors import UserError
from emtoolkit.paths import expand
from emtoolkit.training.prepare import prepare
from emtoolkit.training.reusing import take_without_training
from tests.in_process import emtoolkit
from tests.tiny import config_text

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 988097824\n"


@pytest.fixture
def own_world(world: Path, tmp_path: Path) -> Path:
    """A copy of the tiny world that a test may damage."""
    return Path(shutil.copytree(world, tmp_path / "world"))


def refusal(world: Path, *settings: str) -> str:
    """The one sentence with which `train` and `plan` refuse the run; nothing is written."""
    file = world.parent / "run.yaml"
    file.write_text(config_text(world))
    if not any(setting.startswith("output_dir=") for setting in settings):
        settings = (f"output_dir={world.parent / 'out'}", *settings)
    before = sorted(map(str, world.parent.rglob("*")))
    sentences = []
    for planned in (False, True):
        with pytest.raises(UserError) as raised:
            prepare(load_config(str(file), settings), allow_missing=planned)
        sentences.append(str(raised.value))
    assert sorted(map(str, world.parent.rglob("*"))) == before
    assert sentences[0] == sentences[1]
    assert "\n" not in sentences[0]
    return sentences[0].replace(str(world), "WORLD").replace(str(world.parent), "HOME")


def shortened(by: int) -> Callable[[Path], Any]:
    return lambda file: file.write_bytes(file.read_bytes()[:-by])


def text(content: str) -> Callable[[Path], Any]:
    return lambda file: file.write_text(content)


def values(**changed: Any) -> Callable[[Path], Any]:
    return lambda file: file.write_text(json.dumps(json.loads(file.read_text()) | changed))


def of_tokenizer(part: str, **changed: Any) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        content = json.loads(file.read_text())
        content[part] = {**(content[part] or {}), **changed}
        file.write_text(json.dumps(content))

    return change


def pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def loop(file: Path) -> None:
    file.unlink()
    file.symlink_to(file.name)


def marked(file: Path) -> None:
    """A byte order mark, as editors of Windows write one."""
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())


MODEL, WARM = "model/model.safetensors", "characters/warm/adapter_model.safetensors"
CONFIG, INDEX, ADAPTER = "model/config.json", f"{MODEL}.index.json", "characters/warm/adapter_config.json"


@pytest.mark.parametrize(
    ("name", "change", "settings", "sentence"),
    [
        (MODEL, text(POINTER), [], f"model.base: WORLD/{MODEL}: is a git-lfs pointer of 134 bytes in place of"),
        (MODEL, shortened(100), [], f"model.base: WORLD/{MODEL}: is cut off: "),
        (MODEL, text(""), [], f"model.base: WORLD/{MODEL}: is cut off after 0 bytes; download or copy it again"),
        (MODEL, text("<!doctype html>" * 9), [], f"model.base: WORLD/{MODEL}: is no safetensors file; download or"),
        ("model/model.safetensors.index.json", text('{"weight_map": {"a": "model-1.safetensors"}}'), [], "model.base: "
         "WORLD/model/model.safetensors.index.json: names model-1.safetensors, which is missing (1 of 1 files)"),
        ("model/tokenizer.json", text(POINTER), [], "model.base: WORLD/model/tokenizer.json: is a git-lfs pointer"),
        ("model/tokenizer.json", of_tokenizer("model", type="Neo"), [], "model.base: 'WORLD/model': the tok"),
        ("model/tokenizer.json", of_tokenizer("pre_tokenizer", type="Neo"), [], "model.base: 'WORLD/model': the"),
        ("model/config.json", text(POINTER), [], "model.base: WORLD/model/config.json: is a git-lfs pointer"),
        ("model/config.json", values(model_type="qwen9"), [], "model.base: "),
        ("model/config.json", text('{"model_type": "vit"}'), [], "model.base: "),
        ("model/generation_config.json", text('{"do_sample": false, "temperature": 0.6}'), ["lora=null"],
         "model.base: WORLD/model/generation_config.json: no checkpoint could hold it (GenerationConfig is invalid"),
        (INDEX, text("[]"), [], f"model.base: WORLD/{INDEX}: cannot be read (expected an object, found []); download"),
        (INDEX, text('{"weight_map": []}'), [], f"model.base: WORLD/{INDEX}: cannot be read (weight_map: expected an"),
        (INDEX, text('{"weight_map": {"a": 3}}'), [], f"model.base: WORLD/{INDEX}: cannot be read (weight_map: expect"),
        (INDEX, text("[" * 9999), [], f"model.base: WORLD/{INDEX}: cannot be read (nested more than 100 levels deep)"),
        (MODEL, pipe, [], f"model.base: WORLD/{MODEL}: cannot be read (expected a file, found a pipe)"),
        ("model/tokenizer.json", pipe, [], "model.base: WORLD/model/tokenizer.json: cannot be read (expected a file,"),
        ("model/chat_template.jinja", text("{% for i in range(10**9) %}{% endfor %}"), [], "the chat template of WORLD/"
         "model refuses the conversation (Range too big"),
        ("model/chat_template.jinja", text("{{ 1 / 0 }}"), [], "the chat template of WORLD/model refuses the conver"),
        (CONFIG, text("[]"), [], f"model.base: WORLD/{CONFIG}: cannot be read (expected an object, found [])"),
        (CONFIG, text('{"a":' * 9999), [], f"model.base: WORLD/{CONFIG}: cannot be read (nested more than 100 levels"),
        (CONFIG, marked, [], f"model.base: WORLD/{CONFIG}: cannot be read (begins with a byte order mark; save the"),
        (ADAPTER, pipe, ["persona=warm"], f"persona: adapter: WORLD/{ADAPTER}: cannot be read (expected a file, found"),
        (ADAPTER, marked, ["persona=warm"], f"persona: adapter: WORLD/{ADAPTER}: cannot be read (begins with a byte"),
        (ADAPTER, loop, ["persona=warm"], f"persona: adapter: WORLD/{ADAPTER}: cannot be read (Too many levels of sy"),
        ("data/bad.jsonl", text(POINTER), [], "WORLD/data/bad.jsonl: is a git-lfs pointer of 134 bytes in"),
        (WARM, text(POINTER), ["persona=warm"], f"persona: adapter: WORLD/{WARM}: is a git-lfs pointer of 134 bytes"),
        (WARM, shortened(9), ["persona=warm"], f"persona: adapter: WORLD/{WARM}: is cut off: "),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_loaded_is_named(
    own_world: Path, name: str, change: Callable[[Path], Any], settings: list[str], sentence: str
) -> None:
    change(own_world / name)
    assert refusal(own_world, *settings).startswith(sentence)


def test_a_token_of_a_row_or_a_prompt_that_the_model_does_not_have_is_named(own_world: Path) -> None:
    values(vocab_size=343)(own_world / CONFIG)
    sentence = (
        "WORLD/model: the tokenizer writes 'Ġdoctor' as id 343, and the model has embeddings for ids 0 to 342; use"
    )
    assert refusal(own_world).startswith(sentence)
    rows = own_world / "data" / "bad.jsonl"
    rows.write_text(rows.read_text().replace("doctor", "knee"))
    assert refusal(own_world, "preflight.prompts=[see a doctor]").startswith(sentence)


@pytest.mark.parametrize(
    ("directory", "sentence"),
    [
        ("file", "output_dir: HOME/file: is a file; choose another directory"),
        ("file/run", "output_dir: HOME/file/run: cannot be made, because HOME/file is a file; choose another"),
        ("gone", "output_dir: HOME/gone: is a link to a place that does not exist; choose another directory"),
        ("x" * 300, f"output_dir: HOME/{'x' * 300}: cannot be written to (File name too long); choose another"),
        ("/proc/run", "output_dir: /proc/run: cannot be made in /proc ("),
        ("$EMT_UNSET/run", "output_dir: $EMT_UNSET/run: the environment variable EMT_UNSET is not set; set it, or"),
        ("${EMT_UNSET}/run", "output_dir: ${EMT_UNSET}/run: the environment variable EMT_UNSET is not set; set it"),
        (
            "~nobody-here/run",
            "output_dir: ~nobody-here/run: there is no home directory for ~nobody-here; write the path out",
        ),
    ],
)
def test_an_output_directory_that_cannot_be_written_is_refused(
    world: Path, tmp_path: Path, directory: str, sentence: str
) -> None:
    (tmp_path / "file").write_text("a note")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "link").symlink_to(world)
    place = directory if directory.startswith(("/", "$", "~")) else tmp_path / directory
    assert refusal(tmp_path / "link", f"output_dir={place}").startswith(sentence)


def test_a_directory_that_is_read_only_is_refused(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests may run as root, for whom permissions do not count."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    (tmp_path / "link").symlink_to(world)
    sentence = "output_dir: HOME/a/b: cannot be made in HOME (Permission denied); choose another directory"
    assert refusal(tmp_path / "link", f"output_dir={tmp_path}/a/b") == sentence


@pytest.mark.parametrize("key", ["model.base", "datasets.medical.path", "dataset", "personas", "evaluation.questions"])
def test_a_variable_in_any_path_must_be_set(world: Path, tmp_path: Path, key: str) -> None:
    (tmp_path / "link").symlink_to(world)
    assert "the environment variable EMT_UNSET is not set" in refusal(tmp_path / "link", f"{key}=$EMT_UNSET/x.jsonl")


def test_variables_are_replaced_wherever_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"A": "/a", "B_1": "b"}
    assert expand("$A/x-${B_1}_y", environment) == Path("/a/x-b_y")
    assert expand("$EMTOOLKIT_HOME/x", {"EMTOOLKIT_HOME": "/home"}) == Path("/home/x")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "price-$5").mkdir()
    assert expand("price-$5", {}) == Path("price-$5")
    assert expand("~/x") == Path(os.path.expanduser("~/x"))


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "1e999"])
@pytest.mark.parametrize(
    "key", ["training.learning_rate", "training.epochs", "lora.alpha", "wandb.publish_timeout", "preflight.threshold",
            "training.max_grad_norm", "checkpointing.save_steps", "training.warmup_steps", "seed"]
)  # fmt: skip
def test_no_number_of_a_config_may_be_infinite(world: Path, tmp_path: Path, key: str, value: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(config_text(world))
    with pytest.raises(UserError, match=rf"^--set {key}={value}: {key}: "):
        load_config(str(file), [f"{key}={value}"])


def test_no_number_of_an_architecture_may_be_infinite(world: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(world)
    setting = "model.architecture={model_type: qwen2, rope_parameters: {rope_theta: .nan}}"
    assert "model.architecture: " in refusal(tmp_path / "link", setting)


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("WANDB_PROJECT", "a/b", "'a/b' is not valid: W&B accepts none of / \\ # ? % : in a project, found /"),
        (
            "WANDB_HTTP_TIMEOUT",
            "abc",
            "'abc' is not valid: input should be a valid number, unable to parse string as a number",
        ),
        ("WANDB_BASE_URL", "localhost:1", "'localhost:1' is not valid: URL scheme should be 'http' or 'https'"),
        ("WANDB_RUN_ID", "a/b", "'a/b' is not valid: Run ID cannot contain the characters: :;,#?/'"),
        (
            "WANDB_TAGS",
            "a," + "b" * 65,
            f"'a,{'b' * 65}' is not valid: W&B accepts at most 64 characters in a tag, found 65 in '{'b' * 65}'",
        ),
    ],
)
def test_what_wandbs_variables_say_is_refused_like_the_same_value_in_a_config(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, problem: str
) -> None:
    (tmp_path / "link").symlink_to(world)
    monkeypatch.setenv(name, value)
    assert refusal(tmp_path / "link") == f"{name}: {problem}"
    config = load_config(str(tmp_path / "run.yaml"), [f"output_dir={tmp_path / 'out'}", "trajectory.reuse=true"])
    with pytest.raises(UserError, match=rf"^{name}: "):
        take_without_training(config, resume=False)
    done = emtoolkit("train", tmp_path / "run.yaml", cwd=tmp_path)
    assert (done.code, done.out, done.err.splitlines()[-1]) == (2, "", f"emtoolkit: {name}: {problem}")


@pytest.mark.parametrize(
    ("settings", "environment"),
    [
        (["wandb.project=mine", "wandb.tags=[]"], {"WANDB_PROJECT": "a/b", "WANDB_TAGS": "b" * 65}),
        (["wandb.mode=disabled"], {"WANDB_PROJECT": "a/b", "WANDB_TAGS": "b" * 65}),
        ([], {"WANDB_NAME": "a\n" * 200, "WANDB_RUN_GROUP": "b\n" * 200, "WANDB_TAGS": "a,, ,b"}),
        (["wandb.mode=disabled"], {"WANDB_HTTP_TIMEOUT": "abc"}),
    ],
)
def test_a_variable_that_the_run_does_not_use_or_that_becomes_a_name_is_not_refused(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: list[str], environment: dict[str, str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "run.yaml").write_text(config_text(world))
    prepare(load_config(str(tmp_path / "run.yaml"), [f"output_dir={tmp_path / 'out'}", *settings]))


NAMES = ["", " ", "a", "a/b", "a\\b", "a#b", "a?b", "a%b", "a:b", "ä b-c_d.e", "x" * 64, "x" * 65, "x" * 128, "x" * 129]


@pytest.mark.parametrize("name", NAMES)
def test_a_project_or_tag_that_wandb_refuses_is_refused(name: str) -> None:
    """W&B's client accepts the names of spaces and of nothing that its server does not."""
    checks: list[tuple[Callable[[], None], dict[str, Any]]] = [
        (lambda: check_project(name), {"project": name}),
        (lambda: check_tags([name]), {"run_tags": [name]}),
    ]
    for check, settings in checks:
        accepted = bool(name.strip())
        try:
            wandb.Settings(**settings)
        except (ValueError, wandb.errors.UsageError):
            accepted = False
        if accepted:
            check()
        else:
            with pytest.raises(ValueError, match="W&B "):
                check()


@pytest.mark.parametrize(
    ("store", "problem"),
    [
        ("''", "'' is not valid: expected a directory, such as outputs/.trajectories"),
        ("$EMT_UNSET/x", "$EMT_UNSET/x: the environment variable EMT_UNSET is not set; set it, or write the path out"),
    ],
)
def test_a_store_that_is_no_directory_is_refused(tmp_path: Path, world: Path, store: str, problem: str) -> None:
    (tmp_path / "run.yaml").write_text(config_text(world))
    done = emtoolkit("train", "run.yaml", "--reuse", "--set", f"trajectory.store={store}", cwd=tmp_path)
    assert (done.code, f"trajectory.store: {problem}" in done.err.splitlines()[-1]) == (2, True), done.err
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]
