# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""A bound on a measured mean, written as text: "toxicity <= 0.05"."""

import math
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from trl_ext.messages.suggestion import suggestion

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
                f"`reward_constraints` has {text!r:.100}: write the name of a reward function, <= or >=, and a number, "
                "such as 'toxicity <= 0.05'."
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


def check_names(constraints: Iterable[Constraint], known: Sequence[str]) -> None:
    """Check that every constraint is of a reward function.

    Raises:
        ValueError: one is not; with the similar names.
    """
    for constraint in constraints:
        if constraint.name in known:
            continue
        if constraint.name == "kl" and not constraint.is_lower:
            raise ValueError(
                f"`reward_constraints` has '{constraint}', and the KL is no reward function: hold it with "
                f"`kl_controller='pid'` and `kl_target={constraint.bound:g}`."
            )
        names = ", ".join(f"'{name}'" for name in known)
        raise ValueError(
            f"`reward_constraints` has '{constraint}', but there is no reward function '{constraint.name}': "
            f"{suggestion(constraint.name, known) or f'the functions are {names}.'}"
        )
