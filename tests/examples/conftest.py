# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The embedded models, and a way to run an example on them in a folder of its own."""

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trl_ext.worlds import OfflineAssets, prepare

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="session")
def embedded() -> OfflineAssets:
    """The models of `make demo`, from the same cache; made there in about a minute where they are missing."""
    return prepare()


@pytest.fixture
def run_example(
    embedded: OfflineAssets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Any]]:
    """Run a script of `examples/` as `python` does, in an empty folder, and return its variables."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, changes: dict[str, str] | None = None) -> dict[str, Any]:
        """The embedded model's folder stands for the name on the Hub; `changes` are further texts to replace."""
        source = (EXAMPLES / name).read_text(encoding="utf-8")
        for written, replacement in {"Qwen/Qwen2.5-0.5B-Instruct": embedded.model, **(changes or {})}.items():
            assert source.count(written) == 1, f"{name} no longer has {written} once"
            source = source.replace(written, replacement)
        (tmp_path / name).write_text(source, encoding="utf-8")
        return runpy.run_path(str(tmp_path / name), run_name="__main__")

    return run
