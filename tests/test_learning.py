# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Whether an optimizer step counts: gradients that are no numbers, dropped steps, fp16's scaler, lost runs."""

import math

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from datasets import Dataset
from torch import nn
from transformers import TrainerCallback

from tests import scripted
from trl_ext import PPOTrainer
from trl_ext.actor_critic import ForwardOutput
from trl_ext.experience.rollout import Rollout, collate
from trl_ext.experience.supervised import SupervisedBatch
from trl_ext.learning import LossOptions, Minibatch, token_losses
from trl_ext.micro_batches import MicroBatches
from trl_ext.step_gate import (
    MAX_LOST_ROLLOUTS,
    StepGate,
    StepLimits,
    drop_gradients,
    gradients_are_finite,
    split_critic,
)


def parameter(gradient: list[float] | None) -> nn.Parameter:
    made = nn.Parameter(torch.ones(2))
    made.grad = None if gradient is None else torch.tensor(gradient)
    return made


def finite(made) -> bool:
    return all(torch.isfinite(p).all() for p in made.model.parameters())


# ---- the parts ----


@pytest.mark.parametrize(
    ("gradients", "expected"),
    [
        ([[1.0, 2.0], None], True),
        ([None], True),
        ([[1.0, 2.0], [math.nan, 0.0]], False),
        ([[math.inf, 0.0]], False),
        ([[2e38, 2e38]], False),  # each a number, their norm none in float32
    ],
)
def test_finite_gradients(gradients, expected):
    assert gradients_are_finite([parameter(g) for g in gradients], lambda t: t) is expected


def test_one_process_with_a_broken_gradient_speaks_for_all():
    assert not gradients_are_finite([parameter([1.0, 1.0])], lambda t: t + 1)


def test_dropped_gradients():
    frozen, *others = parameter([1.0, 1.0]), parameter(None), parameter([3.0, 3.0])
    frozen.requires_grad_(False)
    drop_gradients([frozen, *others])
    assert [p.grad for p in (frozen, *others)] == [None] * 3
    drop_gradients([frozen, *others], keep_one=True)
    assert frozen.grad is None and others[0].grad.tolist() == [0, 0] and others[1].grad is None


def test_a_closed_gate_leaves_weights_moments_and_decay_alone():
    gate, p = StepGate(), parameter([1.0, 1.0])
    optimizer = torch.optim.AdamW([p], lr=0.1, weight_decay=0.5)
    gate.guard(optimizer)
    gate.guard(optimizer)
    Accelerator(cpu=True)
    gate.guard(AcceleratedOptimizer(optimizer))  # as in a second call of `train`
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)  # wraps `step` as well
    gate.is_open = False
    optimizer.step()
    assert p.tolist() == [1, 1] and not optimizer.state
    gate.is_open = True
    optimizer.step()
    assert p.tolist() != [1, 1] and optimizer.state[p]["step"] == 1
    assert gate.state_dict() == {"taken": 1, "lost": -1, "stopped": False}


def test_a_run_is_lost_after_some_rollouts_without_a_step():
    gate = StepGate()
    gate.begin_rollout(1e-3)  # nothing comes before the first rollout
    for _ in range(MAX_LOST_ROLLOUTS - 1):
        gate.begin_rollout(1e-3)
    again = StepGate()
    again.load_state_dict(gate.state_dict())
    for one in (gate, again):
        with pytest.raises(RuntimeError, match="last 3 rollouts was skipped, .* `learning_rate` below 0.001"):
            one.begin_rollout(1e-3)


def test_rollouts_without_a_step_are_counted_from_the_last_one_with_a_step():
    gate, optimizer = StepGate(), torch.optim.SGD([parameter([1.0, 1.0])], lr=0.1)
    gate.guard(optimizer)
    for _ in range(2):
        for _ in range(MAX_LOST_ROLLOUTS):
            gate.begin_rollout(1e-3)
        optimizer.step()
    for _ in range(MAX_LOST_ROLLOUTS):  # the first one follows the step
        gate.begin_rollout(1e-3)
    with pytest.raises(RuntimeError, match="last 3 rollouts was skipped"):
        gate.begin_rollout(1e-3)


