# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Completions of a saved policy, and preference pairs of them."""

import random
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

from transformers import PreTrainedTokenizerBase

from trl_ext.actor_critic.loading import load_policy
from trl_ext.checks.training_arguments import mapping
from trl_ext.config import PPOConfig
from trl_ext.evaluation.sampling import sample
from trl_ext.experience.engines import TransformersEngine, eos_token_ids
from trl_ext.monitoring.console import CONSOLE
from trl_ext.text.rows import Text


def sample_answers(
    model_name: str,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Text],
    args: PPOConfig,
    seed: int,
    init_kwargs: dict[str, Any],
) -> list[str]:
    """Sample one completion for each prompt, as PPO does.

    Args:
        model_name: Folder or name of the policy.
        tokenizer: Its tokenizer.
        prompts: N texts or conversations; a prompt may occur several times.
        args: Temperature, length and batch size.
        seed: The same seed gives the same completions; the state of the global generators is left as it was.
        init_kwargs: Keyword arguments of `from_pretrained`.
    """
    model = load_policy(model_name, **init_kwargs).eval()
    if "quantization_config" not in init_kwargs:
        model.to(args.device)
    engine = TransformersEngine(
        tokenizer,
        eos_token_ids=eos_token_ids(model, tokenizer),
        max_new_tokens=args.max_completion_length,
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        batch_size=args.scoring_batch_size,
    )
    shown = CONSOLE.activity("sampling answers", len(prompts), "completions", bars=not args.disable_tqdm, long=True)
    with shown as answers:
        return sample(
            model,
            tokenizer,
            engine,
            list(prompts),
            seed=seed,
            chat_template_kwargs=mapping(args.chat_template_kwargs),
            on_progress=answers.advance,
        ).completions


def rank_pairs(
    rows: Sequence[dict[str, Any]],
    answers: Sequence[Sequence[str]],
    grade: Callable[[str, str, str], float],
    *,
    n: int,
    label_noise: float,
    seed: int,
    least_difference: float = 0.3,
) -> list[dict[str, Any]]:
    """Return preference pairs of several answers to each instruction, ranked by a judge with some noise.

    Args:
        rows: Instructions with `prompt`, `kind` and `key`.
        answers: Several for each of them.
        grade: The judge: (kind, key, answer) to a mark.
        n: Most pairs to return. The instructions take turns, so that none is in much more pairs than the others.
        label_noise: Share of the pairs, drawn at random, whose order is turned round.
        seed: Of the choice and of the noise.
        least_difference: Of the marks in a pair; the judge calls anything closer a tie, and a tie is no pair.

    Raises:
        ValueError: when there is no pair.
    """
    rng = random.Random(seed)
    found: list[list[dict[str, Any]]] = []
    for row, some in zip(rows, answers, strict=True):
        marks = {answer: grade(row["kind"], row["key"], answer) for answer in some if answer.strip()}
        ranked = (sorted(two, key=lambda marked: -marked[1]) for two in combinations(marks.items(), 2))
        pairs = [(better, worse) for better, worse in ranked if better[1] - worse[1] >= least_difference]
        rng.shuffle(pairs)
        found.append([{**row, "chosen": better[0], "rejected": worse[0]} for better, worse in pairs])
    turns = [pairs[i] for i in range(max(map(len, found), default=0)) for pairs in found if i < len(pairs)][:n]
    if not turns:
        raise ValueError(
            f"No two answers to any of {len(rows)} instructions differ by {least_difference} or more in the judge's "
            "marks, so there is nothing to prefer; train the SFT model longer (`sft_epochs`) or sample more."
        )
    for pair in turns:
        if rng.random() < label_noise:
            pair["chosen"], pair["rejected"] = pair["rejected"], pair["chosen"]
    rng.shuffle(turns)
    return turns
