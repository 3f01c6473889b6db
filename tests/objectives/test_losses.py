# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_ext.objectives import (
    approx_kl,
    explained_variance,
    kl_loss,
    masked_sum,
    outside_range,
    policy_loss,
    value_loss,
)

NAN, INF = float("nan"), float("inf")


def losses_of(ratios, advantages, **clips):
    """Loss, ratio, clipped and the gradient of the loss with respect to log p, as lists."""
    logps = torch.tensor([ratios]).log().requires_grad_()
    loss, ratio, clipped = policy_loss(logps, torch.zeros(1, len(ratios)), torch.tensor([advantages]), **clips)
    loss.sum().backward()
    assert logps.grad is not None
    return loss.tolist()[0], ratio.tolist()[0], clipped.tolist()[0], logps.grad.tolist()[0]


def test_clipped_surrogate_by_hand():
    loss, ratio, clipped, gradient = losses_of(
        [1.0, 1.5, 1.5, 0.5, 0.5, 1.5], [2.0, 2.0, -2.0, 2.0, -2.0, 0.0], cliprange=0.2
    )
    assert loss == pytest.approx([-2.0, -2.4, 3.0, -1.0, 1.6, 0.0])
    assert ratio == pytest.approx([1.0, 1.5, 1.5, 0.5, 0.5, 1.5])
    # A ratio outside the range that the pessimistic bound leaves alone is not clipped.
    assert clipped == [False, True, False, False, True, False]
    # d loss / d log p = -A * ratio where it learns.
    assert gradient == pytest.approx([-2.0, 0.0, 3.0, -1.0, 0.0, 0.0])


def test_clip_higher_by_hand():
    loss, _, clipped, _ = losses_of([1.25, 1.5, 0.7], [1.0, 1.0, -1.0], cliprange=0.2, cliprange_high=0.28)
    assert loss == pytest.approx([-1.25, -1.28, 0.8])
    assert clipped == [False, True, True]


def test_dual_clip_by_hand():
    loss, _, clipped, gradient = losses_of([5.0, 2.0, 5.0, 0.5], [-2.0, -2.0, 2.0, -2.0], cliprange=0.2, dual_clip=3.0)
    assert loss == pytest.approx([6.0, 4.0, -2.4, 1.6])
    assert clipped == [True, False, True, True]
    assert gradient == pytest.approx([0.0, 4.0, 0.0, 0.0])


@settings(max_examples=100, deadline=None)
@given(
    log_ratio=st.floats(-40, 40, width=32),
    advantage=st.floats(-5, 5, width=32).filter(lambda a: a == 0 or abs(a) > 0.1),
    dual_clip=st.sampled_from([None, 3.0]),
)
def test_clipped_is_exactly_where_the_gradient_is_cut(log_ratio, advantage, dual_clip):
    logps = torch.tensor([log_ratio], requires_grad=True)
    loss, _, clipped = policy_loss(
        logps, torch.zeros(1), torch.tensor([advantage]), cliprange=0.2, cliprange_high=0.3, dual_clip=dual_clip
    )
    loss.backward()
    assert logps.grad is not None and logps.grad.isfinite() and loss.isfinite()
    assert clipped.item() == (logps.grad.item() == 0.0 and advantage != 0)


def test_first_minibatch_has_ratio_one_and_the_policy_gradient():
    logps = torch.tensor([[-1.3, -0.2]], requires_grad=True)
    advantages = torch.tensor([[0.7, -1.1]])
    loss, ratio, clipped = policy_loss(logps, logps.detach(), advantages, cliprange=0.2)
    loss.sum().backward()
    assert ratio.tolist() == [[1.0, 1.0]] and not clipped.any() and not ratio.requires_grad
    assert logps.grad is not None and torch.equal(logps.grad, -advantages)


def test_ratio_is_bounded():
    _, ratio, _, _ = losses_of([math.exp(80.0), math.exp(-80.0)], [1.0, 1.0], cliprange=0.2)
    assert ratio == pytest.approx([4.85165195e8, 2.0611536e-9], rel=1e-5)


@pytest.mark.parametrize("clips", [{"cliprange": -0.1}, {"cliprange": 0.1, "cliprange_high": -0.2}])
def test_negative_clip_ranges_are_refused(clips):
    with pytest.raises(ValueError, match="neither may be negative"):
        losses_of([1.0], [1.0], **clips)