@pytest.mark.parametrize(
    ("loss", "ratio", "approx_kl", "is_open", "stopped"),
    [
        (9.9, 1.9, 0.04, True, False),
        (-9.9, 1.9, 0.04, True, False),
        (10.1, 1.0, 0.0, False, False),
        (-10.1, 1.0, 0.0, False, False),
        (1.0, 2.1, 0.0, False, False),
        (1.0, 0.1, 0.0, True, False),
        (math.nan, 1.0, 0.0, False, False),
        (-math.inf, 1.0, 0.0, False, False),
        (1.0, math.nan, 0.0, False, False),
        (1.0, 1.0, 0.06, True, True),  # this step is taken, and the rest of the passes is not
    ],
)
def test_which_minibatches_may_be_learned_from(loss, ratio, approx_kl, is_open, stopped):
    gate, model, limits = StepGate(), nn.Linear(2, 1), StepLimits(2.0, 10.0, 0.05)
    model(torch.ones(1, 2)).sum().backward()
    metrics = {"loss": loss, "ratio/mean": ratio, "approx_kl": approx_kl}
    given = {"step": 3, "scaled": False, "reduce": lambda t: t}
    assert gate.decide(model, metrics, limits, **given) is not is_open
    assert (gate.is_open, gate.stopped) == (is_open, stopped)
    assert all((p.grad is not None) is is_open for p in model.parameters())
    if stopped:
        model(torch.ones(1, 2)).sum().backward()
        assert gate.decide(model, {}, limits, **given) and not gate.is_open
        again = StepGate()
        again.load_state_dict(gate.state_dict())
        assert again.stopped
        gate.begin_rollout(1e-3)
        assert not gate.stopped


def test_a_minibatch_without_anything_to_learn_from_is_skipped():
    gate, model = StepGate(), nn.Linear(2, 1)
    model(torch.ones(1, 2)).sum().backward()
    metrics = {"loss": 0.0, "ratio/mean": 0.0, "approx_kl": 0.0}
    none = StepLimits(None, None, None)
    assert gate.decide(model, metrics, none, step=3, scaled=False, reduce=lambda t: t, empty=True)
    assert not gate.is_open and all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(("rate", "rates"), [(None, [(3, 0.1)]), (0.5, [(2, 0.1), (1, 0.5)]), (0.0, [(2, 0.1)])])
def test_the_critic_has_groups_of_its_own_or_none(rate, rates):
    policy, critic = [parameter(None), parameter(None)], parameter(None)
    optimizer = torch.optim.AdamW([*policy, critic], lr=0.1, weight_decay=0.3)
    split_critic(optimizer, [("critic", critic)], rate)
    groups = optimizer.param_groups
    assert [(len(group["params"]), group["lr"]) for group in groups] == rates
    assert all(group["weight_decay"] == 0.3 for group in groups)
    if rate:
        assert groups[1]["params"][0] is critic and groups[1]["critic"]


def test_the_loss_of_a_token_by_hand():
    batch = collate([[5]] * 2, [[8, 9]] * 2, [True] * 2, pad_token_id=0)
    batch.held_out = torch.tensor([False, True])

    def twice(*tokens: float) -> torch.Tensor:
        return torch.tensor([tokens, tokens])

    batch.advantages, batch.weights = twice(2.0, 1.0), twice(1.0, 0.5)
    batch.old_logps, batch.ref_logps = twice(-1.0, -1.0), twice(-1.2, -0.6 + math.log(1.5))
    batch.old_values, batch.returns = twice(1.0, 1.0), twice(2.0, 5.0)
    batch.kl_coefs = torch.tensor([0.25, 0.25])
    out = ForwardOutput(
        logps=twice(-1.0, -1.0 + math.log(1.5)),  # the ratio is 1, and 1.5
        entropy=twice(0.7, 0.3),
        values=twice(1.0, 3.0, 99.0),
        kl=twice(0.4, 0.8),
    )
    options = LossOptions(
        cliprange=0.2,
        cliprange_high=None,
        dual_clip=None,
        mask_ratio_range=None,
        cliprange_value=0.5,
        vf_coef=0.1,
        entropy_coef=0.1,
        kl_loss_coef=2.0,
        kl_loss_estimator="k2",
        use_bias_correction_kl=True,
    )
    found = token_losses(out, batch, options, value_scale=2.0)
    # Surrogate times the engine's weight, less 0.1 entropy; twice the weight and the ratio times k2 of 0.2 and -0.4;
    # a quarter of the exact KL, which has no weight.
    first, second = -2.0 - 0.07 + 2 * 0.02 + 0.1, -1.2 * 0.5 - 0.03 + 2 * 0.5 * 1.5 * 0.08 + 0.2
    # In units of 2: 0.5 is 0.5 away from 1; 1.5 counts as 1.0, which is 1.5 away from 2.5. The critic does not learn
    # from a held-out completion, whose error is shown nevertheless.
    values = [0.5 * 0.25, 0.5 * 2.25]
    learned = [first + 0.1 * values[0], second + 0.1 * values[1]]
    assert found["value_loss"].tolist() == [pytest.approx(values)] * 2
    assert found["loss"].tolist() == [pytest.approx(learned, abs=1e-6), pytest.approx([first, second], abs=1e-6)]
    assert found["policy_loss"].tolist() == [pytest.approx([-2.0, -1.2])] * 2
    assert found["approx_kl"].tolist() == [pytest.approx([0.0, 0.5 - math.log(1.5)], abs=1e-6)] * 2
    assert found["ratio/max"].tolist() == [pytest.approx([1.0, 1.5])] * 2
    assert found["clip_fraction"].tolist() == found["value_clip_fraction"].tolist() == [[False, True]] * 2
    # Without values there is the policy's loss alone.
    actor = token_losses(out._replace(values=None), batch, options)
    assert actor["loss"].tolist() == [pytest.approx([first, second], abs=1e-6)] * 2 and "value_loss" not in actor


