# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The notebook runs from its first cell to its last on the embedded models, and is committed without outputs."""

import os
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from trl_ext.files import read_json_lines, write_json_lines
from trl_ext.worlds import OfflineAssets

from .conftest import EXAMPLES

NOTEBOOK = EXAMPLES / "detoxification.ipynb"


def read() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def printed(cell: Any) -> str:
    return "".join(output.get("text", "") for output in cell.outputs if output.output_type == "stream")


def shown(cell: Any) -> str:
    return "".join(output.data.get("text/html", "") for output in cell.outputs if "data" in output)


def test_it_is_committed_without_outputs() -> None:
    for cell in read().cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None


@pytest.mark.timeout(600, func_only=True)
def test_it_runs_on_the_embedded_models(
    embedded: OfflineAssets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)  # as in an activated environment
    notebook = read()
    (settings,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    # The schema of the data set that the notebook names.
    rows = read_json_lines(Path(embedded.train_prompts))
    prompts = [{"prompt": {"text": row["prompt"], "toxicity": 0.5}} for row in rows]
    write_json_lines(tmp_path / "prompts.jsonl", prompts)
    values = {
        "MODEL": embedded.model,
        "REWARD_MODEL": embedded.toxicity_model,
        "JUDGE_MODEL": embedded.judge_model,
        "DATASET": {"path": "json", "data_files": str(tmp_path / "prompts.jsonl"), "cache_dir": str(tmp_path)},
        "TOTAL_EPISODES": 1024,
        "KL_TARGET": 1.0,
    }
    assert set(re.findall(r"^([A-Z_]+) =", settings.source, flags=re.MULTILINE)) == set(values)
    settings.source = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    NotebookClient(notebook, timeout=500, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()

    cells = {cell.source.split("\n")[0]: cell for cell in notebook.cells if cell.cell_type == "code"}
    plan, report, table = (
        next(cell for cell in cells.values() if text in cell.source)
        for text in ("trl_ext plan", "report_run(", "table.head")
    )
    assert "MiB" in printed(plan) and "rror" not in printed(plan)
    assert "srcdoc" in shown(report) and "Detoxification" in shown(report)
    before, after = (float(number) for number in re.findall(r"not toxic \w+ +(\d\S*)", printed(table)))
    assert after > before + 0.1
    assert "<table" in shown(table)
    assert str(sys.prefix) not in NOTEBOOK.read_text(encoding="utf-8")
