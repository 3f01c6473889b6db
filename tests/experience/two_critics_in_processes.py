# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Two updates with two critics, on however many processes it is launched on; writes the weights."""

import os
import sys
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors.torch import save_file

from tests import scripted

if __name__ == "__main__":
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    trainer = scripted.trainer(
        out,
        critic="adapter",
        num_critics=2,
        critic_agreement_share=0.4,
        peft_config=LoraConfig(r=4, target_modules="all-linear"),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=4 // int(os.environ["WORLD_SIZE"]),
        total_episodes=32,
        optim="sgd",
        learning_rate=0.1,
        ddp_backend="gloo",
    )
    trainer.train()
    if trainer.is_world_process_zero():
        save_file(scripted.weights(trainer), out / "weights.safetensors")
