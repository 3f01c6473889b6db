# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The page "From TRL's PPO": its scripts run as they stand there, the old one on TRL 1.12, the new one on any."""

import ast
import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from datasets import Dataset
from transformers import AutoModelForCausalLM

from tests.launching import python_path
from tests.tiny_models import prompt_dataset, save_tiny, tiny_causal_lm, tiny_classifier

from .pages import ROOT, blocks, quoted, table

PAGE = ROOT / "docs" / "migration-trl-ppo.md"
SCRIPTS = {block.file: block.code for block in blocks(PAGE) if block.file}
HAS_TRL_PPO = find_spec("trl.experimental.ppo") is not None


def arguments(folder: Path) -> list[str]:
    """The options that both scripts take."""
    data = folder / "data"
    data.mkdir()
    for split in ("train", "test"):
        rows = Dataset.from_list([{"prompt": row["prompt"], "label": i} for i, row in enumerate(prompt_dataset(8))])
        rows.to_json(data / f"{split}.jsonl")
    options = {
        "dataset_name": data,
        "dataset_train_split": "train",
        "output_dir": folder / "out",
        "sft_model_path": save_tiny(folder / "lm", tiny_causal_lm()),
        "reward_model_path": save_tiny(folder / "rm", tiny_classifier(["score"], arch="llama")),
        "missing_eos_penalty": 1.0,
        "total_episodes": 8,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "num_mini_batches": 1,
        "num_ppo_epochs": 1,
        "logging_steps": 1,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
    }
    return [f"--{name}={value}" for name, value in options.items()]


def run(script: str, folder: Path, *options: str) -> str:
    (folder / script).write_text(SCRIPTS[script])
    done = subprocess.run(
        [sys.executable, script, *arguments(folder), *options],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": python_path()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    AutoModelForCausalLM.from_pretrained(folder / "out")
    return done.stdout + done.stderr


def logged_names(printed: str) -> set[str]:
    lines = [ast.literal_eval(line) for line in re.findall(r"\{'[^\n]*'episode'[^\n]*\}", printed)]
    return {name for line in lines for name in line}


@pytest.mark.skipif(not HAS_TRL_PPO, reason="TRL's PPOTrainer was removed in 1.13: `make test-trl-1.12` has it")
def test_the_script_before_runs_and_logs_what_the_table_lists(tmp_path: Path) -> None:
    printed = run("ppo_before.py", tmp_path, "--response_length=4", "--stop_token=eos")
    logged = logged_names(printed) - {"epoch"}
    assert {name for row in table("trl-ppo-metrics") for name in quoted(row[0])} == logged


def test_the_script_after_runs_and_logs_what_the_table_lists(tmp_path: Path) -> None:
    run("ppo_after.py", tmp_path, "--max_completion_length=4", f"--critic={tmp_path / 'rm'}", "--save_steps=1")
    assert (tmp_path / "out" / "critic").is_dir()
    state = json.loads((tmp_path / "out" / "checkpoint-2" / "trainer_state.json").read_text(encoding="utf-8"))
    logged = {name for line in state["log_history"] for name in line}
    named = {name for row in table("trl-ppo-metrics") for name in quoted(row[1])}
    assert "kl" in named and named <= logged


def test_lines_of_the_scripts_are_those_that_the_page_says() -> None:
    text = PAGE.read_text(encoding="utf-8")
    lines = {name: len([line for line in code.splitlines() if line.strip()]) for name, code in SCRIPTS.items()}
    assert f"{lines['ppo_before.py']} lines that are not blank" in text
    assert f"after this page: {lines['ppo_after.py']} lines" in text
