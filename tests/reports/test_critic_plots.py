# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The plot of what the critic explains at each position, and the critic's part of the time."""

import json
import math

import pytest

from trl_ext.reports.content import Report
from trl_ext.reports.critic_plots import PRETRAINING_FILE, explained_by_position_plot, read_pretraining
from trl_ext.reports.plots import training_plots
from trl_ext.reports.report import plots_of

PRETRAINING = {"explained_variance": 0.31, "by_position": [0.02, 0.2, None, 0.5], "completions": 40}
EVALUATION = {"eval_explained_variance/to_token_1": 0.1, "eval_explained_variance/to_token_4": 0.4}


def test_positions_before_ppo_and_at_the_last_evaluation_are_in_the_report():
    history = [{"step": 1, **dict.fromkeys(EVALUATION, -1.0)}, {"step": 2, **EVALUATION}]
    report = Report("run", log_history=history, critic_pretraining=PRETRAINING)
    plot = next(plot for plot in plots_of(report) if plot.slug == "explained-variance-by-position")
    assert "0.31 over all tokens, 0.02 at token 1, 0.5 at token 4" in plot.caption
    assert "last evaluation, on evaluation prompts: 0.1 at token 1, 0.4 at tokens 3 to 4." in plot.caption
    assert plot.healthy.startswith("Rises with the position")


@pytest.mark.parametrize(
    ("pretraining", "history", "words"),
    [
        (None, [], None),
        ({"by_position": [None, math.nan, "text"]}, [{"eval_explained_variance/to_token_1": math.inf}], None),
        (PRETRAINING, [], "Before PPO"),
        (None, [EVALUATION], "At the last evaluation"),
        ({"by_position": [0.1]}, [], "– over all tokens, 0.1 at token 1"),
    ],
)
def test_either_alone_is_drawn_and_neither_is_not(pretraining, history, words):
    plot = explained_by_position_plot(pretraining, history)
    assert plot is None if words is None else words in plot.caption


def test_the_file_of_an_earlier_run_is_not_read(tmp_path):
    path = tmp_path / PRETRAINING_FILE
    assert read_pretraining(tmp_path, {"critic_pretraining_episodes": 8}) is None
    path.write_text(json.dumps(PRETRAINING))
    assert read_pretraining(tmp_path, {"critic_pretraining_episodes": 8}) == PRETRAINING
    assert read_pretraining(tmp_path, {"critic_pretraining_episodes": 0}) is None
    path.write_text("[")
    assert read_pretraining(tmp_path, {"critic_pretraining_episodes": 8}) is None


def test_the_time_of_the_critics_passes_is_drawn_where_there_are_any():
    times = {"time/generate": 2.0, "time/score": 1.0, "time/evaluate": 1.0, "time/learn": 1.0}
    shares = []
    for history in ([{"step": 1, **times}], [{"step": 1, "time/critic": 5.0, **times}]):
        shares.append(next(plot for plot in training_plots(history) if plot.slug == "time").caption)
    assert "critic" not in shares[0] and "Sampling 40%" in shares[0]
    assert "the critic's own passes 50%" in shares[1] and "ampling 20%" in shares[1]
