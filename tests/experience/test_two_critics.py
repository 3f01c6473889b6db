# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Two critics: each learns from its half of the prompts alone, and advantages count where they disagree."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file

from tests import scripted
from tests.actor_critic.makes import lora_config, scramble
from tests.launching import run_whole
from tests.tiny_models import tiny_causal_lm
from trl_ext.actor_critic import build_actor_critic
from trl_ext.experience import two_critics
from trl_ext.experience.rollout import Rollout, collate, forward
from trl_ext.experience.two_critics import critics_of, disagreement, mask_agreement, own_values

ROWS = [([5, 9, 11], [20, 21, 22]), ([8], [30, 31, 32, 33, 34]), ([50, 51, 6], [60])]
LORA = LoraConfig(r=4, target_modules="all-linear")


def with_gaps(gaps: list[list[float]], mask: list[list[int]]) -> Rollout:
    rollout = collate([[1]] * len(gaps), [[5] * sum(row) for row in mask], [True] * len(gaps), pad_token_id=0)
    rollout.value_gap, rollout.advantages = torch.tensor(gaps), torch.ones(len(gaps), len(gaps[0]))
    return rollout


# ---- who learns from what ----


def test_a_critic_learns_from_its_half_of_the_prompts_alone():
    """The gradients of a minibatch are those of two single critics, each on its own rows."""
    model = build_actor_critic(tiny_causal_lm(), "adapter", peft_config=lora_config(), num_critics=2)
    scramble(model)
    rollout = collate([p for p, _ in ROWS], [c for _, c in ROWS], [True] * 3, pad_token_id=0)
    rollout.value_gap, rollout.returns = torch.zeros(3, 5), torch.randn(3, 5)
    halves = critics_of(rollout)
    assert halves.tolist() == [0, 1, 1], "a stable choice, which other machines and runs make as well"

    def gradients(chosen: int | None) -> dict[str, torch.Tensor]:
        model.zero_grad()
        out = forward(model, rollout)
        values = own_values(out.values[:, :-1], out.value_gap[:, :-1], rollout)
        if chosen is not None:  # that critic's own values, and its own rows
            values = out.values[:, :-1] + (2 * chosen - 1) * out.value_gap[:, :-1]
            values = values[halves == chosen]
        rows = slice(None) if chosen is None else halves == chosen
        ((values - rollout.returns[rows]).square() * rollout.completion_mask[rows]).sum().backward()
        return {name: p.grad.clone() for name, p in model.critic_parameters()}

    both, first, second = (gradients(chosen) for chosen in (None, 0, 1))
    for name, gradient in both.items():
        if name.startswith("value_head."):
            torch.testing.assert_close(gradient, first[name] + second[name])
            continue
        own, other = (second, first) if ".critic_2." in name else (first, second)
        torch.testing.assert_close(gradient, own[name], rtol=1e-4, atol=1e-6)
        assert own[name].any() and not other[name].any()


def test_the_values_that_a_loss_compares_are_those_of_the_critic_that_learns():
    rollout = collate([p for p, _ in ROWS], [c for _, c in ROWS], [True] * 3, pad_token_id=0)
    values, gap = torch.full((3, 5), 2.0), torch.full((3, 5), 0.5)
    assert own_values(values, gap, rollout)[:, 0].tolist() == [1.5, 2.5, 2.5]
    assert own_values(values, None, rollout) is values


# ---- where they agree ----


@pytest.mark.parametrize(
    ("share", "kept"),
    [(0.0, [[1, 1, 1], [1, 1, 1]]), (0.4, [[1, 0, 1], [0, 1, 1]]), (0.79, [[1, 0, 1], [0, 0, 1]])],
)
def test_the_advantages_of_tokens_on_which_they_agree_count_as_zero(share, kept):
    """Five tokens, with gaps 5, -1, 3 and 0.5, -2; the last column is padding, whatever is in it."""
    rollout = with_gaps([[5.0, -1.0, 3.0], [0.5, -2.0, 9.0]], [[1, 1, 1], [1, 1, 0]])
    mask_agreement(rollout, share)
    assert rollout.advantages.tolist() == kept


def test_nothing_is_masked_before_the_critics_differ_and_the_log_says_how_much_they_do():
    rollout = with_gaps([[0.0, 0.0]], [[1, 1]])
    mask_agreement(rollout, 0.5)
    assert rollout.advantages.tolist() == [[1, 1]] and disagreement(rollout, lambda t: t) == {"critic_disagreement": 0}
    rollout = with_gaps([[5.0, -1.0], [3.0, 9.0]], [[1, 1], [1, 0]])
    assert disagreement(rollout, lambda t: t) == {"critic_disagreement": 3.0}
    rollout.value_gap = None
    mask_agreement(rollout, 0.5)
    assert rollout.advantages.all() and disagreement(rollout, lambda t: t) == {}


def test_the_share_is_that_of_all_processes(monkeypatch):
    monkeypatch.setattr(two_critics, "gather", lambda own: [own, [0.1, 0.1, 0.1, 4.0]])
    rollout = with_gaps([[5.0, -1.0, 3.0, 2.0]], [[1, 1, 1, 1]])
    mask_agreement(rollout, 0.5)  # 4 of 8 tokens; three are on the other process
    assert rollout.advantages.tolist() == [[1, 0, 1, 1]]


# ---- whole runs ----


def test_a_run_with_two_critics_logs_their_disagreement_and_masks(tmp_path):
    made = scripted.trainer(
        tmp_path, critic="adapter", num_critics=2, peft_config=LORA, critic_agreement_share=0.5, total_episodes=24,
        eval_dataset=scripted.prompts(4), eval_strategy="epoch",
    )  # fmt: skip
    made.train()
    lines = [line["critic_disagreement"] for line in scripted.logs(made)]
    assert lines[0] == 0 and lines[-1] > 0
    rollout = made._rollout
    masked = (rollout.advantages == 0) & rollout.completion_mask
    assert 0.3 < masked.sum() / rollout.completion_mask.sum() <= 0.5
    made.save_model()
    later = scripted.trainer(tmp_path / "later", critic=str(tmp_path), peft_config=LORA)
    assert later.model.value_head.out_features == 2
    with pytest.raises(ValueError, match="holds 2 critics, this run has 1"):
        scripted.trainer(tmp_path / "other", critic="adapter", peft_config=LORA).model.load_pretrained(tmp_path)


def test_two_processes_equal_one(tmp_path):
    """Each process has its own prompts of both halves; the shares of agreement are of all tokens."""
    results = []
    for world in (1, 2):
        out = tmp_path / f"world{world}"
        run_whole(Path(__file__).with_name("two_critics_in_processes.py"), out, processes=world)
        results.append(load_file(out / "weights.safetensors"))
    one, two = results
    assert max((one[name] - two[name]).abs().max().item() for name in one) < 1e-5
    assert any(".critic_2." in name for name in one)
