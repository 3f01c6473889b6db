# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""One row of a table of bad inputs: what a user does, and the one line that answers it."""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import pytest


class Case(NamedTuple):
    """Attributes:
    name: Identifies the case in pytest's output.
    call: Does what the user did.
    error: Class of the exception, or of the warning, that answers.
    message: The whole answer, word for word.
    """

    name: str
    call: Callable[[], object]
    error: type[Exception]
    message: str


def table(cases: list[Case]) -> pytest.MarkDecorator:
    """Parametrize a test with one argument, `case`."""
    names = [case.name for case in cases]
    assert len(names) == len(set(names)), "two cases share a name"
    return pytest.mark.parametrize("case", cases, ids=names)


def check(case: Case) -> None:
    """The call is answered by exactly that exception or warning, in one line."""
    assert "\n" not in case.message
    if issubclass(case.error, Warning):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            case.call()
        messages = [str(w.message) for w in caught if issubclass(w.category, case.error)]
        assert case.message in messages, messages
        return
    with pytest.raises(case.error) as raised:
        case.call()
    assert type(raised.value) is case.error
    assert str(raised.value) == case.message, str(raised.value)
