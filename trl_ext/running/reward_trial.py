# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""A reward by name, tried on samples: `trl_ext check-reward`."""

import statistics
import warnings
from collections.abc import Sequence
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text as Line

from trl_ext.evaluation.sampling import check_lengths, sample
from trl_ext.experience.prompts import tokenize_prompts
from trl_ext.messages.printable import error_text, line_of, one_line
from trl_ext.rewards import RewardRunner
from trl_ext.rewards.base import OWN_COLUMNS, completion_text, prompt_text
from trl_ext.rewards.by_name import reward_by_name
from trl_ext.rewards.check import COMPLETIONS, PROMPTS, RewardCheck, check_reward
from trl_ext.rewards.tokens import sums
from trl_ext.text.decoding import as_completions
from trl_ext.text.rows import Text, is_conversation

from .data import load_prompts
from .finished import run_sampling
from .pairs import Pair, find_pair, load_pair

__all__ = ["BrokenReward", "Samples", "describe", "find_samples", "try_named_reward"]

_FORMS = {"plain": "texts", "conversational": "conversations"}
_ROLLOUT = 64  # completions, for an idea of the time that scoring takes


class Samples(NamedTuple):
    """Samples for a reward function.

    Attributes:
        prompts: N texts or conversations.
        completions: N completions in the format of the prompts.
        columns: Further columns of the dataset, N values each.
        origin: Where the completions come from, in words.
        completion_ids: N lists of tokens that a model sampled; None for texts.
    """

    prompts: list[Text]
    completions: list[Text]
    columns: dict[str, list]
    origin: str
    completion_ids: list[list[int]] | None = None


def find_samples(
    *,
    prompt: Sequence[str] = (),
    completion: Sequence[str] = (),
    dataset_name: str | None = None,
    split: str = "train",
    prompt_column: str = "prompt",
    completion_column: str = "completion",
    num_samples: int = 16,
    model: str | None = None,
    device: str | None = None,
) -> Samples | None:
    """Return the samples that the options name; None for the stock samples of `check_reward`.

    Args:
        prompt, completion: Texts; one prompt goes with each completion, or with all of them.
        dataset_name, split, prompt_column: Data set of prompts, as `load_prompts` reads it.
        completion_column: Its column of completions, if it has one.
        num_samples: The first so many rows count.
        model: Makes the completions, sampled as its run did; None for those of the dataset, or stock texts.
        device: Of the model.

    Raises:
        ValueError, ImportError, OSError: for options that do not go together, and for data or a model not found.
    """
    if num_samples < 1:
        raise ValueError(f"`--num_samples` is {num_samples}; give 1 or more.")
    if bool(prompt) != bool(completion):
        raise ValueError("`--prompt` and `--completion` make a sample together; give both.")
    if prompt and dataset_name is not None:
        raise ValueError("`--prompt` and `--dataset_name` both give samples; leave one out.")
    if model is not None and dataset_name is None:
        raise ValueError("`--model` makes completions of the prompts of `--dataset_name`; give it too.")
    if prompt:
        if len(prompt) not in (1, len(completion)):
            raise ValueError(
                f"There are {len(prompt)} `--prompt` for {len(completion)} `--completion`; give one, or one each."
            )
        prompts = list(prompt) * (len(completion) if len(prompt) == 1 else 1)
        return Samples([*prompts], [*completion], {}, "given")
    if dataset_name is None:
        return None
    pair = None if model is None else find_pair(model, with_baseline=False, device=device, options=("--model", ""))
    rows = load_prompts(dataset_name, split=split, column=prompt_column, keep_columns=True)
    rows = rows.select(range(min(num_samples, len(rows))))
    columns = {name: list(rows[name]) for name in rows.column_names if name != "prompt"}
    return _completed(list(rows["prompt"]), columns, completion_column, pair)


def _completed(prompts: list[Text], columns: dict[str, list], column: str, pair: Pair | None) -> Samples:
    """Return samples with the completions of a model, of a column, or stock ones."""
    if pair is not None:
        completions, ids = _sampled(prompts, pair)
        return Samples(prompts, completions, columns, f"sampled from '{pair.name}'", ids)
    if column in columns:
        given = columns.pop(column)
        if all(isinstance(value, str) for value in given):
            given = as_completions(prompts, given)
        return Samples(prompts, given, columns, f"of the column '{column}'")
    stock = [COMPLETIONS[i % len(COMPLETIONS)] for i in range(len(prompts))]
    origin = f"stock texts, as there is no column '{column}' (`--model` samples real ones)"
    return Samples(prompts, as_completions(prompts, stock), columns, origin)


