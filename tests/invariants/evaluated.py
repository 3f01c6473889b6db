# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""One evaluation of five prompts, four at once, on however many processes it is launched on; writes its metrics.

Arguments: the folder to write into.
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch

from tests import scripted
from trl_ext.files import write_json
from trl_ext.monitoring import RewardHackingMonitor


def by_token(completion_ids: list[list[int]], log_metric: Any, **columns: Any) -> list[list[float]]:
    """Rewards of tokens, and a metric of its own."""
    log_metric("longest/max", max(map(len, completion_ids)))
    log_metric("tokens", sum(map(len, completion_ids)) / len(completion_ids))
    return [[float(token % 5) for token in ids] for ids in completion_ids]


def not_of_all(completions: list[str], prompts: list[str], **columns: Any) -> list[float | None]:
    """Nothing of the prompts whose number is 3."""
    return [None if p.endswith("3") else r for p, r in zip(prompts, scripted.reward(completions), strict=True)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    trainer = scripted.trainer(
        folder,
        reward_funcs=[scripted.reward, by_token, not_of_all],
        reward_constraints=["not_of_all <= 2"],
        missing_eos_penalty=1.0,
        critic_reads_reward_every=1,
        eval_dataset=scripted.prompts(5).add_column("kind", ["a", "b", "a", "b", "a"]),
        eval_reward_funcs=not_of_all,
        compute_metrics=lambda prompts: {"prompts": len(prompts)},
        per_device_eval_batch_size=4 // int(os.environ["WORLD_SIZE"]),
        callbacks=[RewardHackingMonitor(gold=not_of_all, category="kind")],
        policy_ema_decay=0.7,
        ddp_backend="gloo",
    )
    with torch.no_grad():
        trainer.model.value_head.reward_bias.fill_(0.7)
    metrics = trainer.evaluate()
    if trainer.is_world_process_zero():
        write_json(folder / "metrics.json", metrics)
