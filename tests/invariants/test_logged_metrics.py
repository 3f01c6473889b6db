# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""What reward functions log stays beside the trainer's own metrics, on one process and on two."""

import json
import warnings
from pathlib import Path

import pytest

from tests import scripted
from tests.launching import run_whole
from trl_ext import AdaptiveKL


def test_two_processes_agree_on_everything_that_is_logged(tmp_path):
    """gloo, real processes; the reward logs under the names of the trainer's metrics, and skips a quarter."""
    said = run_whole(Path(__file__).with_name("two_processes_logs.py"), tmp_path)
    first, second = (json.loads((tmp_path / f"left_{rank}.json").read_text()) for rank in range(2))
    # Twelve of sixteen samples count, and both measured KLs are far below the target: twice 0.8 x 12 / 100 less.
    assert first["coef"] == second["coef"] == pytest.approx(0.1 * (1 - 0.2 * 12 / 100) ** 2)
    for one, other in zip(first["log"], second["log"], strict=True):
        assert one["kl"] == other["kl"] < 0.5 and one["reward"] == other["reward"] < 10
        assert one["loss"] == pytest.approx(other["loss"]) and one["loss"] < 10 and one["kl_coef"] <= 0.1
        assert one["time/score"] < 40
        assert one["rewards/skipped_fraction"] == other["rewards/skipped_fraction"] == 0.25
        for log in (one, other):  # 10 from one process and 11 from the other; 3 from the second alone
            assert (log["mine/seen"], log["mine/max"], log["mine/rare"]) == (10.5, 11.0, 3.0)
    # Only the main process speaks, and writes the log file.
    assert sum(line.startswith("step ") for line in said.stdout.splitlines()) == len(first["log"])
    assert said.stderr.splitlines().count("... training") == 1
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == len(first["log"]) + 1
    for name in ("kl", "reward", "loss", "kl_coef", "time/score"):
        assert sum(f"'{name}'" in message for message in first["warnings"]) == 1


def test_no_metric_of_the_trainers_own_can_be_replaced(tmp_path):
    """A first run says which names there are; in a second one the reward logs under all of them."""

    def run(names: list[str]):
        def reward(completions, log_metric, **columns):
            for name in names:
                log_metric(name, 50.0)
            return scripted.reward(completions)

        made = scripted.trainer(
            tmp_path,
            reward_funcs=reward,
            kl_controller=AdaptiveKL(target=0.5, init_coef=0.1, horizon=100),
            eval_strategy="steps",
            eval_steps=2,
            eval_dataset=scripted.prompts(4),
            max_loss=1e-9,  # every minibatch is skipped, so that nothing but the rollout is logged
        )
        made.train()
        return made

    clean = run([])
    entries = list(clean.state.log_history)
    names = sorted({name.removeprefix("eval_") for entry in entries for name in entry})
    # What a minibatch that was not skipped logs besides.
    names += [
        "policy_loss",
        "value_loss",
        "approx_kl",
        "clip_fraction",
        "ratio/max",
        "entropy",
        "grad_norm",
        "ptx_loss",
    ]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        poisoned = run([*names, "mine"])
    assert poisoned.kl_controller.coef == clean.kl_controller.coef
    assert any(entry.get("mine") == 50.0 for entry in poisoned.state.log_history)
    for one, other in zip(entries, poisoned.state.log_history, strict=True):
        assert other.keys() - {"mine", "eval_mine"} == one.keys()
        for name in one:
            timed = (
                name.removeprefix("eval_").startswith(("time/", "tokens_per")) or "second" in name or "runtime" in name
            )
            assert other[name] != 50.0 if timed else other[name] == pytest.approx(one[name], nan_ok=True), name
    told = [str(w.message) for w in caught if "by `log_metric`" in str(w.message)]
    assert sorted(told) == sorted(set(told)) and len(told) == len(set(names))
    assert told[0] == (
        "A reward function logs 'advantages/mean' by `log_metric`, which is a metric of the trainer's own; the "
        "trainer's is logged, so give yours another name."
    )
