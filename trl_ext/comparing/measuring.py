# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Samples of two models on the same prompts, and every measure of them with paired bootstrap intervals."""

import gc
import math
from contextlib import nullcontext
from typing import NamedTuple

from tqdm.auto import tqdm

from trl_ext.actor_critic.names import load_tokenizer
from trl_ext.evaluation.intervals import Interval
from trl_ext.evaluation.judges import EndpointJudge, Outcome, RewardJudge, compare_scores
from trl_ext.evaluation.measures import (
    Measure,
    compare,
    diversity_measures,
    length_measures,
    perplexity_measure,
    reward_measures,
    toxicity_measures,
)
from trl_ext.evaluation.sampling import Samples, check_lengths, sample
from trl_ext.evaluation.win_rates import Comparisons, bootstrap_win_rate, count
from trl_ext.experience.prompts import tokenize_prompts
from trl_ext.monitoring.console import CONSOLE
from trl_ext.rewards import RewardRunner
from trl_ext.running.finished import load_finished
from trl_ext.running.named_rewards import load_rewards
from trl_ext.running.pairs import Member, load_pair
from trl_ext.running.reward_state import restore_rewards
from trl_ext.text.decoding import as_completions, gap_before_answer
from trl_ext.text.rows import Text, is_conversation, render

from .request import Request

__all__ = ["Comparison", "Side", "WinRate", "measure"]


class Side(NamedTuple):
    """One of the two models, on P prompts.

    Attributes:
        title: Its name.
        samples: One completion for each prompt.
        rewards: P rewards by name, None where one does not apply.
        toxicity: Probability that each completion is toxic; None without a classifier.
    """

    title: str
    samples: Samples
    rewards: dict[str, list[float | None]]
    toxicity: list[float] | None


class WinRate(NamedTuple):
    """Outcomes of P comparisons of the model with the baseline.

    Attributes:
        outcomes: As the judge returned them.
        counts: Wins, losses, ties and comparisons without a verdict.
        interval: Win rate, a tie counting half, with its bootstrap interval over prompts.
        disagreements: Pairs that a judge of both orders found better in both positions; None for other judges.
    """

    outcomes: list[Outcome]
    counts: Comparisons
    interval: Interval
    disagreements: int | None


class Comparison(NamedTuple):
    """Two models compared.

    Attributes:
        sides: The model and the baseline.
        measures: For each measure the intervals of `model`, `baseline`, `difference` and `ratio`.
        win_rate: Of the model against the baseline; None without a judge.
    """

    sides: tuple[Side, Side]
    measures: dict[str, dict[str, Interval]]
    win_rate: WinRate | None


def measure(request: Request) -> Comparison:
    """Load, sample, score and compare.

    Raises:
        ValueError, OSError: when weights cannot be read, a prompt does not fit, or a judge refuses all requests.
        RuntimeError, TypeError: when a reward function fails on every sample, or breaks its contract.
    """
    samples: list[tuple[str, Samples]] = []
    perplexities: list[Measure] = []
    for member in load_pair(request.pair):
        samples.append((member.title, _sample(member, request)))
        if request.reference is None and len(samples) == 2:
            perplexities = [_perplexity(made, member, request) for _, made in samples]
        del member
        gc.collect()  # the first model makes room for the second
    if request.reference is not None:
        frozen = _reference(request)
        perplexities = [_perplexity(made, frozen, request) for _, made in samples]
        del frozen
    rewards = load_rewards(
        request.rewards,
        request.weights,
        chat_template_kwargs=request.sampling.chat_template_kwargs,
        device=request.pair.loading["device"],
    )
    restore_rewards(rewards, request.pair.name, request.pair.baseline)
    (ours, mine), (theirs, other) = [_scored(title, made, rewards, request) for title, made in samples]
    mine["perplexity"], other["perplexity"] = perplexities
    options = {"num_resamples": request.num_resamples, "seed": request.seed}
    names = tqdm(_ordered(mine), desc="Bootstrap", leave=False, disable=None)
    measures = {name: compare(mine[name], other[name], **options) for name in names}
    return Comparison((ours, theirs), measures, _win_rate(ours, theirs, request))


def _ordered(measures: dict[str, Measure]) -> list[str]:
    """Return the names of measures with the perplexity before diversity and lengths."""
    first = [name for name in measures if name.startswith(("reward", "toxicity"))]
    return [*first, "perplexity", *(name for name in measures if name not in (*first, "perplexity"))]


