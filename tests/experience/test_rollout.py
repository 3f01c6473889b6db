# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""A batch of experience: its masks, what slicing keeps, what a file keeps, and the order of learning."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny_models import EOS_ID
from trl_ext.experience.rollout import Rollout, collate, minibatch_rows

PROMPTS = [[11, 12, 13], [14], [15, 16]]
COMPLETIONS = [[21, EOS_ID], [22, 23, 24, 25], []]
FLOATS = ("old_logps", "ref_logps", "kl", "old_values", "advantages", "returns", "weights")


def filled() -> Rollout:
    """Every float different, so that a row or column in the wrong place shows."""
    rollout = collate(PROMPTS, COMPLETIONS, [True, False, False], pad_token_id=0)
    for i, name in enumerate(FLOATS):
        setattr(rollout, name, torch.arange(12.0).view(3, 4) + 100 * i + 1 / 3)
    rollout.scores = torch.tensor([1.5, -2.0, 1e-30])
    rollout.ref_states = torch.arange(24.0).view(3, 4, 2).bfloat16()
    rollout.value_gap = torch.arange(12.0).view(3, 4) - 1 / 3
    rollout.rewards_so_far = torch.arange(15.0).view(3, 5) + 1 / 3
    return rollout


@pytest.mark.parametrize("pad", [0, EOS_ID, 21])
def test_masks_come_from_lengths_whatever_the_pad_token(pad):
    rollout = collate(PROMPTS, COMPLETIONS, [True, False, False], pad_token_id=pad)
    assert rollout.input_ids.tolist() == [
        [11, 12, 13, 21, EOS_ID, pad, pad],
        [pad, pad, 14, 22, 23, 24, 25],
        [pad, 15, 16, pad, pad, pad, pad],
    ]
    assert rollout.attention_mask.tolist() == [[1, 1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1, 1], [0, 1, 1, 0, 0, 0, 0]]
    assert rollout.completion_mask.int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]]
    assert rollout.completion_mask.dtype == torch.bool
    assert rollout.terminated.tolist() == [True, False, False] and rollout.valid.all()
    assert len(rollout) == 3 and rollout.completion_length == 4
    assert all(not getattr(rollout, name).any() for name in (*FLOATS[:-1], "scores"))
    assert (rollout.weights == 1).all()


def test_completions_that_are_all_empty_still_have_a_column():
    rollout = collate([[1], [2, 3]], [[], []], [False, False], pad_token_id=0)
    assert rollout.completion_mask.tolist() == [[False], [False]]
    assert len(rollout.select(torch.tensor([1]))) == 1 and rollout.select(torch.tensor([1])).completion_length == 1


def test_a_prompt_without_completion_is_a_mistake():
    with pytest.raises(ValueError):
        collate(PROMPTS, COMPLETIONS[:2], [True, False], pad_token_id=0)


