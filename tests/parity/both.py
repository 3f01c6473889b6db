# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The same update by TRL's last PPOTrainer (trl <= 1.12) and by ours: same weights, prompts, completions, rewards."""

import copy
import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from tests.tiny_models import EOS_ID, tiny_causal_lm, tiny_classifier, tiny_tokenizer
from trl_ext import PPOConfig, PPOTrainer
from trl_ext.actor_critic import ActorCritic
from trl_ext.experience.engines import Completions
from trl_ext.objectives import kl_estimate

Ids = list[int]
Complete = Callable[[Ids], Ids]  # a completion for a prompt, as token ids

# TRL samples and learns at `temperature + 1e-7`; ours is asked for that very number.
TRL_TEMPERATURE_OFFSET = 1e-7


class Models(NamedTuple):
    """What TRL's PPO needs: four models with one tokenizer."""

    policy: PreTrainedModel
    reference: PreTrainedModel
    value: PreTrainedModel
    reward: PreTrainedModel


class Update(NamedTuple):
    """What a trainer saw and did.

    Attributes:
        rollout: The last rollout by TRL's names, one row per prompt, in the order of the prompts.
        mask: The completion tokens that the policy learns from, bool, shape (N, C).
        logs: The log line of each rollout.
        policy, value: Weights afterwards; `score.weight` is the value head's.
        steps: Optimizer steps.
    """

    rollout: dict[str, Tensor]
    mask: Tensor
    logs: list[dict[str, float]]
    policy: dict[str, Tensor]
    value: dict[str, Tensor]
    steps: int


def models(arch: str = "llama", dropout: float = 0.0) -> Models:
    """Four tiny models; the policy has moved a little from the reference, so that there is a KL."""
    reference = tiny_causal_lm(arch, dropout=dropout)
    policy = copy.deepcopy(reference)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    value, reward = (tiny_classifier(["score"], arch, layers=2, seed=seed) for seed in (1, 2))
    return Models(policy, reference, value, reward)


def prompts(n: int) -> list[str]:
    """`n` different prompts of different lengths in tokens."""
    return [f"the cat {'sat ' * (i % 4)}{i}" for i in range(n)]


def settings_of(given: dict[str, Any]) -> dict[str, Any]:
    """Settings under which both do the same: one pass over one batch in float32, gradients as they are."""
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "num_ppo_epochs": 1,
        "num_mini_batches": 1,
        "temperature": 1.0,
        "optim": "sgd",
        "learning_rate": 0.1,
        "max_grad_norm": 0.0,  # TRL never clips
        "bf16": False,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    made = defaults | given
    batch = made["per_device_train_batch_size"] * made["gradient_accumulation_steps"]
    return {"total_episodes": batch} | made


def trl_update(
    given: Models,
    texts: list[str],
    complete: Complete,
    folder: Path,
    tokenizer: PreTrainedTokenizerFast | None = None,
    whiten_by_count: bool = True,
    **settings: Any,
) -> Update:
    """Train copies of `given` with TRL's trainer; `complete` stands in for sampling.

    TRL whitens with the variance over n - 1 tokens, we with that over n, as lm-human-preferences does. With
    `whiten_by_count` TRL's own function does so too, and what comes after can be compared.
    """
    from trl.experimental.ppo import ppo_trainer

    policy, reference, value, reward = copy.deepcopy(given)
    tokenizer = tokenizer or tiny_tokenizer()
    prompt_ids = tokenizer(texts)["input_ids"]
    width = max(len(complete(ids)) for ids in prompt_ids)
    own = {"response_length": width, "stop_token": "eos", "num_sample_generations": 0}
    made = ppo_trainer.PPOTrainer(
        args=ppo_trainer.PPOConfig(output_dir=str(folder), **own, **settings_of(settings)),
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=value,
        train_dataset=Dataset.from_dict({"input_ids": prompt_ids}),
    )
    policy.generate = _scripted_generate(policy, complete, tokenizer.pad_token_id, width)
    logs: list[dict[str, float]] = []
    seen: dict[str, Any] = {}

    def log(metrics: dict[str, float]) -> None:
        logs.append(metrics)
        seen.update(inspect.stack()[1].frame.f_locals)  # nothing of it leaves `train()` in another way

    made.log = log
    steps = _count_steps(made.optimizer.optimizer)
    variance = partial(ppo_trainer.masked_var, unbiased=not whiten_by_count)
    with mock.patch.object(ppo_trainer, "masked_var", variance):
        made.train()
    drawn = zip(seen["data"]["input_ids"], seen["data"]["attention_mask"].bool(), strict=True)
    rows = torch.tensor([prompt_ids.index(ids[real].tolist()) for ids, real in drawn]).argsort()
    return Update(
        rollout={n: seen[n][rows] for n in ("scores", "kl", "rewards", "values", "advantages", "returns")},
        mask=~seen["padding_mask"][rows],
        logs=logs,
        policy=_weights(policy),
        value=_weights(value),
        steps=len(steps),
    )


