# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The loop of one's own does what `PPOTrainer` does, and learns."""

import re
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests import scripted
from tests.tiny_models import tiny_causal_lm, tiny_tokenizer
from trl_ext import ActorCritic
from trl_ext.actor_critic import build_actor_critic

from .conftest import EXAMPLES

COMPLETIONS = 8
PROMPTS = scripted.prompts(COMPLETIONS)["prompt"][:]


@pytest.fixture
def example() -> ModuleType:
    """The example as a module of its own, whose settings a test may change."""
    spec = spec_from_file_location("minimal_ppo", EXAMPLES / "minimal_ppo.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def moved_actor_critic(*, lora: bool, critic: str) -> ActorCritic:
    """An actor-critic whose policy is not the reference any more and whose values are not 0; the same every time."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear") if lora else None
    model = build_actor_critic(tiny_causal_lm(), critic, peft_config=config)
    with torch.no_grad():
        for _, parameter in model.actor_parameters() + model.critic_parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return model.eval()


@pytest.mark.parametrize(("lora", "critic"), [(False, "head"), (True, "head"), (True, "adapter")])
@pytest.mark.parametrize(("epochs", "mini_batches"), [(3, 1), (1, 2)])  # later passes have an order of their own
def test_an_update_is_one_of_the_trainer(
    example: ModuleType, tmp_path: Path, lora: bool, critic: str, epochs: int, mini_batches: int
) -> None:
    trainer = scripted.trainer(
        tmp_path,
        model=moved_actor_critic(lora=lora, critic=critic),
        train_dataset=scripted.prompts(COMPLETIONS),
        total_episodes=COMPLETIONS,
        shuffle_dataset=False,
        num_ppo_epochs=epochs,
        num_mini_batches=mini_batches,
        optim="sgd",
        learning_rate=0.5,
        lr_scheduler_type="constant",
        kl_coef=0.3,
        max_grad_norm=0.5,
        cliprange=0.002,
        vf_coef=1.0,
    )
    trainer.train()

    model = moved_actor_critic(lora=lora, critic=critic)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    example.EPOCHS, example.MINI_BATCHES, example.MICRO_BATCH = epochs, mini_batches, 3
    example.MAX_GRAD_NORM, example.CLIP, example.VALUE_WEIGHT = 0.5, 0.002, 1.0
    optimizer = torch.optim.SGD([p for _, p in model.actor_parameters() + model.critic_parameters()], lr=0.5)
    rollout, texts = example.sample(scripted.ScriptedEngine(), model, tiny_tokenizer(), PROMPTS)
    metrics = example.step(model, optimizer, rollout, scripted.reward(texts), kl_coef=0.3)

    logged = scripted.logs(trainer)[-1]
    assert abs(logged["kl"]) > 1e-3 and logged["clip_fraction"] > 0
    for name in ("reward", "kl", "policy_loss", "value_loss", "clip_fraction", "entropy"):
        assert metrics[name] == pytest.approx(logged[name], abs=1e-5), name
    assert metrics["length"] == pytest.approx(logged["completions/mean_length"])
    theirs = scripted.weights(trainer)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, theirs[name], rtol=0, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")
    moved = {name for name, parameter in model.named_parameters() if (parameter - before[name]).abs().max() > 1e-4}
    assert moved == {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_the_loop_learns_and_saves(
    run_example: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_example("minimal_ppo.py", {"UPDATES = 32": "UPDATES = 12"})
    rewards = [
        float(number) for number in re.findall(r"^ *\d+/12  reward (\S+)", capsys.readouterr().out, re.MULTILINE)
    ]
    assert len(rewards) == 12 and min(rewards[-3:]) > max(rewards[:3]) + 0.3
    model, tokenizer = (auto.from_pretrained(tmp_path / "out") for auto in (AutoModelForCausalLM, AutoTokenizer))
    ids = tokenizer(["The cook behind this soup"] * 20, return_tensors="pt")
    torch.manual_seed(0)
    texts = tokenizer.batch_decode(model.generate(**ids, do_sample=True, max_new_tokens=32), skip_special_tokens=True)
    assert sum(text.endswith("!") for text in texts) > 10
