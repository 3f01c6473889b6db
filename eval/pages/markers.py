# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The generated part of a page, between two comments."""


def between(name: str, content: str) -> str:
    """Return generated content between the two markers of part `name`."""
    begin, end = _markers(name)
    return f"{begin}\n{content}\n{end}"


def insert(text: str, name: str, content: str) -> str:
    """Return the text of a page with everything between the markers of part `name` replaced by `content`.

    Raises:
        ValueError: when the page has no such part.
    """
    begin, end = _markers(name)
    start, stop = text.find(begin), text.find(end)
    if start < 0 or stop < start:
        raise ValueError(f"The file has no place for the part '{name}'; add a line {begin} and a line {end}.")
    return text[:start] + between(name, content) + text[stop + len(end) :]


def _markers(name: str) -> tuple[str, str]:
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