def test_the_pieces_of_a_minibatch():
    rollout = collate([[1]] * 6, [[i] for i in range(10, 16)], [True] * 6, pad_token_id=0)
    texts = collate([[1]] * 4, [[i] for i in range(20, 24)], [True] * 4, pad_token_id=0)
    minibatch = Minibatch(rollout, torch.tensor([5, 3, 1, 0]), texts, lambda count: count * 2)
    assert minibatch.tokens == 8 and minibatch.texts.tokens == 8, "over two processes"

    def ids(pieces):
        both = [piece.texts if isinstance(piece, SupervisedBatch) else piece for piece in pieces]
        return [piece.input_ids[:, 1].tolist() for piece in both]

    assert ids(minibatch.pieces(slice(0, 2), MicroBatches(2, "size"))) == [[15, 13], [20, 21]]
    assert ids(minibatch.pieces(slice(2, 4), MicroBatches(1, "size"))) == [[11], [10], [22], [23]]


def test_a_minibatch_is_empty_without_completions_to_learn_from_and_without_texts():
    rollout = collate([[1]] * 4, [[i] for i in range(10, 14)], [True] * 4, pad_token_id=0)
    texts, rows = collate([[1]] * 2, [[20], [21]], [True] * 2, pad_token_id=0), torch.tensor([0, 2])
    rollout.completion_mask[rows] = False  # none has a reward
    assert Minibatch(rollout, rows, None, lambda count: count).is_empty
    assert not Minibatch(rollout, rows, texts, lambda count: count).is_empty
    assert not Minibatch(rollout, rows, None, lambda count: count + 1).is_empty, "another process has some"
    assert not Minibatch(rollout, torch.tensor([0, 1]), None, lambda count: count).is_empty


def test_samples_of_similar_length_are_learned_from_together():
    lengths = [3, 90, 4, 80, 5, 85]
    rollout = collate([[1]] * 6, [[i] * n for i, n in enumerate(lengths, 10)], [True] * 6, pad_token_id=0)
    texts = [[20] * 2, [21] * 200, [22] * 3, [23] * 170]
    texts = collate([[1]] * 4, texts, [True] * 4, pad_token_id=0)
    rows = rollout.by_length(torch.tensor([0, 1, 2, 3]))
    minibatch = Minibatch(rollout, rows, texts, lambda count: count)

    def shapes(micro_batch, sizes):
        both = minibatch.pieces(micro_batch, sizes)
        found = [piece.texts if isinstance(piece, SupervisedBatch) else piece for piece in both]
        return [(piece.input_ids[:, 1].tolist(), piece.completion_length) for piece in found]

    whole = MicroBatches(4, "size")
    assert shapes(slice(0, 4), whole) == [([11, 13], 90), ([12, 10], 4), ([21, 23], 200), ([22, 20], 3)]
    # With several processes each must have as many passes as the others.
    whole.fixed = True
    assert shapes(slice(0, 4), whole) == [([11, 13, 12, 10], 90), ([21, 23, 22, 20], 200)]
    assert shapes(slice(2, 4), MicroBatches(2, "size")) == [([12, 10], 4), ([22, 20], 3)]


# ---- the trainer ----


def test_losses_are_multiplied_by_the_processes_whose_gradients_are_averaged(tmp_path, monkeypatch):
    """Those of completions and those of texts, each a share of a sum over all processes."""
    texts = Dataset.from_dict({"text": ["the cat sat", "a small dog ran"]})
    made = scripted.trainer(tmp_path, ptx_dataset=texts, ptx_coef=0.5, max_steps=1, total_episodes=None)
    made.train()
    pieces = list(made._minibatch.pieces(slice(0, 4), made.micro_batches))
    assert {type(piece) for piece in pieces} == {Rollout, SupervisedBatch}
    alone = [made.compute_loss(made.model, piece).item() for piece in pieces]
    monkeypatch.setattr(Accelerator, "num_processes", 3)
    assert [made.compute_loss(made.model, piece).item() for piece in pieces] == pytest.approx([3 * x for x in alone])
    assert all(abs(x) > 1e-6 for x in alone)