def _sampled(prompts: list[Text], pair: Pair) -> tuple[list[Text], list[list[int]]]:
    member, settings = next(load_pair(pair)), run_sampling(pair.name)
    if is_conversation(prompts[0]) and member.tokenizer.chat_template is None:
        raise ValueError(f"The prompts are conversations, and `--model {pair.name}` has no chat template; give texts.")
    kwargs = dict(settings.chat_template_kwargs)
    ids = tokenize_prompts(prompts, member.tokenizer, kwargs)
    context = getattr(member.model.config.get_text_config(), "max_position_embeddings", None)
    if context is not None:
        room = max(1, context - max(map(len, ids)))
        settings = settings.changed(max_completion_length=min(settings.max_completion_length, room))
    check_lengths(ids, settings.max_completion_length, member.model, "`--num_samples`")
    engine = settings.engine(member.model, member.tokenizer)
    made = sample(member.model, member.tokenizer, engine, prompts, seed=0, chat_template_kwargs=kwargs)
    return as_completions(prompts, made.completions), made.completion_ids


def try_named_reward(spec: str, samples: Samples | None) -> RewardCheck:
    """Try a reward that `check_reward_name` has found.

    Raises:
        ValueError: when a model cannot be loaded, or a class or factory fails.
        BrokenReward: when the function breaks its contract or fails, in one sentence.
    """
    (fn,) = RewardRunner([reward_by_name(spec)]).reward_funcs  # loads its models, which is no part of the time
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if samples is None:
                return check_reward(fn)
            columns = {name: values for name, values in samples.columns.items() if name not in (*OWN_COLUMNS, "fn")}
            ids = samples.completion_ids
            return check_reward(fn, samples.prompts, samples.completions, completion_ids=ids, **columns)
        except (ValueError, TypeError) as error:
            hint = " Prompts and columns of your own: `--dataset_name`." if samples is None else ""
            raise BrokenReward(one_line(error, 2000) + hint) from error


class BrokenReward(Exception):
    """A reward function that cannot be used."""


def describe(check: RewardCheck, samples: Samples | None, console: Console) -> None:
    """Print a table of samples and rewards, their spread, the time they took, and doubts.

    Args:
        check: Report of the reward.
        samples: As tried; None for the stock ones.
        console: Where it is printed.
    """
    if samples is None:
        origin = "stock texts (`--dataset_name` gives prompts and columns of your own)"
        samples = Samples([*PROMPTS], [*COMPLETIONS], {}, origin)
    if not console.is_terminal:
        console.width = 120
    table = Table(box=None, pad_edge=False)
    table.add_column("reward", justify="right")
    table.add_column("completion", overflow="fold", ratio=3)
    table.add_column("prompt", overflow="fold", ratio=2)
    for value, completion, prompt in zip(sums(check.values), samples.completions, samples.prompts, strict=True):
        texts = (one_line(completion_text(completion), 300), one_line(prompt_text(prompt), 200))
        table.add_row("none" if value is None else f"{value + 0.0:.4g}", *map(Line, texts))
    console.print(table)
    for line in _lines(check, samples):
        console.print(Line(line))


def _lines(check: RewardCheck, samples: Samples) -> list[str]:
    count, values = len(check.values), [value for value in sums(check.values) if value is not None]
    lines = ["", f"{one_line(check.name)} can be used; the completions are {samples.origin}."]
    lines.append(f"accepts: {' and '.join(_FORMS[form] for form in check.formats)}")
    if values:
        spread = f"mean {statistics.fmean(values):.4g}, standard deviation {statistics.pstdev(values):.4g}"
        missing = f", none for {count - len(values)} of {count} samples" if len(values) < count else ""
        low, high = min(values) + 0.0, max(values) + 0.0  # no "-0"
        lines.append(f"rewards: {spread}, from {low:.4g} to {high:.4g}{missing}")
    lists = [value for value in check.values if isinstance(value, list)]
    if lists:
        earning, tokens = sum(reward != 0 for row in lists for reward in row), sum(map(len, lists))
        lines.append(
            f"token rewards: for {len(lists)} of {count} samples; {earning} of {tokens} tokens earn or lose something, "
            "and the table shows sums"
        )
    each = check.seconds / count
    lines.append(f"time: {1000 * each:.3g} ms a sample, about {_ROLLOUT * each:.2g} s for a rollout of {_ROLLOUT}")
    doubts = [
        f"It fails on {_FORMS[form]}: {line_of(error)}{error_text(error).rstrip('.')}."
        for form, error in check.failures.items()
    ]
    doubts += check.warnings
    return lines + [f"warning: {one_line(doubt, 1000)}" for doubt in doubts]