def our_update(
    given: Models,
    texts: list[str],
    complete: Complete,
    folder: Path,
    tokenizer: PreTrainedTokenizerFast | None = None,
    **settings: Any,
) -> Update:
    """The same with our trainer: the value model is the critic, and a reward function calls the reward model."""
    policy, reference, value, reward = copy.deepcopy(given)
    tokenizer = tokenizer or tiny_tokenizer()
    width = max(len(complete(ids)) for ids in tokenizer(texts)["input_ids"])
    settings = settings_of(settings)
    settings["temperature"] += TRL_TEMPERATURE_OFFSET

    @torch.no_grad()
    def score(prompts: list[str], completion_ids: list[Ids], **columns: Any) -> list[float]:
        rows = zip(tokenizer(prompts)["input_ids"], completion_ids, strict=True)
        return [reward(torch.tensor([p + c])).logits.item() for p, c in rows]

    def engine(model: Any, prompt_ids: list[Ids], on_progress: Any = None) -> Completions:
        ids = [complete(row) for row in prompt_ids]
        return Completions(ids, [row[-1] == EOS_ID for row in ids], None)

    actor_critic = ActorCritic(reference, value)
    # What it was built from stays behind as the reference.
    actor_critic.causal_lm.load_state_dict(policy.state_dict())
    actor_critic.value_head.bias.requires_grad_(False)  # the head of a classifier has none
    made = PPOTrainer(
        actor_critic,
        score,
        PPOConfig(output_dir=str(folder), max_completion_length=width, shuffle_dataset=False, **settings),
        train_dataset=Dataset.from_dict({"prompt": texts}),
        processing_class=tokenizer,
    )
    made.generation_engine = engine
    steps = _count_steps(made.create_optimizer())
    made.train()
    rollout, critic = made._rollout, actor_critic.critic
    assert rollout is not None and critic is not None
    return Update(
        rollout={
            "scores": rollout.scores,
            "kl": kl_estimate(rollout.old_logps, rollout.ref_logps, made.args.kl_estimator),
            "values": rollout.old_values,
            "advantages": rollout.advantages,
            "returns": rollout.returns,
        },
        mask=rollout.completion_mask,
        logs=[line for line in made.state.log_history if "policy_loss" in line],
        policy=_weights(actor_critic.causal_lm),
        value=_weights(critic, f"{value.base_model_prefix}.")
        | {"score.weight": actor_critic.value_head.weight.detach().clone()},
        steps=len(steps),
    )


def _weights(model: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    return {f"{prefix}{name}": p.detach().clone() for name, p in model.named_parameters()}


def _count_steps(optimizer: torch.optim.Optimizer) -> list[Any]:
    """A list that grows by one element with every step."""
    steps: list[Any] = []
    optimizer.register_step_post_hook(lambda *_: steps.append(None))
    return steps


def _scripted_generate(model: PreTrainedModel, complete: Complete, pad_id: int, width: int) -> Callable[..., Any]:
    """`model.generate` as TRL calls it, with the completions of `complete` and the model's own scores of them."""

    def generate(
        input_ids: Tensor, attention_mask: Tensor, generation_config: GenerationConfig, **kwargs: Any
    ) -> SimpleNamespace:
        rows = [complete(ids[mask].tolist()) for ids, mask in zip(input_ids, attention_mask.bool(), strict=True)]
        completions = torch.tensor([row + [pad_id] * (width - len(row)) for row in rows])
        sequences = torch.cat([input_ids, completions], dim=1)
        mask = torch.cat([attention_mask.long(), torch.ones_like(completions)], dim=1)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        logits = model(input_ids=sequences, attention_mask=mask, position_ids=positions).logits
        scores = logits[:, input_ids.shape[1] - 1 : -1] / generation_config.temperature
        return SimpleNamespace(sequences=sequences, scores=scores.unbind(1))

    return generate