@pytest.mark.parametrize("dual_clip", [1.0, 0.0, NAN])
def test_dual_clip_must_exceed_one(dual_clip):
    with pytest.raises(ValueError, match=f"dual_clip is {dual_clip}"):
        losses_of([1.0], [1.0], cliprange=0.2, dual_clip=dual_clip)


def test_tokens_outside_a_range_of_ratios_whatever_the_sign():
    logps = torch.tensor([0.4, 0.5, 1.0, 2.0, 2.5, NAN]).log()
    assert outside_range(logps, torch.zeros(6), (0.5, 2.0)).tolist() == [True, False, False, False, True, False]
    far = torch.tensor([-1000.0, 1000.0])
    assert outside_range(far, torch.zeros(2), (0.0, 9.0)).tolist() == [False, True]
    for bad in ((0.5, 1.0), (1.0, 2.0), (-0.1, 2.0), (NAN, 2.0)):
        with pytest.raises(ValueError, match="0 <= low < 1 < high"):
            outside_range(far, torch.zeros(2), bad)


def test_value_loss_by_hand():
    # V_old 1, R 3. V = 2.5: the clipped 1.5 is worse, 0.5 * 1.5^2. V = -1: moving away, its own error counts,
    # 0.5 * 4^2. V = 1.2: inside, 0.5 * 1.8^2.
    values = torch.tensor([[2.5, -1.0, 1.2]], requires_grad=True)
    old_values, returns = torch.ones(1, 3), torch.full((1, 3), 3.0)
    loss, clipped = value_loss(values, old_values, returns, cliprange_value=0.5)
    loss.sum().backward()
    assert loss.tolist()[0] == pytest.approx([1.125, 8.0, 1.62])
    assert clipped.tolist() == [[True, False, False]]
    assert values.grad is not None and values.grad.tolist()[0] == pytest.approx([0.0, -4.0, -1.8])


def test_value_loss_without_clip_is_half_the_squared_error():
    values, returns = torch.tensor([[2.5, -1.0]]), torch.tensor([[3.0, 3.0]])
    loss, clipped = value_loss(values, torch.ones(1, 2), returns)
    assert loss.tolist() == [[0.125, 8.0]] and not clipped.any()
    with pytest.raises(ValueError, match="cliprange_value is -0.5"):
        value_loss(values, values, returns, cliprange_value=-0.5)


@pytest.mark.parametrize("junk", [NAN, INF, -INF])
@pytest.mark.parametrize("where", ["trained", "old", "target"])
def test_junk_outside_the_mask_reaches_no_gradient(junk, where):
    mask = torch.tensor([[True, False]])
    inputs = {name: torch.tensor([[-1.0, -1.0]]) for name in ("trained", "old", "target")}
    inputs["trained"][0, 0] = -1.1
    inputs[where][0, 1] = junk
    trained = inputs["trained"].requires_grad_()
    actor, ratio, clipped = policy_loss(trained, inputs["old"], inputs["target"], cliprange=0.2, dual_clip=3.0)
    critic, value_clipped = value_loss(trained, inputs["old"], inputs["target"], cliprange_value=0.2)
    total = masked_sum(actor, mask) + masked_sum(critic, mask) + masked_sum(approx_kl(trained, inputs["old"]), mask)
    total.backward()
    assert total.isfinite() and trained.grad is not None
    assert trained.grad[0, 1] == 0.0 and trained.grad[0, 0] != 0.0 and trained.grad.isfinite().all()
    # Inside the mask it must show: the trainer skips a minibatch whose loss or ratio is not finite.
    assert actor[0, 1].isnan() and ratio[0, 1].isnan() and critic[0, 1].isnan()
    assert not clipped[0, 1] and not value_clipped[0, 1]


def test_approx_kl_is_the_divergence_from_the_old_policy():
    old = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    new = torch.tensor([0.4, 0.4, 0.2], dtype=torch.float64)
    estimate = (old * approx_kl(new.log(), old.log())).sum().item()
    exact = torch.distributions.kl_divergence(
        torch.distributions.Categorical(old), torch.distributions.Categorical(new)
    )
    assert estimate == pytest.approx(exact.item())
    # r = 2: (2 - 1) - ln 2.
    assert approx_kl(torch.tensor([math.log(2.0)]), torch.zeros(1)).item() == pytest.approx(0.306853, rel=1e-5)


