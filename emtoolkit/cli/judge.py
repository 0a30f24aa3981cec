"""`emtoolkit judge`: scores of answers that somebody else generated."""

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group, RenderableType

from emtoolkit.cli.help import command
from emtoolkit.cli.judge_flags import (
    Calibration,
    JudgeFlags,
)
from emtoolkit.cli.layout import facts, here, line, prose
from emtoolkit.cli.option_groups import takes_groups
from emtoolkit.cli.render import as_json as to_json
from emtoolkit.cli.terminal import only_results_on_stdout, progress_bar, show

if TYPE_CHECKING:
    from emtoolkit.evaluation.calibration import CalibrationSession
    from emtoolkit.evaluation.given_answers import JudgedFile

commands = typer.Typer()

_COLUMNS, _OUTPUT = "Columns", "Output"
_Answers = Annotated[Path, typer.Argument(metavar="ANSWERS", help="CSV, TSV, JSONL or Parquet: a row per answer.")]
_Question = Annotated[
    str | None, typer.Option(metavar="COL", rich_help_panel=_COLUMNS, help="Text of the question. Default: question.")
]
_Answer = Annotated[
    str | None, typer.Option(metavar="COL", rich_help_panel=_COLUMNS, help="Text of the answer. Default: answer.")
]
_Questions = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Question file with the judge and its prompts for each question.")
]
_Output = Annotated[
    Path | None,
    typer.Option(metavar="FILE", rich_help_panel=_OUTPUT, help="Judged answers. Default: ANSWERS-judged-JUDGE."),
]


@command(
    commands,
    "emtoolkit judge answers.csv --judge gpt-4o --judge-prices 2.5,10 --max-cost 20",
    "emtoolkit judge answers.jsonl --question-column prompt --judge sandbox",
    "emtoolkit judge answers.parquet --judge m --judge-url http://localhost:8000/v1",
)
@takes_groups
def judge(
    answers: _Answers,
    *,
    question_column: _Question = None,
    answer_column: _Answer = None,
    questions: _Questions = None,
    judging: JudgeFlags,
    calibration: Calibration = None,
    output: _Output = None,
    as_json: Annotated[bool, typer.Option("--json", rich_help_panel=_OUTPUT, help="Print JSON.")] = False,
) -> None:
    """Score answers from a file, for example those of an earlier evaluation with another judge.

    Verdicts are kept: the same command continues, and asks nothing twice. `emtoolkit metrics` reads the judged file.
    """
    try:
        with only_results_on_stdout(), progress_bar() as progress:
            from emtoolkit.cli.judge_options import judge_of
            from emtoolkit.evaluation.calibration import calibrate, read_calibration
            from emtoolkit.evaluation.given_answers import AnswerColumns, judge_file, output_for, read_given_answers
            from emtoolkit.evaluation.questions import read_questions
            from emtoolkit.evaluation.store import Store
            from emtoolkit.paths import cache_dir

            asked = None if questions is None else read_questions(questions)
            given = read_given_answers(answers, AnswerColumns(question_column, answer_column), asked)
            chosen = judge_of(judging.options(), questions, asked or ())
            path = output_for(answers, output, chosen)
            store, session = cache_dir() / "evaluation", None
            if calibration is not None:
                frozen = read_calibration(calibration, chosen, asked or ())
                session = calibrate(frozen, chosen, Store(store, "calibrations"), progress)
            result = judge_file(given, path, chosen, Store(store, "verdicts"), progress)
    except KeyboardInterrupt:
        typer.echo("emtoolkit: interrupted; the same command continues", err=True)
        raise typer.Exit(128 + signal.SIGINT) from None
    notes = [*result.notes, *(session.notes if session else ())]
    for note in notes:
        typer.echo(f"emtoolkit: {note}", err=True)
    show(_json(result, session, notes) if as_json else _text(result, session))


def _json(result: "JudgedFile", session: "CalibrationSession | None", notes: list[str]) -> str:
    value = {
        "answers": str(result.path),
        "judge": result.judge,
        "statuses": dict(sorted(result.statuses.items())),
        "calibration": None if session is None else session.to_json(),
        "notes": notes,
    }
    return to_json(value)


def _text(result: "JudgedFile", session: "CalibrationSession | None") -> RenderableType:
    from emtoolkit.cli.render_calibration import calibration_sentence

    statuses = ", ".join(f"{count} {status}" for status, count in sorted(result.statuses.items()))
    answers = f"{sum(result.statuses.values())} ({statuses})"
    calibration = [] if session is None else [prose(calibration_sentence(session))]
    parts: list[RenderableType] = [facts([("answers", answers), ("judge", result.judge)]), *calibration]
    return Group(*parts, line(""), line(f"Judged answers: {here(result.path)}"))
