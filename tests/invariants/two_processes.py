# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""One update of 16 completions on however many processes it is launched on; writes the weights.

Arguments: the folder to write into, and `kl_estimator`.
"""

import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests import scripted

if __name__ == "__main__":
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    world = int(os.environ["WORLD_SIZE"])
    trainer = scripted.trainer(
        out,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=4 // world,
        whiten_rewards=True,
        kl_estimator=sys.argv[2],
        total_episodes=32,
        optim="sgd",
        learning_rate=0.1,
        max_grad_norm=0.5,
        ddp_backend="gloo",
        policy_ema_decay=0.7,
    )
    trainer.train()
    if trainer.is_world_process_zero():
        weights = scripted.weights(trainer)
        with trainer.policy_average.in_place():
            weights |= {f"average of {name}": value for name, value in scripted.weights(trainer).items()}
        save_file(weights, out / "weights.safetensors")
