# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Quality of a model's completions: toxicity, perplexity under a frozen reference, diversity, the optimal frontier.

`python -m eval.quality --help` compares a model with a baseline; `python -m eval.quality.frontier --help` computes the
highest reward that any policy can reach for a given KL; `eval.quality.win_rate` and `eval.quality.reward_model` judge
pairs of answers and reward models. The three metrics are also `evaluate` modules, loaded by path.
"""
