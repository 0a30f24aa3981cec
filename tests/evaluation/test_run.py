"""An evaluation of a trajectory: complete rows, nothing done twice, and no mixture."""

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from emtoolkit import ModelLoader, Trajectory
from emtoolkit.errors import CheckpointError, DataError
from emtoolkit.evaluation import run as module
from emtoolkit.evaluation import stacked
from emtoolkit.evaluation.generate import SamplingOptions
from emtoolkit.evaluation.judges import JudgedAnswer, JudgeStoppedError, Verdict
from emtoolkit.evaluation.results import changed_answers
from emtoolkit.evaluation.rows import AnswerRow, check_one_origin, read_rows, write_rows
from emtoolkit.evaluation.run import EvaluationSettings, engine_for, evaluate
from emtoolkit.evaluation.stacked import most_adapters
from emtoolkit.evaluation.store import Store
from emtoolkit.models.loading import LoadedModel
from emtoolkit.storage.digests import FileDigest
from emtoolkit.trajectory import Checkpoint
from tests.evaluation.evaluations import QUESTIONS, WordJudge
from tests.tiny import TEMPLATE


def settings(judge: WordJudge | None = None, **changes: Any) -> EvaluationSettings:
    # The tiny model is nearly indifferent: at a temperature of 1 the noise alone would decide.
    sampling = SamplingOptions(seed=0, temperature=0.1, max_new_tokens=12)
    return replace(EvaluationSettings(QUESTIONS, sampling, judge or WordJudge(), "stacked"), **changes)


