# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Where ours departs from TRL's last PPO on purpose: what TRL does, and what ours does, in the same situation."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.parity import both
from tests.tiny_models import EOS_ID, tiny_tokenizer

pytest.importorskip("trl.experimental.ppo", reason="TRL has a PPOTrainer up to 1.12 only")
pytestmark = pytest.mark.filterwarnings("ignore:.*degrees of freedom")


def ending(prompt_ids: both.Ids) -> both.Ids:
    """Two to five tokens, the last of them EOS; the lengths differ from prompt to prompt."""
    seed = sum(prompt_ids)
    return [*(10 + (seed * (i + 3) + i * i) % 90 for i in range(1 + len(prompt_ids) % 4)), EOS_ID]


def lengths(texts: list[str]) -> list[int]:
    """Tokens of the completions of `ending`, their EOS included."""
    return [len(ending(ids)) for ids in tiny_tokenizer()(texts)["input_ids"]]


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Euclidean distance between two sets of weights."""
    return math.sqrt(sum(((one[name] - other[name]) ** 2).sum().item() for name in other))


def before(given: both.Models) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The weights of policy and value model at the start."""
    return dict(given.policy.named_parameters()), dict(given.value.named_parameters())


def test_the_score_belongs_to_the_eos_and_trl_gives_it_to_the_padding_behind(tmp_path: Path) -> None:
    given, texts = both.models(), both.prompts(8)
    torch.nn.init.zeros_(given.value.score.weight)
    # Without values, KL penalty and lambda, what a token returns is its reward.
    settings: dict[str, Any] = {"kl_coef": 0.0, "lam": 0.0, "vf_coef": 0.0}
    theirs = both.trl_update(given, texts, ending, tmp_path / "theirs", **settings)
    ours = both.our_update(given, texts, ending, tmp_path / "ours", **settings)
    width = max(lengths(texts))
    last = [length - 1 for length in lengths(texts)]
    assert ours.rollout["returns"].ne(0).nonzero().tolist() == [[row, t] for row, t in enumerate(last)]
    # At full length there is no slot behind the EOS, and TRL is right.
    behind = [t + 1 if t + 1 < width else t for t in last]
    assert theirs.rollout["returns"].ne(0).nonzero().tolist() == [[row, t] for row, t in enumerate(behind)]
    # The policy's loss does not cover that slot: what ended early has learned nothing.
    short = torch.tensor([t + 1 < width for t in last])
    assert short.any() and not short.all()
    torch.testing.assert_close(ours.rollout["scores"], theirs.rollout["scores"], rtol=0, atol=1e-5)
    rewarded = theirs.rollout["returns"].ne(0) & theirs.mask
    assert rewarded.any(dim=1).tolist() == (~short).tolist()
    assert (ours.rollout["returns"].ne(0) & ours.mask).any(dim=1).all()


def test_the_eos_is_learned_also_where_it_is_the_pad_token(tmp_path: Path) -> None:
    given, texts = both.models(), both.prompts(8)
    tokenizer = tiny_tokenizer(pad_is_eos=True)
    theirs = both.trl_update(given, texts, ending, tmp_path / "theirs", tokenizer=tokenizer)
    ours = both.our_update(given, texts, ending, tmp_path / "ours", tokenizer=tokenizer)
    assert ours.mask.sum(1).tolist() == lengths(texts)
    assert theirs.mask.sum(1).tolist() == [length - 1 for length in lengths(texts)]


@pytest.mark.parametrize("num_mini_batches", [1, 2, 4])
def test_minibatches_are_optimizer_steps_and_trl_takes_one_whatever_their_number(
    num_mini_batches: int, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    settings["num_mini_batches"] = num_mini_batches
    arguments = both.models(), both.prompts(16), ending
    assert both.our_update(*arguments, tmp_path / "ours", **settings).steps == num_mini_batches
    assert both.trl_update(*arguments, tmp_path / "theirs", **settings).steps == 1


def test_the_last_batch_of_the_data_is_one_step_too_and_in_trl_one_per_micro_batch(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    arguments = both.models(), both.prompts(8), ending
    assert both.our_update(*arguments, tmp_path / "ours", **settings).steps == 1
    assert both.trl_update(*arguments, tmp_path / "theirs", **settings).steps == 4


def test_gradients_are_clipped_and_in_trl_they_never_are(tmp_path: Path) -> None:
    given, texts = both.models(), both.prompts(8)

    def moved(update, max_grad_norm: float, learning_rate: float = 0.1) -> float:
        made = update(given, texts, ending, tmp_path, max_grad_norm=max_grad_norm, learning_rate=learning_rate)
        return math.hypot(distance(made.policy, before(given)[0]), distance(made.value, before(given)[1]))

    # A step of SGD is the gradient times the learning rate.
    assert moved(both.our_update, 0.5) == pytest.approx(0.5 * 0.1, rel=1e-3)
    assert moved(both.trl_update, 0.5) == pytest.approx(moved(both.trl_update, 0.0))
    assert moved(both.trl_update, 0.5) > 10 * 0.5 * 0.1


def test_a_token_weighs_the_same_in_every_micro_batch_and_in_trl_more_in_short_ones(tmp_path: Path) -> None:
    given, texts = both.models(), both.prompts(8)
    assert len(set(lengths(texts))) > 1

    def weights(update, micro_batch: int) -> dict[str, torch.Tensor]:
        # Twice as many prompts as a batch takes, for TRL's sake: see the test of the last batch.
        sizes = {"per_device_train_batch_size": micro_batch, "gradient_accumulation_steps": 4 // micro_batch}
        return update(given, texts, ending, tmp_path, **sizes).policy

    learned = distance(weights(both.our_update, 4), before(given)[0])
    assert distance(weights(both.our_update, 1), weights(both.our_update, 4)) < 1e-5 < 0.01 * learned
    assert distance(weights(both.trl_update, 1), weights(both.trl_update, 4)) > 0.05 * learned
