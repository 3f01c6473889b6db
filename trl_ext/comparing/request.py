# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""A comparison as it is asked for: models, prompts, rewards and judge by name, checked before anything is loaded."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from trl_ext.actor_critic.names import PolicySource, find_policy
from trl_ext.evaluation.judges import CRITERIA, EndpointJudge, Judge, RewardJudge
from trl_ext.rewards.by_name import check_reward_name, reward_by_name
from trl_ext.rewards.toxicity import ToxicityReward
from trl_ext.running.data import load_prompts, wrap_in_conversation
from trl_ext.running.finished import CONFIG, Sampling, run_sampling
from trl_ext.running.named_rewards import check_rewards, warn_of_training_reward
from trl_ext.running.pairs import Pair, find_pair
from trl_ext.text.rows import Text, is_conversation

__all__ = ["LENGTH", "Request", "prepare"]

LENGTH = 64  # tokens of a completion, where no run says otherwise


class Request(NamedTuple):
    """A comparison of two models on P prompts.

    Attributes:
        pair: The model and its baseline.
        prompts: P texts or conversations.
        columns: The data set's other columns, P values each, for reward functions.
        sampling: How both models sample.
        rewards: Names of rewards.
        weights: Their weights; None for 1 each.
        toxicity: Classifier of toxic texts, not loaded; None for none.
        reference: Name of the model whose perplexity counts, and the model as found; None for the baseline.
        judge: Decides which of two answers is better; None for no win rate.
        judge_name: How the user named it.
        tokenization: Of texts for diversity, "words" or "characters".
        batch_size: Completions sampled or scored at a time.
        num_resamples: Bootstrap resamples.
        seed: Of sampling and of the bootstrap.
    """

    pair: Pair
    prompts: list[Text]
    columns: dict[str, list]
    sampling: Sampling
    rewards: Sequence[str]
    weights: Sequence[float] | None
    toxicity: ToxicityReward | None
    reference: tuple[str, PolicySource] | None
    judge: Judge | None
    judge_name: str | None
    tokenization: str
    batch_size: int
    num_resamples: int
    seed: int


def prepare(
    model: str,
    baseline: str | None,
    prompts: str,
    *,
    prompt_column: str = "prompt",
    split: str = "train",
    num_prompts: int = 512,
    chat_instruction: str | None = None,
    sampling: dict[str, Any] | Sampling | None = None,
    rewards: Sequence[str] = (),
    reward_weights: Sequence[float] | None = None,
    toxicity_model: str | None = None,
    toxic_label: str | None = None,
    reference: str | None = None,
    judge: str | None = None,
    judge_endpoint: str | None = None,
    judge_model: str | None = None,
    judge_criteria: str | None = None,
    api_key_env: str = "OPENAI_API_KEY",
    margin: float = 0.0,
    tokenization: str = "words",
    batch_size: int = 64,
    num_resamples: int = 2000,
    seed: int = 0,
    options: tuple[str, str] = ("A", "B"),
    **models: Any,
) -> Request:
    """Check a comparison before a model is loaded; the arguments are the options of `trl_ext compare`.

    Args:
        model, baseline: Names or folders; without a baseline the one that the training of `model` began from.
        prompts: Data set, as `load_prompts` reads it.
        prompt_column, split: Of the data set.
        num_prompts: The first so many prompts count.
        chat_instruction: Text with `{prompt}` that makes each text the user's message of a conversation.
        sampling: How both models sample; or fields that replace those of the run, None to leave one as it was.
        rewards, reward_weights: As in `load_rewards`.
        toxicity_model, toxic_label: Classifier of toxic texts, and its toxic label.
        reference: Frozen model of the perplexity; None for the baseline.
        judge: Name of a reward: the answer with the higher reward wins.
        judge_endpoint, judge_model, judge_criteria, api_key_env: A language model as judge, as in `EndpointJudge`.
        margin: Rewards of the judge that differ by no more are a tie.
        tokenization, batch_size, num_resamples, seed: As in [`Request`].
        options: How the command line calls `model` and `baseline`.
        models: Further options of `find_pair`.

    Raises:
        ValueError, ImportError: in one sentence, for anything that cannot be used.
    """
    counts = {"num_prompts": num_prompts, "batch_size": batch_size, "num_resamples": num_resamples}
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"--{name} is {count}; it must be at least 1.")
    if not isinstance(sampling, Sampling):
        sampling = _run_of(model, baseline).changed(**(sampling or {}))
    pair = find_pair(model, baseline, options=options, **models)
    if pair.baseline is None:
        raise ValueError(
            f"'{model}' does not record which model its training began from, or that model is gone; name a second "
            "model to compare it with."
        )
    other = None if reference is None else (reference, find_policy(reference, {}, option="--reference"))
    check_rewards(rewards, reward_weights)
    toxicity = None
    if toxicity_model is not None:
        toxicity = ToxicityReward(toxicity_model, toxic_label=toxic_label, batch_size=batch_size)
        toxicity.scorer.check()
    if judge is not None:
        warn_of_training_reward("judge", judge, Path(model).expanduser())
    decides = _make_judge(judge, margin, judge_endpoint, judge_model, judge_criteria, api_key_env)
    rows = load_prompts(prompts, split=split, column=prompt_column, keep_columns=True)
    rows = rows.select(range(min(num_prompts, len(rows))))
    if chat_instruction is not None:
        wrapped = wrap_in_conversation(rows, chat_instruction)["prompt"]
    texts = list(rows["prompt"]) if chat_instruction is None else list(wrapped)
    if is_conversation(texts[0]) and pair.tokenizer.chat_template is None:
        raise ValueError(
            f"The prompts of '{prompts}' are conversations, and '{model}' has no chat template; give texts."
        )
    return Request(
        pair,
        texts,
        {name: list(rows[name]) for name in rows.column_names if name != "prompt"},
        sampling,
        rewards,
        reward_weights,
        toxicity,
        other,
        decides,
        judge or (f"{judge_model} at {decides.endpoint.url}" if isinstance(decides, EndpointJudge) else None),
        tokenization,
        batch_size,
        num_resamples,
        seed,
    )


def _run_of(model: str, baseline: str | None) -> Sampling:
    """Return how the run of the model sampled; that of the baseline where the model has none."""
    run = next((name for name in (model, baseline) if name and (Path(name) / CONFIG).is_file()), None)
    return Sampling(max_completion_length=LENGTH) if run is None else run_sampling(run)


def _make_judge(
    spec: str | None, margin: float, url: str | None, model: str | None, criteria: str | None, key: str
) -> Judge | None:
    if (url is None) != (model is None):
        raise ValueError("`--judge_endpoint` and `--judge_model` belong together: the URL and the name of its model.")
    if spec is not None and url is not None:
        raise ValueError("`--judge` and `--judge_endpoint` both name a judge; give one.")
    if url is not None and model is not None:
        return EndpointJudge(url, model, criteria=criteria or CRITERIA, api_key_env=key)
    if spec is None:
        return None
    try:
        check_reward_name(spec)
        return RewardJudge(reward_by_name(spec), margin=margin)
    except ValueError as error:
        raise ValueError(str(error).replace("`--reward", "`--judge")) from error
