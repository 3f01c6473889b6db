# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_ext.objectives import gae, last_token_index, length_adaptive_lam, next_kl, token_rewards

NAN, INF = float("nan"), float("inf")


def test_last_token_of_rows_with_holes_and_without_tokens():
    mask = torch.tensor([[1, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]])
    assert last_token_index(mask).tolist() == [1, 3, -1, 0]
    assert last_token_index(mask.bool()).dtype == torch.int64
    assert last_token_index(torch.zeros(2, 0)).tolist() == [-1, -1]


def test_score_lands_on_the_last_completion_token():
    # trl#3750 put it one slot later.
    kl = torch.tensor([[1.0, 2.0, NAN], [0.5, INF, -0.5], [NAN, NAN, NAN]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 1], [0, 0, 0]])
    rewards = token_rewards(torch.tensor([10.0, 20.0, NAN]), kl, 0.5, mask)
    assert rewards.tolist() == [[-0.5, 9.0, 0.0], [-0.25, 0.0, 20.25], [0.0, 0.0, 0.0]]


def test_a_token_pays_the_kl_at_the_state_of_the_next_token_inside_the_mask():
    # Row 0: the hole is no state. Row 1 ends before its padding. Row 2 has no token.
    kl = torch.tensor([[1.0, NAN, 4.0, 8.0], [1.0, 2.0, INF, NAN], [NAN, NAN, NAN, NAN]])
    mask = torch.tensor([[1, 0, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]])
    assert next_kl(kl, mask).tolist() == [[4.0, 0.0, 8.0, 0.0], [2.0, 0.0, 0.0, 0.0], [0.0] * 4]


def test_token_rewards_refuses_shapes_that_would_broadcast():
    with pytest.raises(ValueError, match=r"scores \(2, 1\)"):
        token_rewards(torch.zeros(2, 1), torch.zeros(2, 3), 0.1, torch.ones(2, 3))


def test_gae_by_hand():
    # delta_2 = 1 - 0.25 = 0.75; delta_1 = 0.5 * 0.25 - 1 = -0.875; delta_0 = 2 + 0.5 * 1 - 0.5 = 2.
    # A_2 = 0.75; A_1 = -0.875 + 0.25 * 0.75 = -0.6875; A_0 = 2 - 0.25 * 0.6875 = 1.828125.
    rewards, values = torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([[0.5, 1.0, 0.25]])
    advantages = gae(rewards, values, torch.ones(1, 3), gamma=0.5, lam=0.5)
    assert advantages.tolist() == [[1.828125, -0.6875, 0.75]]


def test_bootstrap_value_stands_for_what_a_truncated_completion_would_still_earn():
    # Row 0 terminated: A = 1 - 3. Row 1 was cut off in a state worth 4: A = 1 + 0.5 * 4 - 3.
    rewards, values = torch.tensor([[1.0, NAN], [1.0, NAN]]), torch.tensor([[3.0, NAN], [3.0, NAN]])
    mask = torch.tensor([[1, 0], [1, 0]])
    advantages = gae(rewards, values, mask, gamma=0.5, lam=1.0, bootstrap_values=torch.tensor([0.0, 4.0]))
    assert advantages.tolist() == [[-2.0, 0.0], [0.0, 0.0]]


def test_lambda_one_is_monte_carlo_and_lambda_zero_is_temporal_difference():
    # Returns with gamma 0.5: G_2 = 4, G_1 = 2 + 2 = 4, G_0 = 1 + 2 = 3.
    rewards, values = torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[10.0, 20.0, 30.0]])
    mask = torch.ones(1, 3)
    assert gae(rewards, values, mask, gamma=0.5, lam=1.0).tolist() == [[3.0 - 10.0, 4.0 - 20.0, 4.0 - 30.0]]
    # r + 0.5 * V' - V: 1 + 10 - 10, 2 + 15 - 20, 4 - 30.
    assert gae(rewards, values, mask, gamma=0.5, lam=0.0).tolist() == [[1.0, -3.0, -26.0]]


def test_lambda_per_row():
    rewards, values = torch.tensor([[1.0, 2.0, 4.0]] * 2), torch.tensor([[10.0, 20.0, 30.0]] * 2)
    advantages = gae(rewards, values, torch.ones(2, 3), gamma=0.5, lam=torch.tensor([1.0, 0.0]))
    assert advantages.tolist() == [[-7.0, -16.0, -26.0], [1.0, -3.0, -26.0]]


def test_gae_carries_no_gradient_and_leaves_its_inputs_alone():
    values = torch.ones(1, 2, requires_grad=True)
    rewards = torch.tensor([[1.0, 2.0]])
    assert not gae(rewards, values, torch.ones(1, 2), gamma=1.0, lam=1.0).requires_grad
    assert rewards.tolist() == [[1.0, 2.0]] and values.tolist() == [[1.0, 1.0]]


def test_gae_of_half_precision_is_computed_in_float32():
    # 256 + 1 is 256 in bfloat16.
    rewards, values = torch.tensor([[256.0, 1.0]]).bfloat16(), torch.zeros(1, 2).bfloat16()
    advantages = gae(rewards, values, torch.ones(1, 2), gamma=1.0, lam=1.0)
    assert advantages.dtype == torch.float32 and advantages.tolist() == [[257.0, 1.0]]


