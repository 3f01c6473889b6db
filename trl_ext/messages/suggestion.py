# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Suggestions for misspelt names."""

import difflib
from collections.abc import Iterable


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return a question with the known names most similar to `name`; an empty text where none is similar."""
    names = dict.fromkeys(f"`{match}`" for match in difflib.get_close_matches(name, list(known)))
    return f"did you mean {' or '.join(names)}?" if names else ""
