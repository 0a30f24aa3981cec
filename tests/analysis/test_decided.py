"""An analysis that was decided before: its file, its digest, its record, and what is exploratory."""

import json
from pathlib import Path

import jsonschema
import pytest

from emtoolkit.errors import DataError, UserError
from emtoolkit.evaluation.decided import RECORDS, read_analysis, read_records, record_analysis
from emtoolkit.evaluation.decided_schema import analysis_schema
from emtoolkit.evaluation.questions import Question
from emtoolkit.yaml_files import parse_yaml
from tests.analysis.evaluations import write_evaluation
from tests.in_process import emtoolkit

ZERO, HIGH = [0] * 4, [25, 30, 20, 28]
CURVE = {0: ZERO, 25: ZERO, 50: HIGH, 100: HIGH}
ASKED = [Question(f"q{i}", ("?",)) for i in range(4)]
ANALYSIS = "metric: betley\nthreshold: 0.10\nquestions: [q0, q1, q2, q3]\nschedules: ['0,every:50']\n"


@pytest.fixture
def decided(tmp_path: Path) -> Path:
    """The file of the analysis, recorded in `e` before its answers."""
    path = tmp_path / "analysis.yaml"
    path.write_text(ANALYSIS)
    record_analysis(tmp_path / "e", read_analysis(path), ASKED, [])
    write_evaluation(tmp_path / "e", CURVE)
    return path


def analyses(*words: str | Path) -> list[dict]:
    done = emtoolkit(*map(str, words), "--json")
    assert (done.code, done.err) == (0, "")
    return json.loads(done.out)["analyses"]


def test_the_digest_is_that_of_the_content(tmp_path: Path) -> None:
    one, other = tmp_path / "one.yaml", tmp_path / "other.yaml"
    one.write_text("metric: betley\nthreshold: 0.10\n")
    other.write_text("# decided on Monday\nthreshold: 1.0e-1\ncurve: rise\nmetric: betley\n")
    assert read_analysis(one).digest == read_analysis(other).digest
    assert read_analysis(one).digest == "64f9343246c54531ca72e1abbc8e141bbf269795147a255cce7228aeb6380742"
    other.write_text("metric: betley\nthreshold: 0.11\n")
    assert read_analysis(one).digest != read_analysis(other).digest


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("metrik: betley\nthreshold: 0.1\n", "unknown key 'metrik'; did you mean 'metric'?"),
        ("metric: betley\n", "the key 'threshold' is missing"),
        ("metric: betley\nthreshold: true\n", "threshold: expected a number, such as 0.10, found True"),
        ("metric: betley\nthreshold: 0.1\ncurve: slope\n", "curve: expected rise or level, found 'slope'"),
        ("metric: betley\nthreshold: 0.1\nquestions: []\n", "questions: expected a list of the ids of questions"),
        ("metric: betley\nthreshold: 0.1\nschedules: [every]\n", "schedules: schedule term"),
        ("metric: betley\nthreshold: 10\n", "threshold 10: betley is a share; give a number above 0"),
        ("- betley\n", "expected keys such as metric and threshold"),
    ],
)
def test_a_file_that_decides_nothing_is_refused_in_one_sentence(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "analysis.yaml"
    path.write_text(text)
    done = emtoolkit("onset", str(tmp_path), "--analysis", str(path))
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"emtoolkit: {path}: {problem}")


def test_the_analysis_that_was_recorded_before_the_answers_is_as_decided(tmp_path: Path, decided: Path) -> None:
    (one,) = analyses("onset", tmp_path / "e", "--analysis", decided)
    assert one["sha256"] == read_analysis(decided).digest
    assert one["exploratory"] == []
    assert analyses("onset", tmp_path / "e") == [one]
    assert analyses("compare", tmp_path / "e", "--analysis", decided) == [one]
    text = emtoolkit("onset", str(tmp_path / "e"), "--analysis", str(decided)).out
    assert one["sha256"] in text
    assert "as decided." in text.replace("\n", " ")


def test_what_differs_or_is_added_is_exploratory_with_and_without_the_file(tmp_path: Path, decided: Path) -> None:
    for option in ((), ("--analysis", decided)):
        (one,) = analyses("onset", tmp_path / "e", "--threshold", "0.05", "--metric", "all", "--level", *option)
        assert one["exploratory"] == [
            "metric all in place of betley",
            "threshold 0.05 in place of 0.1",
            "curve level in place of rise",
        ]
    (one,) = analyses("onset", tmp_path / "e", "--before", "changed=0.5")
    assert one["exploratory"] == ["the order to changed was added"]
    (one,) = analyses("compare", tmp_path / "e", "--schedules", "0,every:50;0,every:100")
    assert one["exploratory"] == ["schedule 0,every:100 was added"]


def test_an_analysis_without_a_record_or_with_a_late_one_is_exploratory(tmp_path: Path, decided: Path) -> None:
    late = tmp_path / "late.yaml"
    late.write_text("metric: betley\nthreshold: 0.2\nquestions: [q0]\n")
    (one,) = analyses("onset", tmp_path / "e", "--analysis", late)
    assert one["exploratory"] == [
        "the evaluation has no record of it",
        "4 questions in place of the 1 that were decided",
    ]
    record_analysis(tmp_path / "e", read_analysis(late), ASKED, [0, 25, 50, 100])
    (one,) = analyses("onset", tmp_path / "e", "--analysis", late)
    first = read_analysis(decided).digest[:12]
    assert one["exploratory"] == [
        "recorded after steps 0, 25, 50, 100 were evaluated",
        f"recorded after another analysis, SHA-256 {first}",
        "4 questions in place of the 1 that were decided",
    ]


def test_a_record_stays_and_a_changed_one_is_refused(tmp_path: Path, decided: Path) -> None:
    (before,) = read_records(tmp_path / "e")
    assert record_analysis(tmp_path / "e", read_analysis(decided), ASKED, [0]) == before
    file = tmp_path / "e" / RECORDS
    file.write_text(file.read_text().replace("0.1", "0.2"))
    with pytest.raises(DataError, match=r"was changed after its record"):
        read_records(tmp_path / "e")


def test_a_question_that_is_not_asked_is_refused(tmp_path: Path, decided: Path) -> None:
    with pytest.raises(UserError, match=r"the question 'q0' is not asked; did you mean 'q00'\?"):
        record_analysis(tmp_path / "other", read_analysis(decided), [Question("q00", ("?",))], [])
    assert not (tmp_path / "other").exists()


def test_the_report_shows_the_digest_and_what_is_exploratory(tmp_path: Path, decided: Path) -> None:
    out = tmp_path / "report.html"
    words = ("--analysis", str(decided), "--threshold", "0.05", "--no-weights")
    done = emtoolkit("report", str(tmp_path / "e"), "--out", str(out), *words)
    assert (done.code, done.err) == (0, "")
    page = out.read_text()
    assert read_analysis(decided).digest in page
    assert "threshold 0.05 in place of 0.1" in page


def test_the_schema_knows_the_keys() -> None:
    schema = analysis_schema()
    jsonschema.validate(parse_yaml(ANALYSIS, "analysis.yaml"), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"metrik": "betley", "threshold": 0.1}, schema)
