# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""A model that vLLM runs on a CPU, and runs of PPO on it; as a script, a run that kills itself."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, TrainerCallback

from tests import scripted
from tests.tiny_models import EOS_ID, PAD_ID, VOCAB_SIZE
from trl_ext import PPOTrainer

TARGETS = ["q_proj", "v_proj", "down_proj"]


def model(*, tied: bool = False) -> PreTrainedModel:
    """A small Llama with heads of 32, the smallest that vLLM takes on a CPU."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        initializer_range=0.1,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=EOS_ID,
        pad_token_id=PAD_ID,
    )
    return LlamaForCausalLM(config).eval()


def lora() -> LoraConfig:
    """A LoRA configuration whose first step shows."""
    return LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS)


def trainer(folder: Path | str, **settings: Any) -> PPOTrainer:
    """A run of four rollouts that saves after each."""
    defaults: dict[str, Any] = {
        "use_vllm": True,
        "total_episodes": 32,
        "num_ppo_epochs": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "learning_rate": 1e-3,
    }
    return scripted.trainer(folder, scripted=False, model=model(), **{**defaults, **settings})


class Kill(TrainerCallback):
    """Ends the process as a power cut does, after the checkpoint of a step."""

    def __init__(self, step: int):
        self.step = step

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    peft = {"peft_config": lora()} if sys.argv[2] == "lora" else {}
    trainer(sys.argv[1], callbacks=[Kill(2)], **peft).train()
