# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The running scale of returns: constants by hand, values that stay, and the reward's unit that does not matter."""

import pytest
import torch

from tests.tiny_models import tiny_causal_lm
from tests.two_threads import on_two
from trl_ext.actor_critic import ActorCritic
from trl_ext.actor_critic.return_scale import ReturnScale
from trl_ext.actor_critic.value_head import ValueHead

ALL = torch.ones(1, 4, dtype=torch.bool)


def same(tensor):
    return tensor


def trained_head(width: int = 3) -> ValueHead:
    head = ValueHead(width)
    torch.nn.init.normal_(head.weight)
    torch.nn.init.normal_(head.bias)
    return head


def test_the_moments_are_those_worked_out_by_hand():
    scale, head = ReturnScale(), ValueHead(3)
    assert scale(torch.tensor([2.5])).item() == 2.5, "changes nothing before the first update"
    scale.update(head, torch.tensor([[1.0, 3.0, 100.0, 100.0]]), torch.tensor([[1, 1, 0, 0]]), same)
    assert (scale.mean.item(), scale.std.item()) == (2.0, 1.0)
    scale.update(head, torch.tensor([[4.0, 8.0, 0.0, 0.0]]), torch.tensor([[1, 1, 0, 0]]), same)
    # Weights 0.9 and 1 of 1.9: mean (0.9 * 2 + 6) / 1.9, mean square (0.9 * 5 + 40) / 1.9.
    mean = 7.8 / 1.9
    assert scale.mean.item() == pytest.approx(mean, rel=1e-6)
    assert scale.std.item() == pytest.approx((44.5 / 1.9 - mean**2) ** 0.5, rel=1e-6)


def test_values_stay_when_the_scale_moves_and_a_head_at_zero_predicts_the_mean():
    scale, head, states = ReturnScale(), trained_head(), torch.randn(2, 5, 3)
    before = scale(head(states))
    for returns in (torch.tensor([[3.0, 9.0, -4.0, 1.0]]), torch.tensor([[50.0, 90.0, 70.0, 60.0]])):
        scale.update(head, returns, ALL, same)
        torch.testing.assert_close(scale(head(states)), before, rtol=1e-5, atol=1e-5)
    scale, head = ReturnScale(), ValueHead(3)
    scale.update(head, torch.tensor([[3.0, 9.0, 4.0, 0.0]]), ALL, same)
    assert scale(head(states)).unique().tolist() == [4.0]


def test_a_head_of_which_only_the_bias_has_learned_is_kept():
    scale, head = ReturnScale(), ValueHead(3)
    torch.nn.init.constant_(head.bias, 2.0)
    scale.update(head, torch.tensor([[3.0, 9.0, 4.0, 0.0]]), ALL, same)
    assert scale.mean.item() == 4.0 and scale(head(torch.randn(3))).item() == pytest.approx(2.0)


@pytest.mark.parametrize("critics", [1, 2])
def test_values_that_depend_on_the_reward_so_far_stay_too(critics):
    scale, head = ReturnScale(), ValueHead(3, critics)
    head.read_rewards()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    states, rewards = torch.randn(2, 5, *([critics] if critics > 1 else []), 3), 10 * torch.randn(2, 5)

    def values():
        return scale(head(states, scale.standardized(rewards)))

    before = values()
    for returns in (torch.tensor([[3.0, 9.0, -4.0, 1.0]]), torch.tensor([[50.0, 90.0, 70.0, 60.0]])):
        scale.update(head, returns, ALL, same)
        torch.testing.assert_close(values(), before, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("returns", [[5.0, 5.0, 5.0, 5.0], [0.1, 0.1, 0.1, 0.1]])
def test_equal_returns_leave_the_spread_alone(returns):
    scale, head = ReturnScale(), trained_head()
    scale.update(head, torch.tensor([returns]), ALL, same)
    assert scale.std.item() == 1.0 and torch.isfinite(head.weight).all()
    scale.update(head, torch.zeros(1, 4), torch.zeros(1, 4), same)
    assert scale.mean.item() == pytest.approx(returns[0]), "an empty mask says nothing"


def test_two_processes_have_the_moments_of_all_returns():
    mask = torch.tensor([[1, 1, 0, 0]])

    def moments(number, reduce):
        scale = ReturnScale()
        scale.update(ValueHead(3), torch.tensor([[1.0, 3.0, 5.0, 7.0], [2.0, 0.0, 0.0, 0.0]])[[number]], mask, reduce)
        return scale.mean.item(), scale.std.item()

    # 1 and 3, and 2 and 0: mean 1.5, variance (0.25 + 2.25 + 0.25 + 2.25) / 4.
    assert on_two(moments) == [pytest.approx((1.5, 1.25**0.5))] * 2


def test_the_scale_is_saved_with_the_critic(tmp_path):
    model = ActorCritic(tiny_causal_lm())
    model.return_scale.update(model.value_head, torch.tensor([[3.0, 9.0, 4.0, 0.0]]), ALL, same)
    model.save_pretrained(tmp_path)
    other = ActorCritic(tiny_causal_lm())
    other.load_pretrained(tmp_path)
    assert other.return_scale.state_dict() == model.return_scale.state_dict()
    (tmp_path / "critic" / "return_scale.safetensors").unlink()  # as an earlier version left it
    other.load_pretrained(tmp_path)
    assert other.return_scale.std == 1 and other.return_scale.mean == 0 and other.return_scale.weight == 0


def test_a_later_run_starts_from_the_saved_scale(tmp_path):
    model = ActorCritic(tiny_causal_lm(), "copy")
    model.return_scale.update(model.value_head, torch.tensor([[3.0, 9.0, 4.0, 0.0]]), ALL, same)
    model.save_pretrained(tmp_path)
    later = ActorCritic(tiny_causal_lm(), str(tmp_path))
    assert later.return_scale.state_dict() == model.return_scale.state_dict()
