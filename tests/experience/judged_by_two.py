# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""One process of a run of two whose evaluations have judges. Started with torchrun by `test_judging.py`."""

import os
import sys
from pathlib import Path

from tests import scripted
from trl_ext.files import write_json

folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
calls: list[list[int]] = []


def number(number, **columns):
    """Score a completion by the number of its row; nothing of row 3, and a failure at first in process 1."""
    if rank == 1 and not calls:
        calls.append([])
        raise ConnectionError("busy")
    return [None if i == 3 else float(i) for i in number]


def compute_metrics(prompts, completions, number):
    calls.append(number)
    if folder.name == "broken":
        raise ZeroDivisionError("a bug in compute_metrics")
    return {"rows": len(completions), "rank": rank}


made = scripted.trainer(
    folder,
    eval_dataset={name: scripted.prompts(5).add_column("number", list(range(5))) for name in ("a", "b")},
    eval_reward_funcs=number,
    compute_metrics=compute_metrics,
    per_device_train_batch_size=2,
    per_device_eval_batch_size=2,
    eval_strategy="steps",
    eval_steps=2,
    save_strategy="steps",
    save_steps=2,
    load_best_model_at_end=True,
    metric_for_best_model="eval_b_judge/number/mean",
    reward_backoff=0.0,
)
made.train()
history = [line for line in made.state.log_history if "eval_a_rows" in line or "eval_b_rows" in line]
write_json(folder / f"process_{rank}.json", {"history": history, "calls": calls, "best": made.state.best_metric})
