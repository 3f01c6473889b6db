# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_ext.objectives import KL_ESTIMATORS, kl_estimate, masked_sum

LN2 = math.log(2.0)


def test_estimators_by_hand():
    # The reference finds the token twice as likely as the policy, then half as likely.
    logps, ref_logps = torch.tensor([[-1.0, -1.0]]), torch.tensor([[-1.0 + LN2, -1.0 - LN2]])
    assert kl_estimate(logps, ref_logps).tolist()[0] == pytest.approx([-0.693147, 0.693147], rel=1e-5)
    assert kl_estimate(logps, ref_logps, "k2").tolist()[0] == pytest.approx([0.240227, 0.240227], rel=1e-5)
    assert kl_estimate(logps, ref_logps, "k3").tolist()[0] == pytest.approx([0.306853, 0.193147], rel=1e-5)


def test_unknown_estimator_is_named():
    with pytest.raises(ValueError, match="'k4' is unknown; use one of k1, k2, k3"):
        kl_estimate(torch.zeros(1, 1), torch.zeros(1, 1), "k4")


def policy_and_reference():
    logits = torch.tensor([0.3, -1.0, 0.8, 0.1], dtype=torch.float64, requires_grad=True)
    reference = torch.log_softmax(torch.tensor([-0.5, 0.2, 0.4, 1.0], dtype=torch.float64), 0)
    return logits, torch.log_softmax(logits, 0), reference


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_k1_and_k3_are_unbiased(estimator):
    _, logps, reference = policy_and_reference()
    exact = torch.nn.functional.kl_div(reference, logps, log_target=True, reduction="sum")
    expected = (logps.exp() * kl_estimate(logps, reference, estimator)).sum()
    torch.testing.assert_close(expected, exact)


def expected_loss_gradient(estimator):
    """The estimator's gradient, averaged over the policy's own samples by enumeration; sampling has no gradient."""
    logits, logps, reference = policy_and_reference()
    (logps.detach().exp() * kl_estimate(logps, reference, estimator)).sum().backward()
    return logits.grad


def reverse_kl_gradient():
    logits, logps, reference = policy_and_reference()
    torch.nn.functional.kl_div(reference, logps, log_target=True, reduction="sum").backward()
    return logits.grad


def test_k1_as_a_loss_has_no_gradient():
    assert expected_loss_gradient("k1").abs().max() < 1e-12
    assert reverse_kl_gradient().abs().max() > 0.05


def test_k3_as_a_loss_has_the_gradient_of_the_forward_kl():
    logits, logps, reference = policy_and_reference()
    torch.nn.functional.kl_div(logps, reference, log_target=True, reduction="sum").backward()
    torch.testing.assert_close(expected_loss_gradient("k3"), logits.grad)


def test_k2_as_a_loss_has_the_gradient_of_the_reverse_kl():
    torch.testing.assert_close(expected_loss_gradient("k2"), reverse_kl_gradient())


def test_k1_in_the_reward_has_the_right_gradient_and_k3_a_biased_one():
    def score_function_gradient(estimator):
        logits, logps, reference = policy_and_reference()
        penalty = kl_estimate(logps, reference, estimator).detach()
        (logps.detach().exp() * penalty * logps).sum().backward()
        return logits.grad

    torch.testing.assert_close(score_function_gradient("k1"), reverse_kl_gradient())
    assert (score_function_gradient("k3") - reverse_kl_gradient()).abs().max() > 0.05


@pytest.mark.parametrize("estimator", KL_ESTIMATORS)
def test_far_apart_policies_do_not_overflow(estimator):
    logps = torch.tensor([[-1000.0, 0.0]], requires_grad=True)
    kl = kl_estimate(logps, torch.tensor([[0.0, -1000.0]]), estimator)
    kl.sum().backward()
    assert kl.isfinite().all() and logps.grad is not None and logps.grad.isfinite().all()


def test_only_the_exponential_of_k3_is_bounded():
    # exp(-30) - 1 + 30 where the policy is surer, and exp(20) - 1 - 30, instead of exp(30) - 1 - 30, where it is less.
    kl = kl_estimate(torch.tensor([0.0, -30.0]), torch.tensor([-30.0, 0.0]), "k3")
    assert kl.tolist() == pytest.approx([29.0, 485_165_164.4], rel=1e-6)


def test_k3_keeps_its_digits_for_a_tiny_update():
    # exp(x) - 1 - x is x^2 / 2 = 5e-9; without expm1 float32 has an error of 1e-7.
    kl = kl_estimate(torch.tensor([1e-4]), torch.tensor([0.0]), "k3")
    assert kl.item() == pytest.approx(5e-9, rel=0.01)


@settings(max_examples=100, deadline=None)
@given(st.floats(-100, 0, width=32), st.floats(-100, 0, width=32))
def test_k2_and_k3_are_never_negative(logp, ref_logp):
    for estimator in ("k2", "k3"):
        assert kl_estimate(torch.tensor([logp]), torch.tensor([ref_logp]), estimator).item() >= 0.0


@pytest.mark.parametrize("estimator", KL_ESTIMATORS)
@pytest.mark.parametrize("junk", [float("nan"), float("inf"), -float("inf")])
def test_junk_outside_the_mask_reaches_no_gradient(estimator, junk):
    logps = torch.tensor([[-1.0, junk]], requires_grad=True)
    total = masked_sum(kl_estimate(logps, torch.tensor([[-2.0, -1.0]]), estimator), torch.tensor([[1, 0]]))
    total.backward()
    assert total.isfinite() and logps.grad is not None and logps.grad.isfinite().all()
    assert logps.grad[0, 1] == 0.0 and logps.grad[0, 0] != 0.0
    inside = masked_sum(kl_estimate(logps, torch.tensor([[-2.0, -1.0]]), estimator), torch.tensor([[1, 1]]))
    assert not inside.isfinite(), "what is broken inside the mask must show"


def test_bfloat16_is_subtracted_in_float32():
    kl = kl_estimate(torch.tensor([-1.0], dtype=torch.bfloat16), torch.tensor([-1.01], dtype=torch.float32))
    assert kl.dtype == torch.float32 and kl.item() == pytest.approx(0.01, rel=1e-4)