def _sample(member: Member, request: Request) -> Samples:
    kwargs = dict(request.sampling.chat_template_kwargs)
    ids = tokenize_prompts(request.prompts, member.tokenizer, kwargs)
    check_lengths(ids, request.sampling.max_completion_length, member.model, "--max_completion_length")
    engine = request.sampling.engine(member.model, member.tokenizer, batch_size=request.batch_size)
    shown = CONSOLE.activity(f"sampling from {member.title}", len(ids), "completions", long=True)
    with member.switched(), shown as activity:
        return sample(
            member.model,
            member.tokenizer,
            engine,
            request.prompts,
            seed=request.seed,
            chat_template_kwargs=kwargs,
            on_progress=activity.advance,
        )


def _reference(request: Request) -> Member:
    assert request.reference is not None
    name, source = request.reference
    options = request.pair.loading
    tokenizer = load_tokenizer(name, {"trust_remote_code": options["trust_remote_code"]})
    loaded = load_finished(name, source, tokenizer, **options)
    return Member(name, loaded.causal_lm, loaded.tokenizer, nullcontext)


def _perplexity(samples: Samples, member: Member, request: Request) -> Measure:
    """Return the perplexity of completions under a reference, given prompts that a chat template may have written."""
    rendered = is_conversation(samples.prompts[0])
    if rendered:
        kwargs = dict(request.sampling.chat_template_kwargs)
        gap = gap_before_answer(member.tokenizer, kwargs)
        prompts: list[Text] = [render(prompt, member.tokenizer, kwargs) for prompt in samples.prompts]  # type: ignore[arg-type]
        texts = [gap + text if text else text for text in samples.completions]
        samples = samples._replace(prompts=prompts, completions=texts)
    with member.switched():
        return perplexity_measure(
            samples, member.model, member.tokenizer, batch_size=request.batch_size, rendered=rendered
        )


def _scored(
    title: str, samples: Samples, rewards: RewardRunner | None, request: Request
) -> tuple[Side, dict[str, Measure]]:
    """Return a side with its scores, and all its measures but the perplexity."""
    measures: dict[str, Measure] = {}
    by_name: dict[str, list[float | None]] = {}
    toxicity: list[float] | None = None
    if rewards is not None:
        by_name, totals = _rewards(rewards, samples, request)
        measures |= reward_measures(by_name, totals)
    if request.toxicity is not None:
        toxicity = request.toxicity.toxicity(samples.completions)
        measures |= toxicity_measures(toxicity)
    measures |= diversity_measures(samples.completions, request.tokenization) | length_measures(samples)
    return Side(title, samples, by_name, toxicity), measures


def _rewards(
    rewards: RewardRunner, samples: Samples, request: Request
) -> tuple[dict[str, list[float | None]], list[float | None]]:
    """Return the rewards of samples by name, and their weighted sums; None where there is none."""
    completions = as_completions(samples.prompts, samples.completions)
    scores = rewards(samples.prompts, completions, samples.completion_ids, request.columns, update_state=False)
    by_name = {
        name: [None if math.isnan(value) else value for value in values]
        for name, values in zip(rewards.names, scores.per_function.T.tolist(), strict=True)
    }
    totals = zip(scores.total.tolist(), scores.valid.tolist(), strict=True)
    return by_name, [total if valid else None for total, valid in totals]


def _win_rate(ours: Side, theirs: Side, request: Request) -> WinRate | None:
    if request.judge is None:
        return None
    prompts = ours.samples.prompts
    if isinstance(request.judge, RewardJudge):  # which would see no token ids
        runner = RewardRunner([request.judge.reward], max_reward_failures=1.0)
        restore_rewards(runner, request.pair.name, request.pair.baseline)
        mine, other = (_rewards(runner, side.samples, request)[1] for side in (ours, theirs))
        outcomes = compare_scores(mine, other, request.judge.margin)
    else:
        answers, baselines = (as_completions(prompts, side.samples.completions) for side in (ours, theirs))
        outcomes = request.judge(prompts, answers, baselines, **request.columns)
    if outcomes.count(None) == len(outcomes):
        raise ValueError(f"The judge '{request.judge_name}' decided none of the {len(outcomes)} comparisons.")
    interval = bootstrap_win_rate(outcomes, num_resamples=request.num_resamples, seed=request.seed)
    disagreements = request.judge.disagreements if isinstance(request.judge, EndpointJudge) else None
    return WinRate(outcomes, count(outcomes), interval, disagreements)
