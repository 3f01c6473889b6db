# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""TRL's GRPO and RLOO trainers on tiny models, and a controller that writes down what it is fed."""

from pathlib import Path
from typing import Any

import torch
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from tests.tiny_models import EOS_ID, prompt_dataset, save_tiny, tiny_causal_lm, tiny_tokenizer

TRAINERS = {"grpo": (GRPOTrainer, GRPOConfig), "rloo": (RLOOTrainer, RLOOConfig)}


class Recorder:
    """A KL controller that doubles its coefficient at every update, and keeps what it was fed."""

    def __init__(self, coef: float = 0.5):
        self.coef = coef
        self.fed: list[tuple[float, int]] = []

    def update(self, kl: float, episodes: int) -> None:
        self.fed.append((kl, episodes))
        self.coef *= 2

    def state_dict(self) -> dict[str, Any]:
        return {"coef": self.coef, "updates": len(self.fed)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.coef = state["coef"]
        self.fed = [(-1.0, 0)] * state["updates"]


def vowels(completions: list[str], **columns: Any) -> list[float]:
    """Something to learn that differs from text to text."""
    return [float(sum(text.count(v) for v in "aeiou")) for text in completions]


def trainer(kind: str, folder: Path, *, drift: float = 0.0, peft_config: Any = None, **settings: Any) -> Any:
    """A GRPO or RLOO trainer; `drift` is the noise on the reference's weights, so that the KL is not 0."""
    make, configure = TRAINERS[kind]
    torch.manual_seed(0)
    model = tiny_causal_lm("phi")
    model.lm_head.bias.data[EOS_ID] = 4.0  # so that completions differ in length
    name = save_tiny(folder / "model", model)
    defaults: dict[str, Any] = {
        "output_dir": str(folder / "out"),
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "num_generations": 2,
        "max_completion_length": 6,
        "beta": 0.1,
        "learning_rate": 1e-3,
        "max_steps": 2,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
    }
    reward_funcs = settings.pop("reward_funcs", vowels)
    extra = {key: settings.pop(key) for key in ("eval_dataset",) if key in settings}
    dataset = settings.pop("train_dataset", prompt_dataset(64))
    made = make(
        name,
        reward_funcs,
        args=configure(**{**defaults, **settings}),
        train_dataset=dataset,
        processing_class=tiny_tokenizer(),
        peft_config=peft_config,
        **extra,
    )
    if drift:
        with torch.no_grad():
            for parameter in made.ref_model.parameters():
                parameter.add_(drift * torch.randn_like(parameter))
    return made


def training_logs(made: Any) -> list[dict[str, float]]:
    """The log lines of training steps."""
    return [line for line in made.state.log_history if "learning_rate" in line]
