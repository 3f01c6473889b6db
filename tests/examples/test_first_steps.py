# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The first example learns visibly on the embedded model, and its folder is one of plain transformers."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


@pytest.mark.timeout(600, func_only=True)  # for a busy machine; the time of the processor is bounded below
def test_the_first_example_learns(
    run_example: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = time.process_time()
    names = run_example("first_steps.py")
    assert time.process_time() - start < 180  # seconds
    trainer = names["trainer"]
    logged = [line for line in trainer.state.log_history if "reward" in line]
    first, late = logged[0], logged[-len(logged) // 3 :]
    assert mean(line["reward"] for line in late) > first["reward"] + first["reward_std"]
    assert mean(line["kl"] for line in late) == pytest.approx(trainer.args.kl_target, rel=0.25)

    # What it prints: a reward before and one after, each with a text for every prompt.
    printed = capsys.readouterr().out
    before, after = (float(number) for number in re.findall(r"^.+: reward (\d\.\d\d)$", printed, flags=re.MULTILINE))
    assert after > before + first["reward_std"]
    assert all(printed.count(prompt) >= 2 for prompt in names["PROMPTS"])

    # Another process, without this library, would load the folder by the same two lines.
    model, tokenizer = (auto.from_pretrained(tmp_path / "out") for auto in (AutoModelForCausalLM, AutoTokenizer))
    ids = tokenizer(names["PROMPTS"][0], return_tensors="pt")
    torch.manual_seed(0)
    text = tokenizer.decode(model.generate(**ids, max_new_tokens=32)[0], skip_special_tokens=True)
    assert text.startswith(names["PROMPTS"][0]) and text.endswith("!")
