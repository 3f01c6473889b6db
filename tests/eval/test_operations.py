# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Operations of an update, against torch's own counter of them on the models of the benchmark."""

import importlib.util

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from eval.performance import versus_trl
from eval.performance.operations import Sizes, operations, peak_rate
from trl_ext.actor_critic import trunk

BY_HAND = Sizes(trunk=100, head=50, prompt=6, completion=4, epochs=2, recompute=False)


def test_by_hand():
    # Ten tokens: 1000 weights' uses in the trunk, 500 in TRL's head, 200 in ours.
    same = {"generate": 2 * 1000 + 2 * 200, "score": 2 * 1000}
    theirs = same | {"evaluate": 2 * 2 * 1000 + 2 * 500, "learn": 2 * (6 * 1500 + 6 * 1000)}
    assert operations("trl", lora=False, critic="copy", sizes=BY_HAND) == theirs
    ours = same | {"evaluate": 3 * 2 * 1000 + 2 * 2 * 200, "learn": 2 * (6 * 1200 + 6 * 1000)}
    assert operations("ours", lora=False, critic="copy", sizes=BY_HAND) == ours
    head = same | {"evaluate": 2 * 2 * 1000 + 2 * 2 * 200, "learn": 2 * 4 * 1200}
    assert operations("ours", lora=True, critic="head", sizes=BY_HAND) == head


def test_the_peak_rate_is_that_of_a_product_of_this_size(monkeypatch):
    clock = iter([0.0, 0.0, 0.0, 0.5, 0.9, 1.0, 1.25, 2.0])  # end of trying; then asked, started, done; asked, ...
    monkeypatch.setattr("eval.performance.operations.time.perf_counter", lambda: next(clock))
    assert peak_rate("cpu", torch.float32, size=100) == 2 * 100**3 / 0.25


@pytest.mark.parametrize("trainer", versus_trl.TRAINERS)
@pytest.mark.parametrize("setting", versus_trl.SETTINGS)
@pytest.mark.parametrize("recompute", [True, False])
def test_torch_counts_as_much_in_the_runs_of_the_benchmark(trainer, setting, recompute, monkeypatch):
    if trainer == "trl" and importlib.util.find_spec("trl.experimental.ppo") is None:
        pytest.skip("TRL's PPOTrainer was removed in 1.13: `make test-trl-1.12` has it")
    if recompute:
        monkeypatch.setattr(trunk, "KEPT_LOGITS", 0)
    run = versus_trl.Run(
        trainer, setting, vocab_size=2048, hidden_size=512, layers=1, prompt=20, completion=12, batch=4, micro_batch=2,
        epochs=2, updates=2, logits_chunk_size=16,
    )  # fmt: skip
    with FlopCounterMode(display=False) as counter:
        versus_trl.execute(run, "time")
    counts = counter.get_flop_counts()["Global"]
    products = sum(n for op, n in counts.items() if op in (torch.ops.aten.mm, torch.ops.aten.addmm))
    assert versus_trl.sizes(run).recompute == recompute
    expected = run.updates * sum(versus_trl.counted(run, trainer).values())
    # LoRA's own products are a sixteenth of the trunk's, and sampling leaves out each last token.
    assert products == pytest.approx(expected, rel=0.1)
