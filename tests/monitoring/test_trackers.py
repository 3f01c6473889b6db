# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Scalars and sample tables of a run, read back from the files of Trackio and TensorBoard, without any network."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.launching import python_path

pytest.importorskip("trackio")
pytest.importorskip("tensorboard")

SCRIPT = Path(__file__).with_name("run_with_trackers.py")
ROOT = SCRIPT.parents[2]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("tracked")
    for job in ("train", "read"):
        command = [sys.executable, str(SCRIPT), job, str(folder)]
        done = subprocess.run(command, cwd=ROOT, env=_environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in ("history", "trackio", "tensorboard")}


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": python_path(), "HF_HUB_OFFLINE": "1"}


def scalars_of(history: list[dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """The numbers of a log as both loggers name them."""
    found: dict[str, list[tuple[int, float]]] = {}
    for entry in history:
        for name, value in entry.items():
            if name == "step" or name.startswith(("train_", "total_")):
                continue
            tag = f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"
            found.setdefault(tag, []).append((entry["step"], value))
    return found


def test_every_scalar_is_in_the_files_of_tensorboard(files: dict[str, Any]):
    scalars = files["tensorboard"]["scalars"]
    expected = scalars_of(files["history"])
    assert {"train/reward", "train/kl", "train/episodes", "train/rewards/reward/mean", "eval/reward"} <= expected.keys()
    for tag, points in expected.items():
        stored = dict(map(tuple, scalars[tag]))
        assert stored == pytest.approx(dict(points), rel=1e-5, abs=1e-7), tag


def test_every_scalar_is_in_the_files_of_trackio(files: dict[str, Any]):
    stored: dict[str, list[tuple[int, float]]] = {}
    for row in files["trackio"]:
        for name, value in row.items():
            stored.setdefault(name, []).append((row.get("train/global_step"), value))
    for tag, points in scalars_of(files["history"]).items():
        assert dict(stored[tag]) == pytest.approx(dict(points), nan_ok=True), tag


def test_the_sample_tables_are_in_the_files_of_trackio(files: dict[str, Any]):
    tables = {row["train/global_step"]: row["completions"] for row in files["trackio"] if "completions" in row}
    assert sorted(tables) == [1, 2, 3, 4]
    for step, table in tables.items():
        assert table["_type"] == "trackio.table" and len(table["_value"]) == 3
        for row in table["_value"]:
            assert row.keys() == {"step", "prompt", "completion", "reward", "advantage"} and row["step"] < step
            assert row["prompt"].startswith("the cat") and isinstance(row["reward"], float)


def test_the_sample_tables_are_in_the_files_of_tensorboard(files: dict[str, Any]):
    texts = dict(map(tuple, files["tensorboard"]["texts"]))
    assert sorted(texts) == [1, 2, 3, 4]
    for text in texts.values():
        lines = text.splitlines()
        assert lines[0] == "| step | prompt | completion | reward | advantage |" and len(lines) == 5
        assert all("the cat" in line for line in lines[2:])
