# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Bounds as text, and the names they are checked against."""

import pytest

from trl_ext.kl_control import Constraint, check_bounds, check_names, function_bounds, kl_bound, parse_constraints


@pytest.mark.parametrize(
    ("text", "constraint"),
    [
        ("toxicity <= 0.05", Constraint("toxicity", False, 0.05)),
        ("toxicity<=.05", Constraint("toxicity", False, 0.05)),
        ("  reward model 2 >=  -1.5e-1 ", Constraint("reward model 2", True, -0.15)),
        ("org/model >= +3", Constraint("org/model", True, 3.0)),
    ],
)
def test_a_text_is_read(text, constraint):
    assert Constraint.parse(text) == constraint
    assert Constraint.parse(str(constraint)) == constraint


@pytest.mark.parametrize(
    "text", ["toxicity", "toxicity < 0.05", "toxicity = 1", "<= 3", "a <= b", "a <= 1e999", "a <= nan", "a <= 1 2", ""]
)
def test_a_text_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match=r"`reward_constraints` has .*such as 'toxicity <= 0.05'"):
        Constraint.parse(text)


def test_one_bound_a_function():
    with pytest.raises(ValueError, match="bounds 'a' more than once"):
        parse_constraints(["a <= 1", "b >= 2", "a >= 0"])


def test_names_are_checked():
    check_names(parse_constraints(["length >= 1"]), ["length", "toxicity"])
    with pytest.raises(ValueError, match=r"'toxicty <= 1', but there is no .*did you mean `toxicity`"):
        check_names(parse_constraints(["toxicty <= 1"]), ["length", "toxicity"])
    with pytest.raises(ValueError, match="the functions are 'length', 'toxicity'"):
        check_names(parse_constraints(["quality >= 1"]), ["length", "toxicity"])


def test_no_function_may_have_the_name_of_the_kl():
    check_bounds(["length >= 1", "kl <= 1"], ["length"])
    check_bounds(None, ["kl"])
    with pytest.raises(ValueError, match="a reward function has that name too"):
        check_bounds(["kl <= 1"], ["length", "kl"])
    with pytest.raises(ValueError, match="there is no reward function 'lenght'"):
        check_bounds(["lenght >= 1"], ["length", "kl"])


def test_the_bound_on_the_kl_is_none_of_a_function():
    texts = ["length >= 1.00000001", "kl <= 0.9"]
    assert kl_bound(texts) == ("kl", False, 0.9) and function_bounds(texts) == ["length >= 1.00000001"]
    assert kl_bound(["length >= 1"]) is None and kl_bound(None) is None and function_bounds(None) == []
    for text in ("kl >= 0.5", "kl <= 0", "kl <= -1"):
        with pytest.raises(ValueError, match=r"'kl .*: bound the KL from above, by a number of nats .* above 0"):
            kl_bound([text])
