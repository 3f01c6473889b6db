# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Every metric that a run logs: its name, unit, meaning, healthy range, and what to do outside that range.

The terminal, the report and the documentation take their words from this table.
"""

import re
from typing import NamedTuple

__all__ = ["GLOSSARY", "Metric", "find", "label_of"]


class Metric(NamedTuple):
    """A logged metric in words.

    Attributes:
        name: Its key in the log; `*` stands for the name of a reward function, phase or signal. Evaluations log the
            same names behind their prefix, such as `eval_`.
        group: Heading under which the metric belongs.
        label: The name in a few words; `*` as in `name`.
        unit: Unit of the value.
        meaning: What is measured, in one sentence.
        healthy: Values of a run that goes well.
        advice: What to do outside of them.
    """

    name: str
    group: str
    label: str
    unit: str
    meaning: str
    healthy: str
    advice: str


REWARD, KL, POLICY, CRITIC = "Reward", "KL to the reference", "Policy", "Critic"
TEXTS, PROGRESS, SPEED, MONITOR = "Completions", "Progress", "Speed", "Reward hacking"
FROM_REWARDS = "Logged by reward functions"

_NO_ADVICE = "Nothing to do: the value describes the run."
_TOO_FAST = "Lower `learning_rate` or `num_ppo_epochs`, or set `target_approx_kl`."
_SLOW_PHASE = "Read the `time/` metrics: they say which phase takes the time."

GLOSSARY: tuple[Metric, ...] = (
    Metric(
        "reward", REWARD, "reward", "units of the reward",
        "Mean score of the completions: the weighted sum of the reward functions, those in `reward_constraints` left "
        "out, within `reward_clip_range`, less `missing_eos_penalty`; the KL penalty is not part of it.",
        "Rises over the run, fast at first, then more slowly.",
        "Flat: raise `learning_rate` or the size of the rollout, and look at `reward_std`. Falling: lower "
        "`learning_rate`, and look at `kl` and `skipped_minibatches`.",
    ),
    Metric(
        "reward_std", REWARD, "spread of the reward", "units of the reward",
        "Standard deviation of the scores over the completions of a rollout.",
        "Clearly above 0; it may shrink slowly.",
        "At 0 every completion has the same score and nothing can be learned: use a reward with more levels, or sample "
        "with a higher `temperature`.",
    ),
    Metric(
        "rewards/*/mean", REWARD, "reward: *", "units of the reward",
        "Mean of one reward function over the completions, before its weight.",
        "None falls for long while `reward` rises.", "Raise the weight of the one that falls in `reward_weights`.",
    ),
    Metric(
        "rewards/*/std", REWARD, "spread of the reward: *", "units of the reward",
        "Standard deviation of one reward function over the completions of a rollout, before its weight.",
        "Times their weights, of the same order for all functions.",
        "A function with a far larger spread decides alone: lower its weight in `reward_weights`, or wrap it in "
        "`RunningNormalization`.",
    ),
    Metric(
        "rewards/skipped_fraction", REWARD, "completions without a score", "fraction",
        "Fraction of the completions that no reward function scored, because one failed or none applied.",
        "0; more than `max_reward_failures` (0.1) in one function ends the run.",
        "Read the warning, which names the function, the sample and the error.",
    ),
    Metric(
        "judge/*/mean", REWARD, "judge: *", "units of the judge",
        "Mean over the evaluation prompts of one of `eval_reward_funcs`, which the policy never learns from; logged by "
        "evaluations alone, as `eval_judge/<name>/mean`.",
        "Moves with `eval_reward`, in the direction that is better for the judge.",
        "Worse while `eval_reward` rises: the policy exploits its reward; keep an earlier checkpoint "
        "(`metric_for_best_model`), or raise `kl_coef`.",
    ),
    Metric(
        "judge/*/std", REWARD, "spread of the judge: *", "units of the judge",
        "Standard deviation of one of `eval_reward_funcs` over the evaluation prompts.",
        "Above 0.", "At 0 the judge says the same of every completion: look at the samples, and at the judge.",
    ),
    Metric(
        "kl", KL, "KL to the reference", "nats per completion",
        "KL divergence of the policy's next-token distribution from the reference's, over the whole vocabulary, summed "
        "over the states of a completion; mean over completions. Never negative.",
        "Begins at 0, grows and levels off; with `kl_target` its mean over ten rollouts is within 25% of the target.",
        "Too high: raise `kl_coef`, set `kl_target` with a `kl_controller`, or lower `learning_rate`. Near 0 to the "
        "end: raise `learning_rate` or lower `kl_coef`.",
    ),
    Metric(
        "kl_coef", KL, "KL coefficient", "units of the reward per nat",
        "Coefficient of the KL penalty in the reward, as the controller has set it.",
        "Constant without a controller; with one it settles once `kl` is near the target.",
        "Still rising at the end: `learning_rate` is too high for the target. Still falling: the target is more than "
        "the reward asks for; lower `kl_target`.",
    ),
    Metric(
        "entropy", POLICY, "entropy", "nats per token",
        "Mean entropy of the policy's next-token distribution, at the sampling temperature, while it learns.",
        "Falls slowly and stays above a third of its first value.",
        "Falling to 0: the policy says the same whatever the prompt; raise `kl_coef`, lower `learning_rate`, or set "
        "`entropy_coef` to about 0.01.",
    ),
    Metric(
        "rollout_entropy", POLICY, "entropy in the rollout", "nats per token",
        "The same entropy when the rollout was sampled, before the policy learned from it.",
        "Close to `entropy`.", "As for `entropy`.",
    ),
    Metric(
        "approx_kl", POLICY, "change of the policy on one rollout", "nats per token",
        "Mean KL between the policy that sampled the rollout and the policy that learns from it, by k3.",
        "0.0001 to 0.02; 0 in the first minibatch of a rollout.",
        f"Above: {_TOO_FAST[0].lower()}{_TOO_FAST[1:]} Far below: raise `learning_rate`.",
    ),
    Metric(
        "clip_fraction", POLICY, "clipped policy ratios", "fraction of tokens",
        "Fraction of the tokens whose ratio left the clip range, so that they did not learn.",
        "0.01 to 0.2; 0 in the first minibatch of a rollout.",
        f"Above 0.3: {_TOO_FAST[0].lower()}{_TOO_FAST[1:]} Always 0: the steps are small; raise `learning_rate`.",
    ),
    Metric(
        "masked_fraction", POLICY, "masked tokens", "fraction of tokens",
        "Fraction of the tokens that got no policy gradient, because a ratio of theirs left `mask_ratio_range`; logged "
        "with that option alone.",
        "Below 0.05; 0 in the first minibatch of a rollout, without `importance_sampling_correction`.",
        f"Above: {_TOO_FAST[0].lower()}{_TOO_FAST[1:]} Or widen the range.",
    ),
    Metric(
        "ratio/mean", POLICY, "mean policy ratio", "ratio",
        "Mean over tokens of the probability under the policy now, divided by that when the token was sampled.",
        "0.95 to 1.05; exactly 1 in the first minibatch of a rollout.",
        f"Outside: {_TOO_FAST[0].lower()}{_TOO_FAST[1:]} Minibatches above `max_ratio` are skipped.",
    ),
    Metric(
        "ratio/max", POLICY, "largest policy ratio", "ratio",
        "Largest ratio of a token since the last line of the log.",
        "Below 5.", _TOO_FAST,
    ),
    Metric(
        "policy_loss", POLICY, "policy loss", "advantage",
        "Mean of PPO's clipped loss over the tokens.",
        "Near 0, mostly between -0.1 and 0.1 with `whiten_advantages`; it need not fall.",
        "Large in absolute value: look at `ratio/max` and `advantages/std`.",
    ),
    Metric(
        "loss", POLICY, "loss", "advantage",
        "Mean over the tokens of the loss that is minimized: policy, value and entropy terms, and the KL loss where it "
        "is on.",
        "Finite; it need not fall.", "Read its parts, `policy_loss` and `value_loss`, in its place.",
    ),
    Metric(
        "grad_norm", POLICY, "gradient norm", "norm",
        "Norm of the gradients of an optimizer step, before `max_grad_norm` clips them.",
        "Steady, within a factor of ten of its first values.",
        "Growing, or inf: lower `learning_rate`, or scale the reward down with `RunningNormalization`.",
    ),
    Metric(
        "skipped_minibatches", POLICY, "skipped minibatches", "fraction of optimizer steps",
        "Fraction of the optimizer steps that left the weights alone: by `max_ratio`, `max_loss`, a gradient that is "
        "not finite, or the end of the passes by `target_approx_kl`.",
        "0; with `target_approx_kl` up to 0.5.",
        "The warning says why each was skipped; lower `learning_rate` or `num_ppo_epochs`.",
    ),
    Metric(
        "importance_weight", POLICY, "importance weight", "ratio",
        "Mean over tokens of the truncated weight pi_old / pi_engine of `importance_sampling_correction`; tokens out "
        "of `mask_ratio_range` count as 0.",
        "0.95 to 1.05.",
        "Outside: the engine samples from another distribution; use the same dtype, and leave `top_p`, `top_k` and "
        "`min_p` at their defaults.",
    ),
    Metric(
        "engine/logp_gap", POLICY, "gap to the sampling engine", "nats per token",
        "Mean over tokens of |log pi_old - log pi_engine|: how far the sampling engine's log-probabilities are from "
        "those of the training path, with `importance_sampling_correction`.",
        "Below 1e-4 in float32, below 0.05 in bf16.",
        "Larger: the engine has another dtype or other weights, or `top_p` and the like shape its samples. With "
        "`async_rollouts` the gap is also what the policy has learned from one rollout.",
    ),
    Metric(
        "engine/capped_fraction", POLICY, "capped importance weights", "fraction",
        "Fraction of tokens whose pi_old / pi_engine exceeds `importance_sampling_cap`.",
        "Below 0.01.", "Larger: as for `engine/logp_gap`.",
    ),
    Metric(
        "engine/staleness", POLICY, "staleness of the samples", "optimizer steps",
        "Optimizer steps between the weights that sampled the rollout and those that learn from it, with "
        "`async_rollouts`.",
        "The steps on one rollout, `num_ppo_epochs * num_mini_batches`; 0 for the first rollout of a run.",
        _NO_ADVICE,
    ),
    Metric(
        "ptx_loss", POLICY, "loss on the texts of PPO-ptx", "nats per token",
        "Language-model loss on the texts of `ptx_dataset`.",
        "Stays within 10% of its first value.", "Rising: raise `ptx_coef`.",
    ),
    Metric(
        "learning_rate", POLICY, "learning rate", "per step",
        "Learning rate of the policy; a critic with `critic_learning_rate` follows the same schedule.",
        "Follows `lr_scheduler_type` and `warmup_steps`.", _NO_ADVICE,
    ),
    Metric(
        "explained_variance", CRITIC, "explained variance", "fraction",
        "Part of the variance of the returns that the critic predicts: 1 is perfect, 0 is as good as a constant, less "
        "is worse than a constant.",
        "Above 0 after about ten rollouts, 0.3 to 0.9 later.",
        "Stays below 0: raise `critic_learning_rate` or `vf_coef`, set `critic_warmup_rollouts`, start the critic "
        "from a reward model, or let it read the reward so far (`critic_reads_reward_every`).",
    ),
    Metric(
        "critic_disagreement", CRITIC, "disagreement of two critics", "units of the reward",
        "With `num_critics` 2: mean over tokens of the standard deviation of the two critics' values.",
        "Rises from 0, then stays below `reward_std`.",
        "Large beside `reward_std`: each critic follows its own half of the prompts; lower `critic_learning_rate`.",
    ),
    Metric(
        "explained_variance/held_out", CRITIC, "explained variance, held out", "fraction",
        "Part of the variance of the Monte-Carlo returns (score less KL penalty) that the critic predicts on held-out "
        "prompts, from which it never learns; absent where a rollout has fewer than two of them. All prompts of an "
        "evaluation are such.",
        "0.2 to 0.7 from the first rollout on with a pretrained critic; below the explained variance of a short "
        "`lam_critic`, whose targets contain the critic's own values.",
        "Far below `explained_variance`: the critic learns by heart; lower `critic_epochs` or `critic_learning_rate`. "
        "Falling: raise `critic_epochs`.",
    ),
    Metric(
        "explained_variance/to_token_*", CRITIC, "explained variance up to token *", "fraction",
        "In evaluations: `explained_variance/held_out` of the tokens after half of that position and up to it (tokens "
        "5 to 8 for 8), which says where in a completion the critic helps; absent for fewer than ten tokens.",
        "Rises with the position: the end of a completion tells more about its reward than the prompt.",
        "Below 0 at the first tokens: the prompt says little about the reward, or the critic is behind; raise "
        "`critic_pretraining_episodes` or `critic_epochs`.",
    ),
    Metric(
        "value_loss", CRITIC, "value loss", "squared units of the reward (`scale_returns`: variances of the return)",
        "Mean over tokens of half the squared error of the critic, clipped by `cliprange_value`.",
        "Falls in the first rollouts, then stays level.",
        "Rising: lower `critic_learning_rate`. Large beside `reward_std` squared (or above 0.5 with `scale_returns`): "
        "raise it, or set `scale_returns`.",
    ),
    Metric(
        "value_clip_fraction", CRITIC, "clipped values", "fraction of tokens",
        "Fraction of the tokens whose value left `cliprange_value`, so that it did not learn.",
        "Below 0.3.",
        "Above: raise `cliprange_value`, whose unit is that of the reward (a standard deviation of the return with "
        "`scale_returns`), or set it to None.",
    ),
    Metric(
        "critic_grad_norm", CRITIC, "gradient norm of the critic", "variances of the return per unit of weight",
        "Mean norm of the gradient in the critic's own optimizer steps (`critic_epochs`), before clipping.",
        "Within a factor of 5 of `critic_max_grad_norm`.",
        "Far above: lower `critic_learning_rate`, or use larger minibatches (fewer `critic_mini_batches`).",
    ),
    Metric(
        "critic_skipped_steps", CRITIC, "skipped steps of the critic", "fraction of steps",
        "Fraction of the critic's own optimizer steps (`critic_epochs`) that were dropped because the gradient was not "
        "finite.",
        "0.", "Above: lower `critic_learning_rate`, and compute in bf16 or float32.",
    ),
    Metric(
        "critic_pretraining/*", CRITIC, "critic's pretraining: *", "depends on the metric",
        "`explained_variance` on held-out prompts and `value_loss` after each pass (`epoch`) of the critic's "
        "pretraining; the weights of the best pass are kept.",
        "The explained variance rises from pass to pass, and falls in the end at most a little.",
        "Falls from the first pass on: lower `critic_pretraining_learning_rate`, or sample more "
        "`critic_pretraining_episodes`. Still rising in the last pass: raise `critic_pretraining_epochs`.",
    ),
    Metric(
        "advantages/mean", CRITIC, "mean advantage", "units of the reward; standard deviations if whitened",
        "Mean of the advantages over the tokens.",
        "0 with `whiten_advantages`; otherwise near 0.",
        "Far from 0 without whitening: the critic is off; look at `explained_variance`.",
    ),
    Metric(
        "advantages/std", CRITIC, "spread of the advantages", "units of the reward; standard deviations if whitened",
        "Standard deviation of the advantages over the tokens.",
        "1 with `whiten_advantages`; otherwise clearly above 0.",
        "At 0 there is nothing to learn from: look at `reward_std`.",
    ),
    Metric(
        "completions/mean_length", TEXTS, "completion length", "tokens",
        "Mean number of tokens of a completion, the token that ends it included.",
        "Within a factor of 1.5 of its first value, unless the reward asks for another length.",
        "Shrinking: add a `LengthReward`. Growing: wrap the reward in `LengthDebiased`, or set `missing_eos_penalty`.",
    ),
    Metric(
        "completions/terminated_fraction", TEXTS, "completions that ended by themselves", "fraction",
        "Fraction of the completions that ended with an EOS token or a stop string, and not at the length limit.",
        "Above 0.9 for answers in a chat; steady for continuations of a text.",
        "Low: raise `max_completion_length`, or set `missing_eos_penalty`.",
    ),
    Metric(
        "episodes", PROGRESS, "episodes", "completions",
        "Completions sampled so far for training, over all processes and all resumed parts of the run.",
        "Grows by the size of the rollout.", _NO_ADVICE,
    ),
    Metric(
        "step", PROGRESS, "optimizer step", "steps",
        "Optimizer steps taken so far; each rollout gives `num_ppo_epochs * num_mini_batches` of them.",
        "Grows to the total that the first line in the terminal names.", _NO_ADVICE,
    ),
    Metric(
        "epoch", PROGRESS, "epoch", "passes over the prompts",
        "Part of the training prompts that the run has gone through; above 1 they are seen again.",
        "Grows steadily.", "Far above 10: give more prompts.",
    ),
    Metric(
        "padding_fraction", SPEED, "padding", "fraction of columns",
        "Fraction of the columns in the forward passes over a rollout that were padding; learning has about the same.",
        "Below 0.3.",
        "Above: raise `gradient_accumulation_steps`, since samples of similar length are sought among those of an "
        "optimizer step, or lower `per_device_train_batch_size`.",
    ),
    Metric(
        "tokens_per_second", SPEED, "speed", "completion tokens per second",
        "Completion tokens of a rollout divided by the seconds for sampling, scoring, forward passes and learning.",
        "Steady.", _SLOW_PHASE,
    ),
    Metric(
        "time/generate", SPEED, "time for sampling", "seconds per rollout",
        "Time for sampling the completions of a rollout.",
        "Usually the largest part.",
        "Raise `local_rollout_forward_batch_size` where memory allows, or lower `max_completion_length`.",
    ),
    Metric(
        "time/score", SPEED, "time for the rewards", "seconds per rollout",
        "Time for the reward functions on a rollout, retries included.",
        "Below that for sampling.", "Score in batches, use async functions, and set `reward_timeout`.",
    ),
    Metric(
        "time/evaluate", SPEED, "time for forward passes", "seconds per rollout",
        "Time for the log-probabilities and values of a rollout under policy, critic and reference.",
        "Below that for sampling.", "Raise `per_device_train_batch_size` where memory allows.",
    ),
    Metric(
        "time/judge", SPEED, "time for the judges", "seconds per evaluation",
        "Time of `eval_reward_funcs` in an evaluation, retries included; logged by evaluations alone.",
        "Below that for sampling.", "Judge in batches, use async functions, or evaluate on fewer prompts.",
    ),
    Metric(
        "time/critic", SPEED, "time for the critic's own passes", "seconds per rollout",
        "Time of the critic's own passes over a rollout (`critic_epochs`).",
        "Below `time/learn` times the optimizer steps on a rollout.", "Lower `critic_epochs`.",
    ),
    Metric(
        "time/learn", SPEED, "time for learning", "seconds per optimizer step",
        "Time for the forward and backward passes of one optimizer step.",
        "Steady.", "Raise `per_device_train_batch_size`, or switch `gradient_checkpointing` off, where memory allows.",
    ),
    Metric(
        "runtime", SPEED, "duration of the evaluation", "seconds",
        "Time for the whole evaluation; logged behind its prefix alone, as `eval_runtime`.",
        "A small part of the time between evaluations.", "Raise `eval_steps`, or evaluate on fewer prompts.",
    ),
    Metric(
        "samples_per_second", SPEED, "speed of the evaluation", "completions per second",
        "Evaluation prompts divided by the duration of the evaluation.", "Steady.", _NO_ADVICE,
    ),
    Metric(
        "steps_per_second", SPEED, "batches of the evaluation per second", "batches per second",
        "Batches of the evaluation divided by its duration.", "Steady.", _NO_ADVICE,
    ),
    Metric(
        "model_preparation_time", SPEED, "time to prepare the model", "seconds",
        "Time to prepare the model for an evaluation before training.", "Below a second on one device.", _NO_ADVICE,
    ),
    Metric(
        "train_loss", PROGRESS, "mean loss", "advantage",
        "Mean of `loss` over the run, in the last line of the log.", "Finite; it says little about PPO.", _NO_ADVICE,
    ),
    Metric(
        "train_runtime", SPEED, "duration of the training", "seconds",
        "Time of the call of `train`, in the last line of the log.", "Steady from run to run.", _SLOW_PHASE,
    ),
    Metric(
        "train_samples_per_second", SPEED, "completions per second", "completions per second",
        "Completions sampled in this call of `train` divided by its duration.", "Steady.", _SLOW_PHASE,
    ),
    Metric(
        "train_steps_per_second", SPEED, "optimizer steps per second", "steps per second",
        "Optimizer steps of the run divided by the duration of this call of `train`.", "Steady.", _SLOW_PHASE,
    ),
    Metric(
        "total_flos", SPEED, "floating-point operations", "operations",
        "The Trainer's estimate of the work; it counts no rollouts and is 0 for PPO.", "0.", _NO_ADVICE,
    ),
    Metric(
        "monitor/gold", MONITOR, "gold score", "units of the gold reward",
        "Mean score by the gold reward of a `RewardHackingMonitor`, which is never trained on.",
        "Rises together with `reward`.",
        "Falling while `reward` rises: stop at its best value (`metric_for_best_model`), and raise `kl_coef`.",
    ),
    Metric(
        "monitor/gold/*", MONITOR, "gold score: *", "units of the gold reward",
        "Mean gold score of the prompts of the category that the metric is named after.",
        "Rises, or stays where it began.", "Falling while `reward` rises: give the category more prompts.",
    ),
    Metric(
        "monitor/gold_in_budget", MONITOR, "gold score within the KL budget", "units of the gold reward",
        "The gold score of an evaluation where `kl` is within `max_kl`, NaN otherwise; not in the log, but there for "
        "`metric_for_best_model`.",
        "Rises, and is not NaN.", "Always NaN: raise `max_kl`, or hold the KL down with `kl_target`.",
    ),
    Metric(
        "monitor/repetition", MONITOR, "repetition", "fraction of 3-grams",
        "Mean fraction of a completion's token 3-grams that occur in it again.",
        "Within 0.1 of its first values.", "Rising: add a `RepetitionReward`, or raise `kl_coef`.",
    ),
    Metric(
        "monitor/distinct_2", MONITOR, "variety (distinct-2)", "fraction of bigrams",
        "Different token bigrams divided by all, in equally long beginnings of the completions.",
        "Within a factor of 1.5 of its first values.",
        "Falling: completions become alike; raise `kl_coef`, or set `entropy_coef` to about 0.01.",
    ),
    Metric(
        "monitor/sqrt_kl", MONITOR, "root of the KL", "root of nats",
        "Square root of `kl`, over which the laws of over-optimization are drawn.",
        "Grows and levels off with `kl`.", "As for `kl`.",
    ),
    Metric(
        "monitor/alarms", MONITOR, "alarms", "alarms",
        "Alarms of the monitor so far, at most one a signal.",
        "0.", "Read the warning and the samples; `stop_on_alarm=True` ends a run at the first alarm.",
    ),
    Metric(
        "monitor/evidence/*", MONITOR, "evidence: *", "fraction of the alarm's limit",
        "Evidence of the signal that the metric is named after; 1 raises the alarm.",
        "Below 1, and back to 0 from time to time.", "Rising to 1: read the samples before the alarm comes.",
    ),
    Metric(
        "constraints/*/multiplier", REWARD, "multiplier: *", "weight",
        "Multiplier of a function in `reward_constraints`, which stands in the place of its weight.",
        "Moves in the first rollouts, then settles.",
        "At its upper limit, 1,000: the bound cannot be kept within the KL; raise `kl_target`, or loosen the bound. At "
        "its lower limit, 0.001: the bound is kept without effort.",
    ),
    Metric(
        "constraints/*/violation", REWARD, "violation of the bound: *", "units of the reward",
        "Distance of a function's mean in the rollout from its bound in `reward_constraints`; positive out of bounds.",
        "Falls to 0 and stays near it; below 0 where the bound is kept without effort.",
        "Stays above 0: train longer, raise `kl_target`, or loosen the bound.",
    ),
    Metric(
        "*/disagreement", FROM_REWARDS, "disagreement: *", "units of the reward",
        "Mean standard deviation between the members of an `Ensemble` on a completion.",
        "Within a factor of 1.5 of its first values.",
        "Rising: the policy leaves what the members were trained on; raise `kl_coef`, or aggregate by "
        "`mean_minus_std`.",
    ),
    Metric(
        "*/slope", FROM_REWARDS, "reward per token: *", "units of the reward per token",
        "Slope of the line of reward over length that `LengthDebiased` takes away.",
        "Settles after the first rollouts.", _NO_ADVICE,
    ),
    Metric(
        "*/length_correlation", FROM_REWARDS, "correlation with length: *", "correlation",
        "Correlation of reward and length before `LengthDebiased` takes the line away.",
        "Between -0.5 and 0.5.",
        "Beyond: the reward measures little but length; train the reward model on pairs of equal lengths.",
    ),
)  # fmt: skip

_EXACT = {metric.name: metric for metric in GLOSSARY}
_PATTERNS = [
    (re.compile(re.escape(metric.name).replace(r"\*", "(.+)")), metric) for metric in GLOSSARY if "*" in metric.name
]


def find(name: str) -> Metric | None:
    """Return the entry of a logged name, also one behind the prefix of an evaluation; None for a name of the user's.

    Args:
        name: A key of the log, such as `rewards/toxicity/mean`, `eval_kl` or `eval_long_prompts_kl`.
    """
    return _found(name)[0]


def label_of(name: str) -> str:
    """Return the label of a logged name with the name of the function or signal in it; the name itself if unknown."""
    metric, what = _found(name)
    return name if metric is None else metric.label.replace("*", what)


def _found(name: str) -> tuple[Metric | None, str]:
    """Return the entry of a name, and what its `*` stands for."""
    is_evaluation = name.startswith(("eval_", "test_"))
    while name:
        if name in _EXACT:
            return _EXACT[name], ""
        for pattern, metric in _PATTERNS:
            if match := pattern.fullmatch(name):
                return metric, match[1]
        # The prefix of an evaluation ends at one of the underscores: `eval_kl`, `eval_long_prompts_kl`.
        name = name.partition("_")[2] if is_evaluation else ""
    return None, ""
