# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Every trained parameter gets a gradient in every pass, so that DDP need not search for unused ones."""

from typing import Any

import pytest
from datasets import Dataset
from peft import LoraConfig

from tests import scripted

LORA = LoraConfig(target_modules="all-linear")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"critic": "copy"},
        {"peft_config": LORA},
        {"peft_config": LORA, "critic": "adapter"},
        {"peft_config": LORA, "critic": "adapter", "num_critics": 2, "per_device_train_batch_size": 1},
        {"critic_reads_reward_every": 1},
    ],
    ids=["full", "copy", "lora", "adapter", "two critics", "reads rewards"],
)
def test_every_trained_parameter_gets_a_gradient(tmp_path: Any, settings: dict[str, Any]) -> None:
    made = scripted.trainer(tmp_path, num_ppo_epochs=1, total_episodes=8, **settings)
    trained = {name: p for name, p in made.model.named_parameters() if p.requires_grad}
    reached = set()
    for name, parameter in trained.items():
        parameter.register_hook(lambda gradient, name=name: reached.add(name))
    made.train()
    assert reached == set(trained)
    assert made.accelerator.ddp_handler.find_unused_parameters is False


def test_ddp_searches_where_the_critic_has_no_part_in_a_loss(tmp_path: Any) -> None:
    texts = Dataset.from_dict({"text": ["the cat sat"] * 8})
    made = scripted.trainer(tmp_path, ptx_coef=0.1, ptx_dataset=texts)
    assert made.accelerator.ddp_handler.find_unused_parameters is True
    chosen = scripted.trainer(tmp_path, ddp_find_unused_parameters=True)
    assert chosen.accelerator.ddp_handler.find_unused_parameters is True
