# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""PPO as a loop of one's own, out of the parts that `PPOTrainer` is made of.

For those who miss `step()` of TRL's first trainer. Its loop and this one:

    responses = ppo_trainer.generate(queries)              rollout, completions = sample(...)
    rewards = ...                                          scores = ... (any code; here `enthusiasm`)
    stats = ppo_trainer.step(queries, responses, rewards)  metrics = step(model, optimizer, rollout, scores, kl_coef)

An update here equals an update of `PPOTrainer` with the same settings. `PPOTrainer` has besides: several processes,
mixed precision, resuming, evaluation, loggers, conversations, rewards that fail and are called again, smaller batches
when memory runs out, and checks of every input.
"""

import random
from collections.abc import Sequence

import torch
from peft import LoraConfig
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from trl_ext import ActorCritic, AdaptiveKL
from trl_ext.actor_critic import build_actor_critic
from trl_ext.experience.engines import TransformersEngine, eos_token_ids
from trl_ext.experience.rollout import Rollout, collate, forward
from trl_ext.objectives import gae, kl_estimate, masked_sum, policy_loss, token_rewards, value_loss, whiten

MODEL = "Qwen/Qwen2.5-0.5B-Instruct"
PROMPTS = ["What a match, everyone", "The cook behind this soup", "Happy birthday to my teacher,", "Most people I know"]
OUTPUT = "out"

UPDATES = 32
ROLLOUT = 64  # completions in a rollout
EPOCHS = 4  # passes over a rollout
MINI_BATCHES = 2  # optimizer steps in a pass
MICRO_BATCH = 32  # completions in a forward pass: lower it where memory runs out, the result stays the same
MAX_COMPLETION = 32  # tokens
LEARNING_RATE = 2e-4
MAX_GRAD_NORM = 1.0
CLIP, VALUE_CLIP, VALUE_WEIGHT = 0.2, 0.2, 0.1
GAMMA, LAMBDA = 1.0, 0.95
KL_TARGET, KL_COEF = 1.5, 0.05  # nats per completion; the first coefficient


def enthusiasm(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """Return the share of each completion's sentences that end with an exclamation mark."""
    return [text.count("!") / max(1, sum(map(text.count, ".!?"))) for text in completions]


def sample(
    engine: TransformersEngine, model: ActorCritic, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]
) -> tuple[Rollout, list[str]]:
    """Sample a completion for each prompt.

    Returns:
        The padded tokens with their masks, and the completions as texts.
    """
    prompt_ids = [tokenizer(prompt).input_ids for prompt in prompts]
    sampled = engine(model.causal_lm, prompt_ids)
    rollout = collate(
        prompt_ids, sampled.ids, sampled.terminated, pad_token_id=tokenizer.pad_token_id, device=model.device
    )
    return rollout, tokenizer.batch_decode(sampled.ids, skip_special_tokens=True)


def step(
    model: ActorCritic, optimizer: torch.optim.Optimizer, rollout: Rollout, scores: Sequence[float], kl_coef: float
) -> dict[str, float]:
    """Learn from a rollout and its scores, one number for each completion, and return what to log."""
    rollout.scores = torch.tensor(scores, device=model.device)
    look_back(model, rollout)
    add_advantages(rollout, kl_coef)
    metrics = learn(model, optimizer, rollout)
    lengths = rollout.completion_mask.sum(dim=1).float()
    return {
        "reward": float(rollout.scores.mean()),
        "kl": float(masked_sum(rollout.kl, rollout.completion_mask, dim=1).mean()),  # nats per completion
        "length": float(lengths.mean()),
        **metrics,
    }


@torch.no_grad()
def look_back(model: ActorCritic, rollout: Rollout) -> None:
    """Fill in log-probabilities and values before the update, and log-probabilities and KL of the reference.

    They come from the same forward pass that learning makes, and not from sampling, so that the ratio starts at 1.
    """
    for rows in rollout.rows.split(MICRO_BATCH):
        batch = rollout.select(rows)  # without the columns that are padding in all of its rows
        columns = slice(batch.completion_length)
        now = forward(model, batch, role="with_reference")
        rollout.old_logps[rows, columns], rollout.ref_logps[rows, columns] = now.logps, now.ref_logps
        rollout.old_values[rows, columns] = now.values[:, :-1] * batch.completion_mask
        rollout.kl[rows, columns] = now.kl


