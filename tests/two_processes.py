# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""One process of a run of two in which process 1 fails. Started with torchrun by `test_processes.py`."""

import os
import sys
import threading
import time
from pathlib import Path

from transformers import TrainerCallback

from tests import scripted

folder, mode = Path(sys.argv[1]), sys.argv[2]
second = os.environ["RANK"] == "1"
calls = 0


class Fails(TrainerCallback):
    """A bug in a callback of one process, which nothing here knows of."""

    def on_step_end(self, args, state, control, **kwargs):
        if second and mode == "callback" and state.global_step == 2:
            (folder / "failed").write_text(str(time.time()))
            raise ZeroDivisionError("a bug in the callback")


def reward(completions, **kwargs):
    """Breaks its contract in the third rollout of process 1, where a thread of it goes on for ever."""
    global calls
    calls += 1
    if second and calls == 3 and mode == "thread":
        threading.Thread(target=time.sleep, args=(3600,)).start()
        (folder / "failed").write_text(str(time.time()))
        return [0.0] * (len(completions) + 1)
    return scripted.reward(completions)


made = scripted.trainer(
    folder,
    reward_funcs=reward,
    callbacks=[Fails()],
    per_device_train_batch_size=2,
    total_episodes=64,
    save_strategy="steps",
    save_steps=1,
    reward_retries=0,
)
made.train()
print(f"process {os.environ['RANK']} ended at step {made.state.global_step}", flush=True)