def test_selected_rows_lose_only_columns_that_are_padding_in_all_of_them():
    chosen = filled().select(torch.tensor([2, 0]))
    assert chosen.input_ids.tolist() == [[0, 15, 16, 0, 0], [11, 12, 13, 21, EOS_ID]]
    assert chosen.attention_mask.tolist() == [[0, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert chosen.completion_mask.int().tolist() == [[0, 0], [1, 1]]
    assert chosen.terminated.tolist() == [False, True]
    assert chosen.scores.tolist() == [pytest.approx(1e-30), 1.5]
    for i, name in enumerate(FLOATS):
        expected = torch.tensor([[8.0, 9.0], [0.0, 1.0]]) + 100 * i + 1 / 3
        assert torch.equal(getattr(chosen, name), expected), name
    assert chosen.ref_states is not None
    assert chosen.ref_states.tolist() == [[[16.0, 17.0], [18.0, 19.0]], [[0.0, 1.0], [2.0, 3.0]]]
    assert chosen.rewards_so_far is not None, "one column more: what was written after the last token"
    assert torch.equal(chosen.rewards_so_far, torch.tensor([[10.0, 11.0, 12.0], [0.0, 1.0, 2.0]]) + 1 / 3)
    alone = filled().select(torch.tensor([1]))
    assert alone.input_ids.tolist() == [[14, 22, 23, 24, 25]] and alone.completion_length == 4


def test_holes_and_samples_that_could_not_be_scored_keep_their_tokens():
    """They are read by the model all the same: only the attention mask says what is padding."""
    rollout = filled()
    rollout.completion_mask[1] = torch.tensor([False, True, False, False])
    rollout.completion_mask[0] = False
    holes = rollout.select(torch.tensor([1]))
    assert holes.completion_mask.tolist() == [[False, True, False, False]]
    assert holes.attention_mask.tolist() == [[1] * 5] and holes.input_ids.tolist() == [[14, 22, 23, 24, 25]]
    invalid = rollout.select(torch.tensor([0, 2]))
    assert invalid.attention_mask[0].tolist() == [1] * 5 and not invalid.completion_mask.any()


def test_every_real_token_survives_every_selection():
    rollout = filled()
    for rows in ([0], [1], [2], [0, 1], [1, 2], [2, 0], [0, 1, 2], [2, 2]):
        chosen = rollout.select(torch.tensor(rows))
        for row, original in enumerate(rows):
            real = chosen.input_ids[row][chosen.attention_mask[row].bool()].tolist()
            assert real == PROMPTS[original] + COMPLETIONS[original]
        assert chosen.attention_mask[:, 0].any(), "no empty column on the left"


def test_selecting_leaves_the_rollout_as_it_was():
    rollout = filled()
    rollout.select(torch.tensor([0])).old_logps.zero_()
    assert torch.equal(rollout.old_logps, filled().old_logps)


def test_a_file_keeps_every_bit(tmp_path):
    rollout = filled()
    rollout.old_logps[0] = torch.tensor([float("nan"), float("-inf"), -0.0, 1e-42])
    rollout.completion_mask[1, 2] = False
    rollout.returns = rollout.returns.T.contiguous().T  # not contiguous
    rollout.save(tmp_path / "rollout.safetensors")
    loaded = Rollout.load(tmp_path / "rollout.safetensors")
    for f in dataclasses.fields(Rollout):
        before, after = getattr(rollout, f.name), getattr(loaded, f.name)
        assert before.dtype == after.dtype and before.shape == after.shape, f.name
        assert before.contiguous().view(torch.uint8).tolist() == after.view(torch.uint8).tolist(), f.name


def test_a_file_without_what_only_some_runs_have_is_read(tmp_path):
    collate(PROMPTS, COMPLETIONS, [True, False, False], pad_token_id=0).save(tmp_path / "r.safetensors")
    loaded = Rollout.load(tmp_path / "r.safetensors")
    assert loaded.ref_states is None and loaded.value_gap is None and loaded.rewards_so_far is None


def test_a_file_of_an_earlier_version_learns_what_that_version_would_have(tmp_path):
    """It penalized no exact KL, had no rewards of tokens, and held no prompts out."""
    path = tmp_path / "r.safetensors"
    filled().save(path)
    later = ("kl", "token_scores", "kl_coefs", "held_out")
    save_file({name: tensor for name, tensor in load_file(path).items() if name not in later}, path)
    loaded = Rollout.load(path)
    assert torch.equal(loaded.kl, torch.zeros(3, 4)) and torch.equal(loaded.token_scores, torch.zeros(3, 4))
    assert torch.equal(loaded.kl_coefs, torch.zeros(3)) and loaded.held_out.tolist() == [False] * 3
    assert torch.equal(loaded.old_logps, filled().old_logps)


def test_no_two_fields_share_memory(tmp_path):
    """Writing into one would change the others, and safetensors refuses them."""
    rollout = collate(PROMPTS, COMPLETIONS, [True, False, False], pad_token_id=0)
    rollout.save(tmp_path / "r.safetensors")
    rollout.old_logps += 1
    assert not rollout.ref_logps.any() and not rollout.returns.any()


def test_the_first_pass_keeps_the_order():
    assert minibatch_rows(6, 0, 1, (0, 3)).tolist() == [0, 1, 2, 3, 4, 5]
    assert [minibatch_rows(6, step, 3, (0, 3)).tolist() for step in range(3)] == [[0, 1], [2, 3], [4, 5]]


def test_samples_come_by_length_within_their_minibatch():
    rollout = collate([[1]] * 6, [[5] * n for n in (2, 4, 3, 9, 1, 9)], [True] * 6, pad_token_id=0)
    assert rollout.lengths.tolist() == [[1, 2], [1, 4], [1, 3], [1, 9], [1, 1], [1, 9]]
    assert rollout.first_pass(1).tolist() == [3, 5, 1, 2, 0, 4], "equal ones in their order"
    assert rollout.first_pass(2).tolist() == [1, 2, 0, 3, 5, 4]
    for number in range(2):
        assert rollout.minibatch(number, 2, (0, 3)).tolist() == rollout.first_pass(2).tolist()[3 * number :][:3]
    for step in range(6):
        assert set(rollout.minibatch(step, 2, (0, 3)).tolist()) == set(minibatch_rows(6, step, 2, (0, 3)).tolist())
    assert filled().lengths.tolist() == [[3, 2], [1, 4], [2, 0]]
    assert collate([[1], [1, 2]], [[], []], [True] * 2, pad_token_id=0).first_pass(1).tolist() == [1, 0]


def test_the_minibatches_of_a_pass_are_its_parts():
    whole = minibatch_rows(6, 1, 1, (0, 3)).tolist()
    assert sum((minibatch_rows(6, step, 2, (0, 3)).tolist() for step in (2, 3)), []) == whole


def test_later_passes_are_permutations_that_differ():
    seeds = [(seed, rollout, epoch) for seed in (0, 1) for rollout in (0, 1, 2) for epoch in (1, 2, 3)]
    orders = [tuple(minibatch_rows(16, epoch, 1, seed).tolist()) for *seed, epoch in seeds]
    assert all(sorted(order) == list(range(16)) for order in orders)
    assert len(set(orders)) == len(orders) and tuple(range(16)) not in orders


def test_the_order_depends_on_the_seed_alone():
    expected = minibatch_rows(16, 2, 1, (5, 7)).tolist()
    torch.rand(3)
    assert minibatch_rows(16, 2, 1, (5, 7)).tolist() == expected
    state = torch.get_rng_state()
    minibatch_rows(16, 2, 1, (5, 7))
    assert torch.equal(torch.get_rng_state(), state), "a resumed run samples the same completions"
