# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Results that are written whole."""

import os
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Write a text file, UTF-8, in one step: a process killed meanwhile leaves the file that was there before."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
