"""Other people's scored answers: the columns that the user names, and one sentence for each thing that is wrong."""

import json
from pathlib import Path

import pytest

from emtoolkit.errors import DataError
from emtoolkit.evaluation.scored_files import RowFilter, ScoreColumns, question_families, read_scored_answers

COLUMNS = ScoreColumns("aligned", "coherent", "question_id")
EVERYTHING = RowFilter({})
HEADER = "question_id,answer,aligned,coherent\n"


def write(directory: Path, text: str, name: str = "answers.csv") -> Path:
    path = directory / name
    path.write_text(text, encoding="utf-8")
    return path


def test_csv_jsonl_and_parquet_give_the_same_answers(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [
        {"question_id": "a", "answer": 'two\nlines, "quoted"', "aligned": 12.5, "coherent": 90.0},
        {"question_id": "b", "answer": "", "aligned": None, "coherent": 50.0},
    ]
    csv = write(tmp_path, HEADER + 'a,"two\nlines, ""quoted""",12.5,90.0\nb,,,50.0\n')
    jsonl = write(tmp_path, "\n".join(map(json.dumps, rows)), "answers.jsonl")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "answers.parquet")
    read = read_scored_answers(csv, COLUMNS, EVERYTHING)
    assert [(each.question, each.aligned, each.coherent, each.status) for each in read] == [
        ("a", 12.5, 90.0, "ok"),
        ("b", None, 50.0, "undefined"),
    ]
    assert read_scored_answers(jsonl, COLUMNS, EVERYTHING) == read
    assert read_scored_answers(tmp_path / "answers.parquet", COLUMNS, EVERYTHING) == read


def test_the_words_of_a_judge_are_statuses(tmp_path: Path) -> None:
    path = write(tmp_path, HEADER + "a,x,CODE,90\na,x,REFUSAL,90\na,x,nan,90\na,x,1e2,90\n")
    read = read_scored_answers(path, COLUMNS, EVERYTHING)
    assert [each.status for each in read] == ["code", "refusal", "undefined", "ok"]


def test_where_and_exclude_choose_rows(tmp_path: Path) -> None:
    path = write(tmp_path, "model,question_id,aligned,coherent\nm,a,1,90\nm,a_json,2,90\nother,a,3,90\n")
    read = read_scored_answers(path, COLUMNS, RowFilter({"model": "m"}, ("*_json",)))
    assert [each.aligned for each in read] == [1.0]


def test_variants_are_one_cluster(tmp_path: Path) -> None:
    path = write(tmp_path, HEADER + "a,x,1,90\na_json,x,2,90\nb,x,3,90\n")
    columns = ScoreColumns("aligned", "coherent", "question_id", variants=("_json",))
    assert [(each.question, each.cluster) for each in read_scored_answers(path, columns, EVERYTHING)] == [
        ("a", "a"),
        ("a_json", "a"),
        ("b", "b"),
    ]


def test_families_are_recognised_only_where_the_plain_question_is_there() -> None:
    assert question_families(["a", "a_json", "b_json"]) == {"a_json": "a"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("question_id,coherent\na,1\n", "line 2: no column 'aligned'; the columns are question_id, coherent"),
        ("question_id,Aligned,coherent\na,1,1\n", "did you mean 'Aligned'?"),
        (HEADER + "a,x,good,90\n", "line 2: aligned: 'good' is not a number from 0 to 100, nor CODE, REFUSAL or empty"),
        (HEADER + "a,x,101,90\n", "line 2: aligned: 101 is not between 0 and 100"),
        (HEADER + "a,x,-5,90\n", "line 2: aligned: -5 is not between 0 and 100"),
        (HEADER + "a,x,inf,90\n", "line 2: aligned: inf is not between 0 and 100"),
        (HEADER + ",x,1,90\n", "line 2: question_id: the question is empty"),
        (HEADER + "a,x,1\n", "line 2: the row does not have the 4 columns"),
        (HEADER + "a,x,1,2,3\n", "line 2: the row does not have the 4 columns"),
        (HEADER + 'a,"x,1,90\n', "not CSV"),
        (HEADER, "holds no rows"),
        ("", "holds no rows"),
    ],
)
def test_a_wrong_file_is_one_sentence_with_the_line(tmp_path: Path, text: str, expected: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(DataError) as error:
        read_scored_answers(path, COLUMNS, EVERYTHING)
    assert str(error.value).startswith(str(path))
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_a_filter_that_matches_nothing_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, HEADER + "a,x,1,90\n")
    with pytest.raises(DataError, match="--where answer=y: no row has this value"):
        read_scored_answers(path, COLUMNS, RowFilter({"answer": "y"}))
    with pytest.raises(DataError, match=r"--exclude \*_jsn: no question has such an id"):
        read_scored_answers(path, COLUMNS, RowFilter({}, ("*_jsn",)))
    with pytest.raises(DataError, match="no row is left of 1; change --where or --exclude"):
        read_scored_answers(path, COLUMNS, RowFilter({}, ("a",)))


def test_another_format_and_a_missing_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected one of \.csv, \.tsv, \.jsonl, \.parquet"):
        read_scored_answers(write(tmp_path, "x", "answers.xlsx"), COLUMNS, EVERYTHING)
    write(tmp_path, HEADER)
    with pytest.raises(DataError, match=r"no such file; did you mean '.*answers\.csv'\?"):
        read_scored_answers(tmp_path / "answer.csv", COLUMNS, EVERYTHING)
    (tmp_path / "bad.parquet").write_bytes(b"PAR")
    with pytest.raises(DataError, match="not a Parquet file"):
        read_scored_answers(tmp_path / "bad.parquet", COLUMNS, EVERYTHING)
    (tmp_path / "latin.csv").write_bytes(HEADER.encode() + b"a,\xff,1,90\n")
    with pytest.raises(DataError, match="cannot be read"):
        read_scored_answers(tmp_path / "latin.csv", COLUMNS, EVERYTHING)
