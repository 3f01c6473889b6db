# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""One short line for each kind of entry of a log."""

import math
from typing import Any

import pytest

from trl_ext.monitoring.run_lines import Position, line_of

AT = Position(step=12, steps=640, seconds_left=190.0, kl_target=1.3)
TRAINING: dict[str, Any] = {
    "grad_norm": 3.2,
    "learning_rate": 1e-5,
    "reward": 0.4249,
    "rewards/toxicity/mean": 0.51,
    "rewards/length/mean": -0.09,
    "kl": 0.914,
    "kl_coef": 0.0481,
    "completions/mean_length": 9.53,
    "entropy": 3.21,
    "explained_variance": 0.31,
    "tokens_per_second": 1234.5,
    "episodes": 1536,
    "epoch": 0.5,
}


def test_a_line_of_training_whole():
    assert line_of(TRAINING, AT) == (
        "step  12/640  episodes 1,536  reward  0.42  (toxicity 0.51, length -0.090)  KL 0.91 (target 1.3)  coef 0.048  "
        "length 9.53  entropy 3.21  explained variance 0.31  tok/s 1,234  3:10 left"
    )


@pytest.mark.parametrize("width", [20, 40, 60, 79, 100, 120, 160, 200])
def test_a_line_fits_and_uses_the_room(width: int):
    line = line_of(TRAINING, AT, width)
    assert len(line) <= width and line.startswith("step  12/640")
    assert line == line_of(TRAINING, AT, len(line))


def test_what_matters_most_stays_in_a_narrow_terminal():
    line = line_of(TRAINING, AT, 79)
    assert "reward  0.42" in line and "KL 0.91 (target 1.3)" in line and "3:10 left" in line and "length 9.53" in line
    assert line_of(TRAINING, AT, 5) == "step  12/640", "the step stays in any case"


def test_a_single_reward_function_is_not_told_twice():
    logs = {name: value for name, value in TRAINING.items() if name != "rewards/length/mean"}
    assert "toxicity" not in line_of(logs, AT)


def test_an_evaluation_has_a_line_of_its_own():
    logs = {f"eval_{name}": value for name, value in TRAINING.items() if name not in ("epoch", "episodes")}
    line = line_of(logs | {"eval_runtime": 72.4, "eval_steps_per_second": 1.0, "episodes": 1536, "epoch": 0.5}, AT)
    assert line.startswith("eval  step  12/640  reward  0.42  (toxicity 0.51, length -0.090)  KL 0.91")
    assert line.endswith("in 1:12") and "left" not in line


def test_evaluations_on_several_data_sets_are_told_apart():
    logs = {"eval_long_prompts_reward": 0.5, "eval_long_prompts_kl": 0.2, "eval_long_prompts_runtime": 3.0}
    assert line_of(logs, Position(4)) == "eval long_prompts  step 4  reward  0.50  KL 0.20  in 0:03"


def test_the_end():
    logs = {"train_runtime": 751.2, "train_samples_per_second": 5.456, "train_loss": 0.1, "episodes": 4096}
    assert line_of(logs, AT) == "finished  step  12/640  episodes 4,096  in 12:31  5.46 completions a second"


def test_the_end_of_another_training_counts_samples():
    logs = {"train_runtime": 3.0, "train_samples_per_second": 17.4}
    assert line_of(logs, Position(4, 4)) == "finished  step 4/4  in 0:03  17.4 samples a second"


def test_other_entries_are_told_as_they_are():
    logs = {"loss": 2.3456, "mean_token_accuracy": 0.5, "learning_rate": 1e-5, "epoch": 0.5, "note": "text"}
    line = line_of(logs, Position(3, 50))
    assert line == "step  3/50  loss 2.35  mean token accuracy 0.50  learning rate 1e-05  note text"
    logs = {"learning_rate": 0.0, "num_tokens": 554.0}
    assert line_of(logs, Position(1, 9)) == "step 1/9  learning rate 0  num tokens 554"
    assert line_of({"num_tokens": 1167.0}, Position(2, 9)) == "step 2/9  num tokens 1,167"


def test_numbers_that_are_none_can_be_told():
    assert "KL nan" in line_of({"reward": math.inf, "kl": math.nan}, AT)


def test_a_bound_is_told_with_its_multiplier():
    bound = {"constraints/toxicity/multiplier": 2.13, "constraints/toxicity/violation": 0.012}
    assert "(toxicity 0.51 out of its bound by 0.012, multiplier 2.13, length -0.090)" in line_of(TRAINING | bound, AT)
    bound["constraints/toxicity/violation"] = -0.3
    assert "(toxicity 0.51 in its bound, multiplier 2.13, length -0.090)" in line_of(TRAINING | bound, AT)