def add_advantages(rollout: Rollout, kl_coef: float) -> None:
    """Turn scores into advantages and returns: the KL penalty is part of the reward of every token."""
    mask = rollout.completion_mask
    kl = kl_estimate(rollout.old_logps, rollout.ref_logps)
    rewards = token_rewards(rollout.scores, kl, kl_coef, mask)
    advantages = gae(rewards, rollout.old_values, mask, gamma=GAMMA, lam=LAMBDA)
    rollout.returns = rollout.old_values + advantages
    rollout.advantages = whiten(advantages, mask)


def learn(model: ActorCritic, optimizer: torch.optim.Optimizer, rollout: Rollout) -> dict[str, float]:
    """Take `EPOCHS * MINI_BATCHES` optimizer steps on a rollout, and return means over the last of them."""
    metrics: dict[str, float] = {}
    for epoch in range(EPOCHS):
        order = torch.randperm(len(rollout), device=model.device) if epoch > 0 else rollout.rows
        for minibatch in order.chunk(MINI_BATCHES):
            # Every token of the minibatch weighs the same, however it is cut into micro-batches.
            tokens = rollout.completion_mask[minibatch].sum()
            losses = [add_gradients(model, rollout.select(rows), tokens) for rows in minibatch.split(MICRO_BATCH)]
            torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
            optimizer.step()
            optimizer.zero_grad()
            names = ("policy_loss", "value_loss", "clip_fraction", "entropy")
            metrics = dict(zip(names, torch.stack(losses).sum(dim=0).tolist(), strict=True))
    return metrics


def add_gradients(model: ActorCritic, batch: Rollout, tokens: Tensor) -> Tensor:
    """Add the gradients of a micro-batch of a minibatch with this many tokens.

    Returns:
        Its share of policy loss, value loss, fraction of clipped tokens and entropy, shape (4,).
    """
    out = forward(model, batch, entropy="value")
    policy, _, clipped = policy_loss(out.logps, batch.old_logps, batch.advantages, cliprange=CLIP)
    value, _ = value_loss(out.values[:, :-1], batch.old_values, batch.returns, cliprange_value=VALUE_CLIP)
    shares = [
        masked_sum(of_tokens, batch.completion_mask) / tokens for of_tokens in (policy, value, clipped, out.entropy)
    ]
    (shares[0] + VALUE_WEIGHT * shares[1]).backward()
    return torch.stack(shares).detach()


def main() -> None:
    """Train, showing a line for each update, and save the policy for plain transformers."""
    torch.manual_seed(0)
    random.seed(0)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # harmless: masks come from lengths and never from ids
    # Policy, critic and reference share one base: the reference is the base without its adapter. Without `peft_config`
    # all weights are trained, and the reference is a frozen copy.
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build_actor_critic(MODEL, "head", peft_config=LoraConfig(r=16, lora_alpha=32), device=device)
    model.eval()  # dropout stays off while learning too
    trained = [parameter for _, parameter in model.actor_parameters() + model.critic_parameters()]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0)
    engine = TransformersEngine(
        tokenizer, eos_token_ids=eos_token_ids(model.causal_lm, tokenizer), max_new_tokens=MAX_COMPLETION
    )
    controller = AdaptiveKL(target=KL_TARGET, init_coef=KL_COEF)

    for update in range(UPDATES):
        prompts = random.choices(PROMPTS, k=ROLLOUT)
        rollout, completions = sample(engine, model, tokenizer, prompts)
        metrics = step(model, optimizer, rollout, enthusiasm(prompts, completions), controller.coef)
        controller.update(metrics["kl"], episodes=ROLLOUT)
        shown = "  ".join(f"{name} {value:.3f}" for name, value in (metrics | {"kl_coef": controller.coef}).items())
        print(f"{update + 1:3}/{UPDATES}  {shown}")

    model.save_pretrained(OUTPUT)
    tokenizer.save_pretrained(OUTPUT)


if __name__ == "__main__":
    main()
