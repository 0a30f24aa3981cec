"""Every option of a training is changed by `make fingerprint-table`, or listed with the reason why not."""

import pytest

from benchmarks.fingerprint_changes import CHANGES, NOT_CHANGED, Change, Of
from benchmarks.fingerprint_table import fields_of, rows_of

# Some that change the weights, and some that do not; `make fingerprint-table` trains all.
SELECTED = ("lr_scheduler_kwargs", "lora_alpha", "seed", "eval_on_start", "logging_steps", "use_dora", "weight_decay")


@pytest.mark.parametrize("of", ["argument", "LoRA"])
def test_each_option_is_changed_or_listed_with_the_reason_why_not(of: Of) -> None:
    changed = {change.name for change in CHANGES if change.of == of}
    listed = {name for kind, name in NOT_CHANGED if kind == of}
    # Some options are newer than the oldest versions that are supported.
    assert fields_of(of) <= changed | listed
    assert not changed & listed


@pytest.mark.slow
def test_no_change_gives_other_weights_under_one_fingerprint() -> None:
    rows = list(rows_of(change for change in CHANGES if change.name in SELECTED))
    assert [row.refused for row in rows] == [""] * len(SELECTED)
    assert not [row.change for row in rows if row.is_wrong]
    assert {row.change.name for row in rows if row.other_weights} == set(SELECTED) - {"logging_steps"}
    assert {row.change.name for row in rows if row.other_fingerprint} == set(SELECTED) - {"logging_steps"}


def test_a_change_that_is_not_seen_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    from emtoolkit.saving import arguments_identity

    monkeypatch.setattr(
        arguments_identity, "EXCLUSIONS", dict(arguments_identity.EXCLUSIONS) | {"adam_epsilon": "forgotten"}
    )
    monkeypatch.setattr("emtoolkit.saving.optimizer_identity._options", lambda *values, **without: {})
    (row,) = rows_of([Change("argument", "adam_epsilon", 0.1)])
    assert row.is_wrong
