# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Tokens whose ratio left `mask_ratio_range` get no policy gradient; by hand, and in a run."""

import dataclasses
from pathlib import Path

import pytest
import torch

from tests import scripted
from trl_ext.actor_critic import ForwardOutput
from trl_ext.experience.engine_gap import importance_weights
from trl_ext.experience.rollout import collate
from trl_ext.learning import LossOptions, token_losses

OPTIONS = LossOptions(
    cliprange=0.2,
    cliprange_high=None,
    dual_clip=None,
    mask_ratio_range=[0.5, 2.0],
    cliprange_value=None,
    vf_coef=0.0,
    entropy_coef=0.0,
    kl_loss_coef=0.0,
    kl_loss_estimator="k2",
    use_bias_correction_kl=True,
)


def gradient(ratios: list[float], advantages: list[float], weights: list[float], options: LossOptions) -> tuple:
    """The gradient of the loss with respect to each log-probability, and the tokens that are masked."""
    n = len(ratios)
    batch = collate([[5]], [[6] * n], [True], pad_token_id=0)
    batch.advantages, batch.weights = torch.tensor([advantages]), torch.tensor([weights])
    logps = torch.tensor([ratios]).log().requires_grad_()
    known = {"logps": logps, "entropy": torch.zeros(1, n), "values": torch.zeros(1, n + 1)}
    fields = {field: known.get(field) for field in ForwardOutput._fields}
    losses = token_losses(ForwardOutput(**fields), batch, options)
    losses["loss"].sum().backward()
    assert logps.grad is not None
    return logps.grad.tolist()[0], losses.get("masked_fraction")


def test_no_gradient_outside_the_range_by_hand() -> None:
    # Clipping alone lets the third (moved away against its advantage) and the fourth (moves back) go on.
    ratios, advantages = [1.1, 1.5, 3.0, 0.25, 0.25, 1.0], [1.0, -2.0, -1.0, 1.0, -1.0, 1.0]
    weights = [1.0, 1.0, 1.0, 1.0, 1.0, 0.0]
    found, masked = gradient(ratios, advantages, weights, OPTIONS)
    assert found == pytest.approx([-1.1, 3.0, 0.0, 0.0, 0.0, 0.0])
    assert masked.tolist() == [[False, False, True, True, True, True]]
    clipped, none = gradient(ratios, advantages, weights, dataclasses.replace(OPTIONS, mask_ratio_range=None))
    assert clipped == pytest.approx([-1.1, 3.0, 3.0, -0.25, 0.0, 0.0]) and none is None


def test_with_another_engine_the_kl_loss_has_the_gradient_of_the_kl() -> None:
    """By enumeration: the mean over the engine's tokens is the gradient of KL(policy || reference)."""
    torch.manual_seed(0)
    engine, old, reference, now = torch.log_softmax(0.5 * torch.randn(4, 6), dim=-1)
    logits = now.clone().requires_grad_()
    policy = torch.log_softmax(logits, dim=-1)
    batch = collate([[5]], [[*range(6)]], [True], pad_token_id=0)  # each token once, with the engine's probability
    batch.old_logps, batch.ref_logps, batch.advantages = old[None], reference[None], torch.zeros(1, 6)
    batch.weights = (old - engine).exp()[None]
    known = {"logps": policy[None], "entropy": torch.zeros(1, 6)}
    fields = {field: known.get(field) for field in ForwardOutput._fields}
    options = dataclasses.replace(OPTIONS, mask_ratio_range=None, kl_loss_coef=1.0)
    (token_losses(ForwardOutput(**fields), batch, options)["loss"] * engine.exp()).sum().backward()
    again = now.clone().requires_grad_()
    (torch.softmax(again, dim=-1) * (torch.log_softmax(again, dim=-1) - reference)).sum().backward()
    assert torch.allclose(logits.grad, again.grad, atol=1e-6)


def test_the_engines_ratio_is_masked_by_a_weight_of_zero() -> None:
    batch = collate([[5]], [[6, 7, 8, 9]], [True], pad_token_id=0)
    engine = [torch.tensor([1.0, 0.4, 1.6, 3.0]).log().neg().tolist()]  # pi_old is 1
    weights = importance_weights(batch, engine, cap=1.5, ratio_range=[0.5, 2.0])
    assert weights.tolist()[0] == pytest.approx([1.0, 0.0, 1.5, 0.0])
    assert importance_weights(batch, engine, cap=1.5).tolist()[0] == pytest.approx([1.0, 0.4, 1.5, 1.5])


def test_a_run_logs_its_masked_tokens(tmp_path: Path) -> None:
    made = scripted.trainer(tmp_path, mask_ratio_range=[0.99, 1.01], eval_dataset=scripted.prompts(4))
    made.train()
    lines = scripted.logs(made)
    assert lines[0]["masked_fraction"] == 0 and 0 < lines[1]["masked_fraction"] <= 1
    assert made.evaluate()["eval_masked_fraction"] == 0
    off = scripted.trainer(tmp_path / "off")
    off.train()
    assert "masked_fraction" not in scripted.logs(off)[0]


@pytest.mark.parametrize("given", [[0.5], [1.0, 2.0], [0.5, 1.0], [2.0, 0.5], [0.5, 2.0, 3.0]])
def test_ranges_without_1_inside_are_refused(tmp_path: Path, given: list[float]) -> None:
    with pytest.raises(ValueError, match="`mask_ratio_range` must be a ratio below 1 and one above 1"):
        scripted.trainer(tmp_path, mask_ratio_range=given)


def test_a_range_that_nothing_can_leave_is_warned_about(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="`mask_ratio_range` has no effect with one optimizer step"):
        scripted.trainer(tmp_path, mask_ratio_range=[0.5, 2.0], num_ppo_epochs=1)
