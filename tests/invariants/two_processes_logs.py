# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Two rollouts on however many processes it is launched on, with a reward that logs; writes each process's log."""

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from tests import scripted
from trl_ext import AdaptiveKL

RANK, WORLD = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def logs(prompts: list[str], completions: list[str], log_metric: Any, **columns: Any) -> list[float | None]:
    """Logs under the trainer's names, a number for each process, and one that only the last process logs."""
    for name in ("kl", "reward", "loss", "kl_coef", "time/score"):
        log_metric(name, 50.0 + RANK)
    log_metric("mine/seen", 10.0 + RANK)
    log_metric("mine/max", 10.0 + RANK)
    if RANK == WORLD - 1:
        log_metric("mine/rare", 3.0)
    pairs = zip(prompts, completions, strict=True)
    return [None if prompt.endswith(("1", "5")) else float(len(set(c))) for prompt, c in pairs]


if __name__ == "__main__":
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    trainer = scripted.trainer(
        out,
        reward_funcs=logs,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=4 // WORLD,
        total_episodes=32,
        kl_controller=AdaptiveKL(target=0.5, init_coef=0.1, horizon=100),
        ddp_backend="gloo",
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train()
    messages = sorted({str(w.message) for w in caught if "log_metric" in str(w.message)})
    left = {"log": scripted.logs(trainer), "coef": trainer.kl_controller.coef, "warnings": messages}
    (out / f"left_{RANK}.json").write_text(json.dumps(left))