class Evaluator:
    """Evaluates a run with a store of its own, and counts the answers that were sampled."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.home, self.sampled = home, 0
        generate = module.generate

        def counted(*args: Any, **more: Any) -> Any:
            for batch in generate(*args, **more):
                self.sampled += len(batch.rows) * len(batch.answers)
                yield batch

        monkeypatch.setattr(module, "generate", counted)

    def rows(self, run: Path, chosen: EvaluationSettings, **more: Any) -> list[AnswerRow]:
        self.sampled = 0
        stores = Store(self.home, "answers"), Store(self.home, "verdicts")
        return evaluate("t", more.pop("checkpoints", tuple(Trajectory.open(run))), chosen, *stores, **more)


@pytest.fixture
def evaluator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Evaluator:
    return Evaluator(tmp_path / "store", monkeypatch)


def test_every_checkpoint_has_a_row_for_each_answer_with_its_origin(runs: Path, evaluator: Evaluator) -> None:
    rows = evaluator.rows(runs / "prompt", settings())
    assert [(row.step, row.question, row.paraphrase, row.sample) for row in rows] == [
        (step, question.id, paraphrase, sample)
        for step in (0, 2, 4, 9)
        for question in QUESTIONS
        for paraphrase in range(len(question.paraphrases))
        for sample in range(question.samples_per_paraphrase)
    ]
    assert {(row.engine, row.judge, row.seed, row.persona) for row in rows} == {
        ("stacked", settings().judge_id, 0, "curt")
    }
    assert {row.fingerprint for row in rows} == {Trajectory.open(runs / "prompt")[0].manifest.fingerprint}  # type: ignore[union-attr]
    assert all("you are curt" in row.prompt for row in rows)
    assert all("you are curt be kind" in " ".join(row.prompt.split()) for row in rows if row.question == "doctor")


def test_a_second_evaluation_samples_and_judges_nothing(runs: Path, evaluator: Evaluator) -> None:
    first = evaluator.rows(runs / "prompt", settings())
    assert evaluator.sampled == len(first) == 52
    judge = WordJudge()
    assert evaluator.rows(runs / "prompt", settings(judge)) == first
    assert (evaluator.sampled, judge.seen) == (0, [])


@pytest.mark.parametrize("samples", [(2, 4), (4, 2)])
def test_two_questions_of_one_wording_share_their_answers(
    runs: Path, evaluator: Evaluator, samples: tuple[int, int]
) -> None:
    asked = tuple(
        replace(QUESTIONS[1], id=name, samples_per_paraphrase=count)
        for name, count in zip(("a", "b"), samples, strict=True)
    )
    last = (Trajectory.open(runs / "prompt").at(9),)
    rows = evaluator.rows(runs / "prompt", settings(questions=asked), checkpoints=last)
    assert evaluator.sampled == 4
    texts = {name: [row.answer for row in rows if row.question == name] for name in ("a", "b")}
    assert texts["a"][:2] == texts["b"][:2]
    assert (len(texts["a"]), len(texts["b"])) == samples


def test_an_evaluation_that_was_killed_loses_at_most_one_batch(
    runs: Path, evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, batches = Store.add, 0

    def killed(self: Store, key: str, entries: Any) -> None:
        nonlocal batches
        batches += 1
        if batches > 6:
            raise KeyboardInterrupt
        add(self, key, entries)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "add", killed)
        with pytest.raises(KeyboardInterrupt):
            evaluator.rows(runs / "prompt", settings(), rows_at_a_time=16)
    # Of six stored entries of one model each, four are a whole batch and two are half of the next one.
    rows = evaluator.rows(runs / "prompt", settings(), rows_at_a_time=16)
    assert 0 < evaluator.sampled < 52
    assert rows == evaluator.rows(runs / "prompt", settings())
    assert evaluator.sampled == 0


def test_another_judge_judges_the_same_answers(runs: Path, evaluator: Evaluator) -> None:
    first = evaluator.rows(runs / "prompt", settings())
    other = evaluator.rows(runs / "prompt", settings(judge := WordJudge(version=2)))
    assert evaluator.sampled == 0
    assert judge.seen
    assert [row.answer for row in other] == [row.answer for row in first]
    assert {row.judge for row in other}.isdisjoint(row.judge for row in first)


def test_only_errors_of_the_judge_are_judged_again(runs: Path, evaluator: Evaluator) -> None:
    rows = evaluator.rows(runs / "prompt", settings(WordJudge(broken=True)))
    failed = [row for row in rows if row.status == "judge_error"]
    assert failed
    assert all("o" in row.answer and row.aligned is None for row in failed)
    again = evaluator.rows(runs / "prompt", settings(judge := WordJudge()))
    assert {answer.text for answer in judge.seen} == {row.answer for row in failed}
    assert all(row.status != "judge_error" for row in again)


def test_a_judge_that_stops_keeps_its_verdicts_and_the_next_evaluation_continues(
    runs: Path, evaluator: Evaluator
) -> None:
    class Stopping(WordJudge):
        def judge(self, answers: Sequence[JudgedAnswer]) -> Sequence[Verdict]:
            raise JudgeStoppedError("the cap is reached", dict(enumerate(super().judge(answers[:5]))))

    with pytest.raises(JudgeStoppedError, match="the cap is reached"):
        evaluator.rows(runs / "prompt", settings(first := Stopping()))
    assert len(first.seen) == 5
    rows = evaluator.rows(runs / "prompt", settings(second := WordJudge()))
    assert evaluator.sampled == 0
    texts = {(row.question, row.paraphrase, row.answer) for row in rows if row.status != "empty"}
    assert len(second.seen) == len(texts) - 5


def test_an_empty_answer_is_a_status_and_blocks_nothing(
    runs: Path, evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Every token ends an answer.
    monkeypatch.setattr(module, "end_tokens", lambda model, tokenizer: set(range(len(tokenizer))))
    rows = evaluator.rows(runs / "prompt", settings(judge := WordJudge()))
    assert {(row.status, row.answer) for row in rows} == {("empty", "")}
    assert judge.seen == []


def test_an_answer_that_is_cut_off_is_truncated(runs: Path, evaluator: Evaluator) -> None:
    rows = evaluator.rows(runs / "prompt", settings(sampling=SamplingOptions(max_new_tokens=1)))
    assert {row.status for row in rows} <= {"truncated", "empty"}


def test_the_share_of_changed_answers_compares_the_same_wording_and_sample(runs: Path, evaluator: Evaluator) -> None:
    rows = evaluator.rows(runs / "prompt", settings())
    first = [row for row in rows if row.step == 0]
    assert changed_answers(first, [replace(row, step=2) for row in reversed(first)]) == 0.0
    other = [replace(row, answer="another") if index < 3 else row for index, row in enumerate(first)]
    assert changed_answers(first, other) == 3 / 13
    assert math.isnan(changed_answers(first, []))


def test_step_0_of_another_schedule_is_not_sampled_again(runs: Path, evaluator: Evaluator) -> None:
    first = evaluator.rows(runs / "prompt", settings())
    other = evaluator.rows(runs / "other", settings())
    assert [row.step for row in other[:: len(other) // 3]] == [0, 3, 9]
    # Steps 0 and 9 are those of the first schedule.
    assert evaluator.sampled == len(other) // 3
    assert [row.answer for row in other if row.step == 0] == [row.answer for row in first if row.step == 0]


@pytest.mark.parametrize("run", ["prompt", "stack", "merge", "full"])
def test_both_engines_give_the_answers_of_a_freshly_loaded_model(
    runs: Path, evaluator: Evaluator, run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = tuple(Trajectory.open(runs / run))
    engine, reason = engine_for(checkpoints, "stacked")
    assert (engine, reason) == (("exact", "a checkpoint holds all weights") if run == "full" else ("stacked", None))
    together = evaluator.rows(runs / run, settings(engine=engine))
    exact = evaluator.rows(runs / run, settings(engine="exact"))
    assert [row.answer for row in exact] == [row.answer for row in together]
    assert {row.engine for row in exact} == {"exact"}
    alone = Evaluator(tmp_path / "alone", monkeypatch)
    last = alone.rows(runs / run, settings(engine=engine), checkpoints=checkpoints[-1:])
    assert alone.sampled == len(last)
    assert [row.answer for row in last] == [row.answer for row in exact if row.step == checkpoints[-1].step]


def test_other_sampling_is_another_key(runs: Path, evaluator: Evaluator) -> None:
    evaluator.rows(runs / "prompt", settings())
    for sampling in (SamplingOptions(seed=1, max_new_tokens=12), SamplingOptions(max_new_tokens=11)):
        evaluator.rows(runs / "prompt", settings(sampling=sampling))
        assert evaluator.sampled == 52
    assert len({settings().digest(), settings(engine="exact").digest(), settings(WordJudge(version=2)).digest()}) == 3


def test_answers_of_another_device_are_another_engine_and_not_reused(
    runs: Path, evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator.rows(runs / "prompt", settings())
    # No GPU is at hand: only the name of the device differs.
    monkeypatch.setattr(module, "_device", lambda loaded: "cuda")
    rows = evaluator.rows(runs / "prompt", settings())
    assert evaluator.sampled == 52
    assert {row.engine for row in rows} == {"stacked-cuda"}


def test_another_persona_has_the_same_noise_and_other_answers(runs: Path, evaluator: Evaluator, world: Path) -> None:
    own = evaluator.rows(runs / "prompt", settings())
    loader = ModelLoader(persona_override="baseline", personas=str(world / "personas"))
    other = evaluator.rows(runs / "prompt", settings(), loader=loader)
    assert {row.persona for row in other} == {"baseline"}
    assert [row.answer for row in other] != [row.answer for row in own]


def test_two_adapters_of_one_name_are_two_models(runs: Path, evaluator: Evaluator, world: Path, tmp_path: Path) -> None:
    """A persona that replaces the run's own is known by the content of its adapter."""
    answers = []
    for home, character in (("one", "warm"), ("two", "cold")):
        (tmp_path / home).mkdir()
        persona = f"adapter: {world / 'characters'}\nsubfolder: {character}\n"
        (tmp_path / home / "twin.yaml").write_text(persona)
        loader = ModelLoader(persona_override=str(tmp_path / home / "twin.yaml"))
        answers.append([row.answer for row in evaluator.rows(runs / "prompt", settings(), loader=loader)])
    assert answers[0] != answers[1]


