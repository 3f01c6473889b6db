# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The known names that a misspelt one may stand for."""

import difflib
from collections.abc import Iterable


def suggestion(name: str, known: Iterable[str]) -> str:
    """Answer a misspelt name with the nearest known ones; an empty text where none is near."""
    names = dict.fromkeys(f"`{match}`" for match in difflib.get_close_matches(name, list(known)))
    return f"did you mean {' or '.join(names)}?" if names else ""
