# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Operations of an update, against torch's own counter of them on the models of the benchmark."""

import importlib.util

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from eval.performance import versus_trl
from eval.performance.operations import Sizes, operations

BY_HAND = Sizes(trunk=100, head=50, prompt=6, completion=4, epochs=2, chunk=False)


def test_by_hand():
    # Ten tokens: 1000 weights' uses in the trunk, 500 in TRL's head, 200 in ours.
    sampling = 2 * 1000 + 2 * 200
    theirs = sampling + (2 * 3 * 1000 + 2 * 500) + 2 * (6 * 1500 + 6 * 1000)
    assert operations("trl", lora=False, critic="copy", sizes=BY_HAND) == theirs
    ours = sampling + (4 * 2 * 1000 + 2 * 2 * 200) + 2 * (6 * 1200 + 6 * 1000)
    assert operations("ours", lora=False, critic="copy", sizes=BY_HAND) == ours
    head = sampling + (3 * 2 * 1000 + 2 * 2 * 200) + 2 * 4 * 1200
    assert operations("ours", lora=True, critic="head", sizes=BY_HAND) == head


@pytest.mark.parametrize("trainer", versus_trl.TRAINERS)
@pytest.mark.parametrize("setting", versus_trl.SETTINGS)
def test_torch_counts_as_much_in_the_runs_of_the_benchmark(trainer, setting, tmp_path):
    if trainer == "trl" and importlib.util.find_spec("trl.experimental.ppo") is None:
        pytest.skip("TRL's PPOTrainer was removed in 1.13: `make test-trl-1.12` has it")
    run = versus_trl.Run(
        trainer, setting, vocab_size=2048, hidden_size=512, layers=1, prompt=20, completion=12, batch=4, micro_batch=2,
        epochs=2, updates=2, logits_chunk_size=16,
    )  # fmt: skip
    with FlopCounterMode(display=False) as counter:
        versus_trl.execute(run, "time")
    counts = counter.get_flop_counts()["Global"]
    products = sum(n for op, n in counts.items() if op in (torch.ops.aten.mm, torch.ops.aten.addmm))
    expected = run.updates * run.batch * operations(
        trainer, lora=versus_trl.SETTINGS[setting].lora, critic=versus_trl.SETTINGS[setting].critic,
        sizes=versus_trl.sizes(run),
    )  # fmt: skip
    # LoRA's own products are a sixteenth of the trunk's, and sampling leaves out each last token.
    assert products == pytest.approx(expected, rel=0.1)