def test_explained_variance_by_hand():
    returns = torch.tensor([[1.0, 3.0, NAN], [5.0, INF, NAN]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    constant = torch.full_like(returns, 7.0)
    # Residuals 1, 0, 0: variance 2/9 against 8/3.
    close = torch.tensor([[0.0, 3.0, NAN], [5.0, NAN, INF]])
    assert explained_variance(returns, returns, mask).item() == 1.0
    assert explained_variance(constant, returns, mask).item() == pytest.approx(0.0, abs=1e-6)
    assert explained_variance(close, returns, mask).item() == pytest.approx(11 / 12)
    assert explained_variance(-returns, returns, mask).item() == pytest.approx(-3.0)


@pytest.mark.parametrize("level", [0.0, 0.1, 1e4])
def test_explained_variance_is_zero_where_nothing_varies(level):
    returns = torch.full((3, 7), level)
    values = torch.linspace(-1, 1, 21).reshape(3, 7)
    assert explained_variance(values, returns, torch.ones(3, 7)).item() == 0.0
    assert explained_variance(values, returns, torch.zeros(3, 7)).item() == 0.0


def test_explained_variance_of_tiny_returns_is_not_taken_for_zero():
    returns = torch.tensor([[1e-6, -1e-6]])
    assert explained_variance(returns, returns, torch.ones(1, 2)).item() == 1.0


def test_explained_variance_sums_over_processes():
    # The other process holds the same tokens: every sum doubles, so the ratio of the variances must stay.
    asked = []

    def reduce(tensor):
        asked.append(tensor)
        return 2 * tensor

    returns, values = torch.tensor([[1.0, 3.0, 5.0]]), torch.tensor([[0.0, 3.0, 5.0]])
    assert explained_variance(values, returns, torch.ones(1, 3), reduce).item() == pytest.approx(11 / 12)
    assert len(asked) == 4


# ---- KL loss ----


def expected_gradient(estimator, bias_correction, old_logits):
    """Gradients of the mean of `kl_loss` over the five tokens of the old policy, and of the two exact KLs."""
    logits = torch.tensor([0.3, -0.4, 1.1, 0.0, -0.8], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([0.0, 0.5, 0.2, -0.9, 0.4], dtype=torch.float64).log_softmax(-1)
    policy, old = logits.log_softmax(-1), old_logits.double().log_softmax(-1)
    loss = kl_loss(policy, old, reference, estimator=estimator, bias_correction=bias_correction)
    reverse = (policy.exp() * (policy - reference)).sum()
    forward = (reference.exp() * (reference - policy)).sum()
    objectives = ((old.exp() * loss).sum(), reverse, forward)
    return [torch.autograd.grad(objective, logits, retain_graph=True)[0] for objective in objectives]


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_the_kl_loss_has_the_gradient_of_a_kl_whatever_policy_sampled(estimator):
    same = torch.tensor([0.3, -0.4, 1.1, 0.0, -0.8])
    older = torch.tensor([-0.2, 0.3, 0.4, 0.6, -0.1])
    for old in (same, older):
        got, reverse, forward = expected_gradient(estimator, True, old)
        assert torch.allclose(got, reverse if estimator == "k2" else forward, atol=1e-12)
    uncorrected, *_ = expected_gradient(estimator, False, older)
    corrected, *_ = expected_gradient(estimator, True, older)
    assert (uncorrected - corrected).abs().max() > 0.05, "the weight is what makes it so"
    first, *_ = expected_gradient(estimator, False, same)
    assert torch.allclose(first, expected_gradient(estimator, True, same)[0], atol=1e-12)


def test_the_weight_of_the_kl_loss_is_bounded_and_held_constant():
    logps = torch.tensor([0.0], requires_grad=True)
    loss = kl_loss(logps, torch.tensor([-40.0]), torch.tensor([-1.0]))
    loss.backward()
    # w = 10, k2 = 1 / 2, and d k2 / d log p = 1.
    assert loss.item() == pytest.approx(5.0) and logps.grad is not None and logps.grad.item() == pytest.approx(10.0)


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_a_masked_token_without_numbers_reaches_no_gradient_of_the_kl_loss(estimator):
    logps = torch.tensor([[-1.0, -1.0, -1.0]], requires_grad=True)
    old, ref = torch.tensor([[-1.5, NAN, -1.0]]), torch.tensor([[-1.2, -1.0, -INF]])
    loss = kl_loss(logps, old, ref, estimator=estimator)
    assert loss.isnan().tolist() == [[False, True, True]]
    masked_sum(loss, torch.tensor([[True, False, False]])).backward()
    assert logps.grad is not None and logps.grad.isfinite().all() and logps.grad[0, 0] != 0