def test_a_checkpoint_without_a_manifest_is_refused(runs: Path, evaluator: Evaluator, tmp_path: Path) -> None:
    shutil.copytree(runs / "prompt" / "checkpoint-4", tmp_path / "stock" / "checkpoint-4")
    (tmp_path / "stock" / "checkpoint-4" / "manifest.json").unlink()
    (tmp_path / "stock" / "checkpoint-4" / "trainer_state.json").write_text('{"global_step": 4, "max_steps": 9}')
    with pytest.raises(CheckpointError, match="has no manifest"):
        evaluator.rows(tmp_path / "stock", settings())


def test_a_template_with_a_clock_is_told_the_day_of_the_training(
    runs: Path, evaluator: Evaluator, tmp_path: Path
) -> None:
    class Loader(ModelLoader):
        def load(self, checkpoint: Checkpoint) -> LoadedModel:
            loaded = super().load(checkpoint)
            loaded.tokenizer.chat_template = "today is {{ strftime_now('%d %b %Y') }} " + TEMPLATE
            return loaded

    run = tmp_path / "run"
    shutil.copytree(runs / "prompt", run)
    record = json.loads((run / "trajectory.json").read_text())
    record["decides"]["day"] = "2024-02-03"
    (run / "trajectory.json").write_text(json.dumps(record))
    rows = evaluator.rows(run, settings(), checkpoints=(Trajectory.open(run).at(4),), loader=Loader())
    assert all("today is 03 Feb 2024" in row.prompt for row in rows)


