# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Types and limits of the fields of a settings dataclass, read from its annotations.

A limit stands in the annotation, `temperature: Annotated[float, Limits(above=0)]`, because
`transformers.HfArgumentParser` hands everything in a field's metadata to argparse.
"""

import dataclasses
import json
import math
import numbers
import os
import reprlib
from collections.abc import Mapping
from enum import Enum
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from trl_ext.messages.suggestion import suggestion

# Fields of TrainingArguments that take more than their annotations say: `fsdp=True`, `debug=None`.
_LOOSELY_ANNOTATED = frozenset({"fsdp", "debug"})
_NOUNS = {bool: "True or False", int: "an integer", float: "a number", str: "a string", dict: "a mapping"}
_PLURALS = {int: "integers", float: "numbers", str: "strings"}
# More choices than this do not fit into a sentence.
_FEW = 8


class Limits(NamedTuple):
    """The range of a number, or of every number in a list. Infinity is outside every range unless `infinite` is set.

    Attributes:
        above: The value is greater than this.
        at_least: The value is this or greater.
        below: The value is less than this.
        at_most: The value is this or less.
        infinite: Whether infinity is allowed.
    """

    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None
    infinite: bool = False

    def contain(self, value: float) -> bool:
        """Return whether `value` is in the range; NaN is in none."""
        return (
            value == value
            and (self.above is None or value > self.above)
            and (self.at_least is None or value >= self.at_least)
            and (self.below is None or value < self.below)
            and (self.at_most is None or value <= self.at_most)
        )

    def __str__(self) -> str:
        """Return the range in words, to follow "must be"."""
        if self.at_least is not None and self.at_most is not None:
            return f"between {self.at_least} and {self.at_most}"
        if self == AT_LEAST_0:
            return "0 or more"
        bounds = {"above": self.above, "at least": self.at_least, "below": self.below, "at most": self.at_most}
        return " and ".join(f"{word} {bound}" for word, bound in bounds.items() if bound is not None) or "a number"


AT_LEAST_0, AT_LEAST_1 = Limits(at_least=0), Limits(at_least=1)

# The usual kinds of settings.
Count = Annotated[int, AT_LEAST_1]
CountOrZero = Annotated[int, AT_LEAST_0]
Positive = Annotated[float, Limits(above=0)]
AboveOne = Annotated[float, Limits(above=1)]
Coefficient = Annotated[float, AT_LEAST_0]
Fraction = Annotated[float, Limits(at_least=0, at_most=1)]


def check_fields(settings: Any, hints: Mapping[str, Any], limits: Mapping[str, Limits]) -> None:
    """Check type and range of every field, and turn NumPy scalars, tuples and paths into numbers, lists and texts.

    Args:
        settings: Instance of a dataclass.
        hints: Annotations of the fields to check, from `typing.get_type_hints(cls, include_extras=True)`.
        limits: Ranges of fields whose annotation is another library's.

    Raises:
        TypeError: for a value of another type than the field's.
        ValueError: for a value out of range, NaN and infinity included.
    """
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        # Annotations of other libraries do not always include the default.
        if field.name in hints and field.name not in _LOOSELY_ANNOTATED and value is not field.default:
            setattr(settings, field.name, checked(field.name, value, hints[field.name], limits.get(field.name)))


def checked(name: str, value: Any, hint: Any, limits: Limits | None = None) -> Any:
    """Return the value as one of the types in `hint`.

    Args:
        name: Name of the setting, for messages.
        value: As the user gave it.
        hint: Annotation: a plain type, `Literal`, an enumeration, a list, `Annotated` with [`Limits`], or a union.
        limits: Range, where the annotation has none.

    Raises:
        TypeError: for a value of another type.
        ValueError: for a value out of range.
    """
    kinds = _kinds(hint)
    types = [kind for kind, _ in kinds]
    if value is None and NoneType in types:
        return None
    if choices := _choices(types):
        return _one_of(name, value, choices)
    for kind, own_limits in kinds:
        if kind in (int, float) and _is_number(value, integral=kind is int):
            return _in_range(name, value, own_limits or limits or Limits(), NoneType in types)
        if kind is bool and isinstance(value, bool):
            return value
        if kind is str and isinstance(value, str | os.PathLike):
            return _text(name, os.fspath(value))
        if get_origin(kind) is Literal and any(value is choice for choice in get_args(kind)):
            return value
        if get_origin(kind) is list and isinstance(value, list | tuple):
            return [_element(name, item, get_args(kind)[0], value) for item in value]
        # A mapping, or an object that another library makes of one.
        if _is_mapping(kind) and not isinstance(value, bool | int | float | str | list | tuple | set | NoneType):
            return value
    raise TypeError(f"`{name}` must be {_described(types)}, got {shown(name, value)}.")


def shown(name: str, value: Any) -> str:
    """Return a value for a message, cut to a readable length; only its type where the value may be a secret."""
    is_secret = any(word in name.lower() for word in ("token", "password", "secret", "key"))
    return f"a value of type {type(value).__name__}" if is_secret else reprlib.repr(value)


def _kinds(hint: Any, limits: Limits | None = None) -> list[tuple[Any, Limits | None]]:
    """Return the alternatives of an annotation, each with its limits."""
    if get_origin(hint) is Annotated:
        base, *extras = get_args(hint)
        return _kinds(base, next((extra for extra in extras if isinstance(extra, Limits)), limits))
    if get_origin(hint) in (Union, UnionType):
        return [kind for part in get_args(hint) for kind in _kinds(part, limits)]
    return [(hint, limits)]


def _choices(types: list[Any]) -> list[Any]:
    """Return the values that an enumeration or a `Literal` allows; none for other annotations."""
    if all(get_origin(kind) is Literal or kind is NoneType for kind in types):
        return [value for kind in types for value in get_args(kind)]
    enums = [kind for kind in types if isinstance(kind, type) and issubclass(kind, Enum)]
    return [member.value for member in enums[0]] if enums else []


def _one_of(name: str, value: Any, choices: list[Any]) -> Any:
    plain = value.value if isinstance(value, Enum) else value
    if plain in choices:
        return value
    if len(choices) <= _FEW:
        raise ValueError(f"`{name}` must be one of {', '.join(map(str, choices))}, got {plain}.")
    help = suggestion(str(plain), choices) or f"known are {', '.join(map(str, choices))}."
    raise ValueError(f"`{name}` has no choice {shown(name, plain)}: {help}")


def _is_number(value: Any, *, integral: bool) -> bool:
    # NumPy registers its scalars with these classes. A bool is an int in Python, but no number for a user.
    return isinstance(value, numbers.Integral if integral else numbers.Real) and not isinstance(value, bool)


def _in_range(name: str, value: Any, limits: Limits, optional: bool) -> int | float:
    try:
        number = int(value) if isinstance(value, numbers.Integral) else float(value)
        infinite = math.isinf(number)
    except OverflowError:  # an int too large for a float
        infinite = True
    if infinite and not limits.infinite:
        raise ValueError(f"`{name}` must be a finite number{' or None' * optional}, got {shown(name, value)}.")
    if not limits.contain(number):
        raise ValueError(f"`{name}` must be {limits}, got {number}.")
    return number


def _text(name: str, text: str) -> str:
    """Return a text; JSON of a mapping must be valid, and stays text because `TrainingArguments` parses it."""
    if text.startswith("{"):
        try:
            json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"`{name}` is not valid JSON: {error}.") from None
    return text


def _element(name: str, item: Any, hint: Any, values: Any) -> Any:
    """Return one entry of a list, checked."""
    try:
        return checked(name, item, hint)
    except TypeError:
        kind = _kinds(hint)[0][0]
        raise TypeError(f"`{name}` must be a list of {_PLURALS.get(kind, kind)}, got {shown(name, values)}.") from None


def _is_mapping(kind: Any) -> bool:
    return kind not in (bool, int, float, str, NoneType) and get_origin(kind) not in (list, Literal)


def _described(types: list[Any]) -> str:
    """Return the allowed types in words."""
    words = []
    for kind in types:
        if get_origin(kind) is list:
            words.append(f"a list of {_PLURALS.get(_kinds(get_args(kind)[0])[0][0], 'values')}")
        elif _is_mapping(kind):
            words.append(_NOUNS.get(get_origin(kind) or kind, f"a {getattr(kind, '__name__', kind)}"))
        elif kind in _NOUNS:
            words.append("its JSON" if kind is str and any(map(_is_mapping, types)) else _NOUNS[kind])
    return " or ".join(words + ["None"] * (NoneType in types))
