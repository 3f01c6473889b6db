# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Tiny models in the place of those that pages name."""

import re
from collections.abc import Callable
from pathlib import Path

from tests.tiny_models import save_tiny, tiny_causal_lm, tiny_classifier

# Names that a page may use, longest first where one begins another. A name of a folder works as well.
MODELS: dict[str, Callable[[Path], str]] = {
    "Qwen/Qwen2.5-0.5B-Instruct": lambda folder: save_tiny(folder, tiny_causal_lm("qwen2")),
    "unitary/toxic-bert": lambda folder: save_tiny(folder, tiny_classifier()),
}


class LocalNames:
    """Folders for the names in a text, made when they are first asked for.

    Args:
        folder: Where they are kept.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def in_place(self, text: str) -> str:
        """The text with a folder in the place of every name."""
        for name, make in MODELS.items():
            if name in text:
                text = text.replace(name, self._folder(name, make))
        return text

    def _folder(self, name: str, make: Callable[[Path], str]) -> str:
        folder = self.folder / re.sub(r"\W", "-", name)
        if not folder.exists():
            make(folder)
        return str(folder)