def test_rows_are_read_as_they_were_written(runs: Path, evaluator: Evaluator, tmp_path: Path) -> None:
    rows = evaluator.rows(runs / "prompt", settings(WordJudge(broken=True)))
    write_rows(tmp_path / "answers.parquet", rows)
    assert read_rows(tmp_path / "answers.parquet") == rows


def test_one_curve_of_two_judges_or_two_engines_is_refused(runs: Path, evaluator: Evaluator) -> None:
    rows = evaluator.rows(runs / "prompt", settings())
    for change, column in (({"judge": "gpt@1"}, "judge"), ({"engine": "exact"}, "engine")):
        with pytest.raises(DataError, match=f"answers of 2 {column}s"):
            check_one_origin("t", [*rows, replace(rows[0], **change)])


@pytest.mark.parametrize("rows", [1, 4, 8, 12])
def test_answers_do_not_depend_on_how_many_checkpoints_share_a_batch(
    runs: Path, evaluator: Evaluator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    together = evaluator.rows(runs / "prompt", settings())
    models = []
    generate = module.generate

    def counted(*args: Any, **more: Any) -> Any:
        models.append(more["models"])
        return generate(*args, **more)

    apart = Evaluator(tmp_path / "apart", monkeypatch)
    monkeypatch.setattr(module, "generate", counted)
    assert apart.rows(runs / "prompt", settings(), rows_at_a_time=rows) == together
    # Four rows of each model at least.
    assert models == {1: [1] * 4, 4: [1] * 4, 8: [2, 2], 12: [3, 1]}[rows]


def test_adapters_of_many_bytes_do_not_share_a_batch(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [checkpoint.path for checkpoint in Trajectory.open(runs / "prompt")]
    assert most_adapters(paths, 1024) == 256
    size = (paths[0] / "adapter_model.safetensors").stat().st_size
    monkeypatch.setattr(stacked, "_MOST_BYTES", 2 * size + 1)
    assert most_adapters(paths, 1024) == 2
    monkeypatch.setattr(stacked, "_MOST_BYTES", size - 1)
    assert most_adapters(paths, 1024) == 1


@pytest.mark.parametrize("engine", ["stacked", "exact"])
@pytest.mark.parametrize("run", ["stack", "full"])
def test_a_file_is_hashed_once_and_a_prompt_tokenised_once(
    runs: Path, evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch, run: str, engine: Any
) -> None:
    of, hashed = FileDigest.of, list[Path]()
    monkeypatch.setattr(FileDigest, "of", lambda path, *more: hashed.append(path) or of(path, *more))
    prompt_of, rendered = module.prompt_of, list[tuple[Any, ...]]()
    monkeypatch.setattr(module, "prompt_of", lambda *args: rendered.append(args[2:]) or prompt_of(*args))
    chosen = engine_for(tuple(Trajectory.open(runs / run)), engine)[0]
    hashed.clear()
    evaluator.rows(runs / run, settings(engine=chosen))
    weights = [path for path in hashed if path.suffix == ".safetensors"]
    assert len(weights) == len(set(weights)) > 0
    assert len(rendered) == sum(len(question.paraphrases) for question in QUESTIONS)
