# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Values of options: the same reading and the same refusals for YAML files and the command line."""

import difflib
import json
import math
import re
import types
from argparse import Action, ArgumentTypeError
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import yaml

from trl_ext.checks.fields import shown

__all__ = ["kind_of", "parse_node", "parse_text", "read_mapping"]

_YAML = "tag:yaml.org,2002:"
_KINDS = ("map", "seq", "str", "int", "float", "bool", "null", "timestamp", "merge", "value")
_PLAIN_TAGS = {_YAML + kind for kind in _KINDS}
# Mappings that may also be given as the path of a file.
_MAPPING_OR_FILE = ("accelerator_config", "deepspeed", "fsdp_config")


def read_mapping(path: Path) -> dict[str, yaml.Node]:
    """Return the keys of a YAML file with their values as nodes, which keep how a value is written.

    Raises:
        ValueError: if the file cannot be read, or is anything but one mapping of different keys to plain values.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"The file '{path}' is not UTF-8 text (byte {error.start + 1}); save it as UTF-8.") from None
    except OSError as error:
        raise ValueError(f"The file '{path}' cannot be read ({error.strerror}); give an existing YAML file.") from None
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if root is None:
            raise ValueError(f"The file '{path}' is empty; write one `option: value` a line.")
        for node in _walk(root):
            _check_node(node, path)
        if not isinstance(root, yaml.MappingNode):
            raise ValueError(f"The file '{path}' must contain a YAML mapping of options to values, `option: value`.")
        loader.flatten_mapping(root)
    except yaml.MarkedYAMLError as error:
        raise ValueError(f"The file '{path}' is not valid YAML{_explained(error)}.") from None
    except yaml.reader.ReaderError as error:
        raise ValueError(f"The file '{path}' is not text: character {error.position + 1} is not printable.") from None
    return {key.value: value for key, value in root.value}


def _explained(error: yaml.MarkedYAMLError) -> str:
    mark, problem = error.problem_mark or error.context_mark, str(error.problem or error.context)
    if "another document" in problem:
        problem = "a second document begins here; keep one"
    if "'\\t'" in problem:
        problem = "a tab stands here; indent with spaces"
    return f", line {mark.line + 1}: {problem}" if mark is not None else f": {problem}"


def _walk(node: yaml.Node, seen: frozenset[int] = frozenset()) -> Iterator[yaml.Node]:
    if id(node) in seen:
        raise yaml.composer.ComposerError(None, None, "an alias refers to itself", node.start_mark)
    yield node
    children: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        children = node.value
    elif isinstance(node, yaml.MappingNode):
        children = [part for pair in node.value for part in pair]
    for child in children:
        yield from _walk(child, seen | {id(node)})


def _check_node(node: yaml.Node, path: Path) -> None:
    line = node.start_mark.line + 1
    if node.tag not in _PLAIN_TAGS:
        tag = node.tag.replace(_YAML, "!!")
        raise ValueError(f"The file '{path}' has the tag {tag} in line {line}; only plain values are read.")
    if not isinstance(node, yaml.MappingNode):
        return
    if any(not isinstance(key, yaml.ScalarNode) for key, _ in node.value):
        raise ValueError(f"The file '{path}' has a key in line {line} that is no text.")
    twice = [key for key, times in Counter(key.value for key, _ in node.value).items() if times > 1]
    if twice:
        last = max(key.start_mark.line + 1 for key, _ in node.value if key.value == twice[0])
        raise ValueError(f"The file '{path}' has `{twice[0]}` twice, the last time in line {last}; keep one of them.")


def parse_node(node: yaml.Node, action: Action, hint: Any, label: str) -> Any:
    """Return the value of an option from a YAML file.

    Args:
        node: The value as it is written.
        action: The option.
        hint: Type of the dataclass's field.
        label: Name of the value in a message.

    Raises:
        ValueError: if the command line would not take it either.
    """
    kinds = _kinds(hint)
    if isinstance(node, yaml.ScalarNode):
        if node.tag == _YAML + "null" and node.style is None:
            if type(None) in kinds:
                return None
            raise ValueError(f"{label} has no value; it must be {_expected(action, hint)}.")
        value = parse_text(_text(node), action, hint, label)
        return [value] if action.nargs == "+" else value
    if isinstance(node, yaml.SequenceNode) and list in kinds:
        return [_element(child, action, hint, label) for child in node.value]
    if isinstance(node, yaml.MappingNode) and dict in kinds:
        return yaml.SafeLoader("").construct_document(node)
    given = "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"
    raise ValueError(f"{label} must be {_expected(action, hint)}, got {given}.")


def _element(node: yaml.Node, action: Action, hint: Any, label: str) -> Any:
    if not isinstance(node, yaml.ScalarNode) or (node.tag == _YAML + "null" and node.style is None):
        given = "an empty element" if isinstance(node, yaml.ScalarNode) else "a list or mapping in it"
        raise ValueError(f"{label} must be {_expected(action, hint)}, got {given}.")
    return parse_text(_text(node), action, hint, label)


def _text(node: yaml.ScalarNode) -> str:
    """Return the text of a node, with infinity in Python's spelling."""
    return re.sub(r"^([-+]?)\.(inf|nan)$", r"\1\2", node.value, flags=re.IGNORECASE)


