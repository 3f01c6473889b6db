# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The folders of the installation: the package, and the recipes inside it or, in a clone, beside it."""

from pathlib import Path

__all__ = ["PACKAGE", "RECIPES"]

PACKAGE = Path(__file__).resolve().parents[1]
_PLACES = (PACKAGE / "recipes", PACKAGE.parent / "recipes")
RECIPES = next((folder for folder in _PLACES if (folder / "configs").is_dir()), _PLACES[0])
