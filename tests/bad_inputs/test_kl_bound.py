# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""A bound on the KL in `reward_constraints`: the PID controller by another name, and what contradicts it."""

import re

import pytest

from tests import scripted
from trl_ext import PPOConfig
from trl_ext.kl_control import PIDKL, FixedKL


def config(tmp_path, **settings):
    return PPOConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True, **settings)


def test_it_is_the_pid_controller(tmp_path):
    made = scripted.trainer(tmp_path / "a", reward_constraints=["kl <= 0.25"], kl_coef=0.1)
    other = scripted.trainer(tmp_path / "b", kl_controller="pid", kl_target=0.25, kl_coef=0.1)
    for trainer in (made, other):
        assert isinstance(trainer.kl_controller, PIDKL) and trainer.kl_controller.target == 0.25
        trainer.train()
    assert not made.rewards.constraints, "no reward function has a bound"
    assert made.kl_controller.state_dict() == other.kl_controller.state_dict()
    assert made.kl_controller.coef != 0.1
    again = config(tmp_path, **{name: getattr(made.args, name) for name in ("reward_constraints", "kl_controller")})
    assert (again.kl_target, again.kl_controller) == (0.25, "pid"), "a saved configuration can be read again"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"kl_controller": "adaptive", "kl_target": 1.0},
            "`reward_constraints` has 'kl <= 1', which the PID controller holds, and `kl_controller` is 'adaptive': "
            "leave one of them out.",
        ),
        (
            {"kl_target": 2.0},
            "`reward_constraints` has 'kl <= 1' and `kl_target` is 2: give both the same number, or leave one of them "
            "out.",
        ),
    ],
)
def test_what_contradicts_it_is_refused(settings, message, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)):
        config(tmp_path, reward_constraints=["kl <= 1"], **settings)


def test_a_controller_by_hand_and_a_function_of_that_name_are_refused(tmp_path):
    bound = {"reward_constraints": ["kl <= 1"]}
    with pytest.raises(ValueError, match=r"'kl <= 1', and PPOTrainer was given the controller FixedKL"):
        scripted.trainer(tmp_path, kl_controller=FixedKL(coef=0.1), **bound)

    def kl(completions, **columns):
        return [0.0] * len(completions)

    with pytest.raises(ValueError, match=r"a reward function has that name too"):
        scripted.trainer(tmp_path, reward_funcs=kl, **bound)