def parse_text(text: str, action: Action, hint: Any, label: str) -> Any:
    """Return the value of an option from its text.

    Raises:
        ValueError: if it is no value of that option.
    """
    kinds = _kinds(hint)
    try:
        # argparse would call `dict` with the text of a field that is nothing but a mapping
        value = text if dict in kinds or not callable(action.type) else action.type(text)
    except (ValueError, TypeError, ArgumentTypeError):
        raise ValueError(f"{label} must be {_expected(action, hint)}, got {shown(action.dest, text)}.") from None
    if isinstance(value, float) and math.isnan(value):
        raise ValueError(f"{label} must be {_expected(action, hint)}, got {shown(action.dest, text)}.")
    if action.choices is not None and value not in action.choices:
        close = difflib.get_close_matches(text, [str(choice) for choice in action.choices], n=1)
        advice = f"; did you mean '{close[0]}'?" if close else "."
        raise ValueError(f"{label} must be {_expected(action, hint)}, got {shown(action.dest, text)}{advice}")
    if dict in kinds and (text.startswith("{") or action.dest not in _MAPPING_OR_FILE):
        # the text may hold a token, so it is not repeated
        return _mapping(text, f"{label} must be {_expected(action, hint)}, got another text.")
    return value


def _mapping(text: str, message: str) -> dict[str, Any] | None:
    try:
        value = None if text.lower() in ("none", "null") else json.loads(text)
    except ValueError:
        value = text
    if not isinstance(value, dict | None):
        raise ValueError(message)
    return value


def _kinds(hint: Any) -> list[Any]:
    """Return the types of a field: the members of a union, without the types of a container's elements."""
    members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return [get_origin(member) or member for member in members]


def kind_of(action: Action, hint: Any) -> str:
    """Return the kind of an option's values: "int", "float", "bool", "json" or "text"."""
    kinds = _kinds(hint)
    names = {dict: "json", bool: "bool", int: "int", float: "float"}
    if action.nargs == "+":
        return names.get(action.type, "text")  # type: ignore[call-overload]
    return next((name for kind, name in names.items() if kind in kinds), "text")


def _expected(action: Action, hint: Any) -> str:
    kinds = _kinds(hint)
    if action.choices is not None:
        choices = [str(choice) for choice in action.choices]
        return f"one of {', '.join(choices[:12])}" + (", ..." if len(choices) > 12 else "")
    if dict in kinds:
        return "a mapping (on the command line JSON, '{\"name\": value}')"
    if action.nargs == "+":
        names = {float: "numbers", int: "whole numbers"}
        return f"a list of {names.get(action.type, 'texts')}"  # type: ignore[call-overload]
    names = {bool: "true or false", int: "a whole number", float: "a number"}
    return next((names[kind] for kind in names if kind in kinds), "a text")
