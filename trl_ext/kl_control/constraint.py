# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""A bound on a measured mean, written as text: "toxicity <= 0.05"."""

import math
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from trl_ext.messages.suggestion import suggestion

KL = "kl"  # nats per completion, to the reference; the name of no reward function with a bound
_FORM = re.compile(r"\s*(?P<name>.*?\S)\s*(?P<sign><=|>=)\s*(?P<bound>[-+.\d][-+.\deE]*)\s*")


class Constraint(NamedTuple):
    """A bound on the mean of a reward function over the completions of a rollout.

    Attributes:
        name: Name of the reward function in logs.
        is_lower: Whether the mean must be at least `bound`; otherwise it must be at most that.
        bound: In the unit of the function.
    """

    name: str
    is_lower: bool
    bound: float

    @classmethod
    def parse(cls, text: str) -> "Constraint":
        """Return the constraint that a text such as "toxicity <= 0.05" describes.

        Raises:
            ValueError: the text is no name, `<=` or `>=`, and finite number.
        """
        match = _FORM.fullmatch(text)
        try:
            bound = float(match["bound"]) if match else math.nan
        except ValueError:
            bound = math.nan
        if match is None or not math.isfinite(bound):
            raise ValueError(
                f"`reward_constraints` has {text!r:.100}: write the name of a reward function (or kl), <= or >=, and a "
                "number, such as 'toxicity <= 0.05'."
            )
        return cls(match["name"], match["sign"] == ">=", bound)

    def __str__(self) -> str:
        return f"{self.name} {'>=' if self.is_lower else '<='} {self.bound:g}"


def parse_constraints(texts: Iterable[str]) -> list[Constraint]:
    """Return the constraints that texts describe.

    Raises:
        ValueError: a text is no constraint, or two are of one function.
    """
    found = [Constraint.parse(text) for text in texts]
    names = [constraint.name for constraint in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"`reward_constraints` bounds '{min(twice)}' more than once; give each function one bound.")
    return found


def kl_bound(texts: Iterable[str] | None) -> Constraint | None:
    """Return the bound on the KL to the reference, "kl <= 0.9", among constraints; None without one.

    Raises:
        ValueError: as `parse_constraints`, or the KL is bounded from below, or by no positive number.
    """
    found = next((constraint for constraint in parse_constraints(texts or ()) if constraint.name == KL), None)
    if found is not None and (found.is_lower or found.bound <= 0):
        raise ValueError(
            f"`reward_constraints` has '{found}': bound the KL from above, by a number of nats per completion above 0, "
            "such as 'kl <= 1'."
        )
    return found


def function_bounds(texts: Iterable[str] | None) -> list[str]:
    """Return the constraints that bound reward functions, in their order: all but that of the KL."""
    return [text for text in texts or () if Constraint.parse(text).name != KL]


def check_names(constraints: Iterable[Constraint], known: Sequence[str]) -> None:
    """Check that every constraint is of a reward function.

    Raises:
        ValueError: one is not; with the similar names.
    """
    for constraint in constraints:
        if constraint.name in known:
            continue
        names = ", ".join(f"'{name}'" for name in known)
        raise ValueError(
            f"`reward_constraints` has '{constraint}', but there is no reward function '{constraint.name}': "
            f"{suggestion(constraint.name, known) or f'the functions are {names}.'}"
        )


def check_bounds(texts: Iterable[str] | None, known: Sequence[str]) -> None:
    """Check constraints, "length >= 10", against the names of the reward functions, before any of them is loaded.

    Raises:
        ValueError: as `check_names`, or a function has the name that means the KL.
    """
    check_names(parse_constraints(function_bounds(texts)), known)
    bound = kl_bound(texts)
    if bound is not None and bound.name in known:
        raise ValueError(
            f"`reward_constraints` has '{bound}', which bounds the KL to the reference, and a reward function has "
            "that name too: give the function another name."
        )
