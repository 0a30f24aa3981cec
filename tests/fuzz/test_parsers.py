"""No parser of foreign text ends in a traceback or takes long; `make fuzz` tries more inputs than these."""

import pytest

from tests.fuzz.property import try_examples
from tests.fuzz.targets import TARGETS, Target


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_a_parser_returns_a_value_or_one_sentence(target: Target) -> None:
    assert try_examples(target, 25) >= 20