def test_gae_refuses_shapes_that_would_broadcast():
    rows = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"values \(2, 1\)"):
        gae(rows, torch.zeros(2, 1), rows, gamma=1.0, lam=1.0)
    with pytest.raises(ValueError, match=r"lam has shape \(2, 1\); pass one number a row, \(2,\)"):
        gae(rows, rows, rows, gamma=1.0, lam=torch.ones(2, 1))
    with pytest.raises(ValueError, match=r"bootstrap_values has shape \(3,\)"):
        gae(rows, rows, rows, gamma=1.0, lam=1.0, bootstrap_values=torch.zeros(3))


@settings(max_examples=100, deadline=None)
@given(
    mask=st.lists(st.booleans(), min_size=0, max_size=8),
    seed=st.integers(0, 1000),
    gamma=st.sampled_from([0.0, 0.9, 1.0]),
    lam=st.sampled_from([0.0, 0.95, 1.0]),
    junk=st.sampled_from([NAN, INF, 1e30]),
)
def test_holes_and_padding_equal_the_compacted_sequence(mask, seed, gamma, lam, junk):
    tokens = torch.tensor([mask], dtype=torch.bool)
    length = int(tokens.sum())
    generator = torch.Generator().manual_seed(seed)
    compact_rewards, compact_values = torch.randn(2, 1, length, generator=generator).unbind()
    bootstrap = torch.randn(1, generator=generator)
    score = torch.randn(1, generator=generator)
    rewards, values = torch.full((2, *tokens.shape), junk).unbind()
    rewards[tokens], values[tokens] = compact_rewards[0], compact_values[0]

    full = torch.ones(1, length)
    expected = gae(compact_rewards, compact_values, full, gamma=gamma, lam=lam, bootstrap_values=bootstrap)
    actual = gae(rewards, values, tokens, gamma=gamma, lam=lam, bootstrap_values=bootstrap)
    assert torch.equal(actual[tokens], expected[0])
    assert (actual[~tokens] == 0.0).all()

    spread = token_rewards(score, rewards, 0.1, tokens)
    assert torch.equal(spread[tokens], token_rewards(score, compact_rewards, 0.1, full)[0])
    assert (spread[~tokens] == 0.0).all()


def test_length_adaptive_lambda_by_hand():
    # alpha 0.05: 40 tokens give 1 - 1/2, 200 give 1 - 1/10; up to 20 tokens (and for none) it would be negative.
    lam = length_adaptive_lam(torch.tensor([0, 10, 20, 40, 200]), 0.05)
    assert lam.tolist() == pytest.approx([0.0, 0.0, 0.0, 0.5, 0.9])
    for alpha in (0.0, -1.0, NAN):
        with pytest.raises(ValueError, match=f"alpha is {alpha}"):
            length_adaptive_lam(torch.tensor([5]), alpha)


# ---- token scores ----


def test_token_scores_land_on_their_tokens_and_the_score_on_the_last():
    kl = torch.tensor([[1.0, 2.0, NAN], [0.5, INF, -0.5]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 1]])
    dense = torch.tensor([[0.25, -1.0, NAN], [3.0, INF, 1.0]])
    rewards = token_rewards(torch.tensor([10.0, 20.0]), kl, 0.5, mask, dense)
    assert rewards.tolist() == [[-0.25, 8.0, 0.0], [2.75, 0.0, 21.25]]
    with pytest.raises(ValueError, match=r"token_scores \(2, 2\) does not fit mask \(2, 3\)"):
        token_rewards(torch.tensor([10.0, 20.0]), kl, 0.5, mask, dense[:, :2])


def test_gae_of_token_scores_by_hand():
    # Rewards 1, 0, 2; values 0.5, 1, -1; gamma 0.5, lambda 0.8: deltas 1, -1.5, 3; A = delta + 0.4 A.
    mask = torch.ones(1, 3)
    rewards = token_rewards(torch.tensor([1.5]), torch.zeros(1, 3), 0.1, mask, torch.tensor([[1.0, 0.0, 0.5]]))
    values = torch.tensor([[0.5, 1.0, -1.0]])
    advantages = gae(rewards, values, mask, gamma=0.5, lam=0.8)
    assert advantages.tolist()[0] == pytest.approx([0.88, -0.3, 3.0])


def test_advantages_of_token_scores_equal_the_enumerated_ones():
    """A policy of three tokens out of two with rewards for single tokens: with exact values and lambda 1, the mean
    advantage of an action over all continuations is Q - V, and lambda 0 gives Q - V of each step's expectation.
    """
    gamma, p_one = 0.7, 0.3
    earned = {0: [0.2, -1.0], 1: [0.0, 2.0], 2: [-0.5, 0.4]}  # at each position, by token

    def probability(tokens):
        return torch.tensor([p_one if token else 1 - p_one for token in tokens]).prod().item()

    def value(position):
        """Expected discounted rewards from `position` on, summed over all continuations."""
        rest = [[(i >> k) & 1 for k in range(3 - position)] for i in range(2 ** (3 - position))]
        return sum(
            probability(tokens) * sum(gamma**k * earned[position + k][token] for k, token in enumerate(tokens))
            for tokens in rest
        )

    values = torch.tensor([[value(0), value(1), value(2)]])
    for lam in (1.0, 0.6, 0.0):
        for action in (0, 1):
            mean = 0.0
            for rest in ([0, 0], [0, 1], [1, 0], [1, 1]):
                dense = torch.tensor([[earned[t][token] for t, token in enumerate([action, *rest])]])
                rewards = token_rewards(torch.zeros(1), torch.zeros(1, 3), 0.0, torch.ones(1, 3), dense)
                advantages = gae(rewards, values, torch.ones(1, 3), gamma=gamma, lam=lam)
                mean += probability(rest) * advantages[0, 0].item()
            assert mean == pytest.approx(earned[0][action] + gamma * value(1) - value(0), abs=1e-6)