def break_gradients(monkeypatch, made, steps):
    """Make one number of one gradient NaN in these steps, after a loss that is finite."""
    learn = PPOTrainer._learn

    def broken(self, *args, **kwargs):
        loss = learn(self, *args, **kwargs)
        if self.state.global_step in steps:
            made.model.policy.model.layers[0].mlp.up_proj.weight.grad[0, 0] = math.nan
        return loss

    monkeypatch.setattr(PPOTrainer, "_learn", broken)


def test_a_step_whose_gradient_is_no_number_is_dropped_and_counted(tmp_path, monkeypatch):
    made = scripted.trainer(tmp_path, weight_decay=0.1)
    break_gradients(monkeypatch, made, steps={1})
    made.train()
    lines = scripted.logs(made)
    assert [line["skipped_minibatches"] for line in lines] == [0, 1, 0, 0] and finite(made)
    assert ["loss" in line for line in lines] == [True, False, True, True]
    assert int(next(iter(made.optimizer.state.values()))["step"]) == 3


def test_rollouts_of_nothing_but_skips_end_the_run(tmp_path, monkeypatch):
    made = scripted.trainer(tmp_path, total_episodes=8 * 8)
    break_gradients(monkeypatch, made, steps=range(2, 100))
    with pytest.raises(RuntimeError, match="Every minibatch of the last 3 rollouts was skipped"):
        made.train()
    assert made.state.global_step == 8 and finite(made)


@pytest.mark.parametrize("part", ["policy.model.embed_tokens.weight", "value_head.weight"])
def test_weights_that_are_no_numbers_end_the_run_at_the_next_rollout(tmp_path, part):
    class Breaker(TrainerCallback):
        def on_step_end(self, args, state, control, model, **kwargs):
            if state.global_step == 2:
                dict(model.named_parameters())[part].data.fill_(math.nan)

    made = scripted.trainer(tmp_path, callbacks=[Breaker()])
    with pytest.raises(RuntimeError, match="Step 2: .* of a fresh rollout are not finite, .* lower `learning_rate`"):
        made.train()


# ---- fp16 ----


def with_scaler(made, **options):
    """fp16's gradient scaler, which accelerate makes on a GPU only."""
    made.accelerator.scaler = torch.amp.GradScaler("cpu", **options)
    made.accelerator.native_amp = True
    made.accelerator.state._mixed_precision = "fp16"
    return made


@pytest.fixture
def fp16_state():
    from accelerate.state import AcceleratorState

    yield
    AcceleratorState._reset_state()


def test_under_fp16_passes_stop_without_a_crash_and_the_scale_stays(tmp_path, fp16_state):
    settings = {"num_ppo_epochs": 6, "total_episodes": 8, "lr_scheduler_type": "constant", "target_approx_kl": 1e-4}
    made = with_scaler(scripted.trainer(tmp_path, **settings), init_scale=256.0)
    made.train()
    assert [line["skipped_minibatches"] for line in scripted.logs(made)] == [0, 0, 1, 1, 1, 1]
    assert made.accelerator.scaler.get_scale() == 256.0
    assert int(next(iter(made.optimizer.state.values()))["step"]) == 2


def test_under_fp16_only_the_critic_learns_in_warm_up(tmp_path, fp16_state):
    made = with_scaler(scripted.trainer(tmp_path, critic_warmup_rollouts=1, total_episodes=8), init_scale=256.0)
    before = scripted.weights(made)
    made.train()
    moved = {name for name, p in scripted.weights(made).items() if not torch.equal(p, before[name])}
    assert moved == {"value_head.weight", "value_head.bias"}
    assert made.accelerator.scaler.get_scale() == 256.0


def test_under_fp16_an_overflow_is_the_scalers_to_skip_and_is_counted(tmp_path, fp16_state, monkeypatch):
    made = with_scaler(scripted.trainer(tmp_path), init_scale=256.0)
    break_gradients(monkeypatch, made, steps={1})
    made.train()
    assert [line["skipped_minibatches"] for line in scripted.logs(made)] == [0, 1, 0, 0] and finite(made)
    assert made.accelerator.scaler.get_scale() == 128.0
    assert int(next(iter(made.optimizer.state.values()))["step"]) == 3
