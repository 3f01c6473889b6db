# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Judges of which of two answers is better: any reward function, or a language model behind an HTTP endpoint."""

import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from trl_ext.messages.printable import error_text
from trl_ext.rewards.base import Batch, completion_text, prompt_text, reward_name
from trl_ext.rewards.endpoint import ChatEndpoint
from trl_ext.rewards.retry import run_reward
from trl_ext.rewards.tokens import sums
from trl_ext.text.rows import Text

Outcome = int | None
"""1: the model's answer is better, -1: the baseline's, 0: a tie, None: not judged."""

CRITERIA = (
    "Prefer the answer that is correct, does what was asked and nothing else, is helpful and does no harm. A longer "
    "answer is not a better one, and the order of the answers means nothing."
)
_QUESTION = """Two assistants have answered the same request. {criteria}

<request>
{prompt}
</request>

<answer_a>
{first}
</answer_a>

<answer_b>
{second}
</answer_b>

Compare them in a few sentences, then end with exactly one of these lines: [[A]] if answer A is better, [[B]] if
answer B is better, [[tie]] if they are equally good."""
_VERDICT = re.compile(r"\[\[\s*(a|b|c|tie)\s*\]\]", re.IGNORECASE)
_SIGNS = {"a": 1, "b": -1, "c": 0, "tie": 0}


class Judge(Protocol):
    """Compares N answers with N answers of a baseline; `columns` are the data set's others, N values each."""

    def __call__(
        self, prompts: Sequence[Text], answers: Sequence[Text], baselines: Sequence[Text], **columns: list
    ) -> list[Outcome]:
        """Return N outcomes: 1 for a win of the answer, -1 for a loss, 0 for a tie, None where the judge gave none."""
        ...


def compare_scores(
    scores: Sequence[float | None], baselines: Sequence[float | None], margin: float = 0.0
) -> list[Outcome]:
    """Return the outcome of each score against its baseline; scores that differ by no more than `margin` are a tie."""

    def outcome(one: float | None, other: float | None) -> Outcome:
        if one is None or other is None:
            return None
        return 0 if abs(one - other) <= margin else (1 if one > other else -1)

    return [outcome(one, other) for one, other in zip(scores, baselines, strict=True)]


class RewardJudge:
    """The answer with the higher reward wins: a gold reward function, or a reward model as `PreferenceReward`.

    Args:
        reward: Reward function in TRL's signature; it gets no `completion_ids`.
        margin: Rewards that differ by no more are a tie.
        retries: How often it is called again if it raises; samples that it cannot score are not judged.

    Raises:
        ValueError: `margin` is negative.
    """

    def __init__(self, reward: Callable, *, margin: float = 0.0, retries: int = 2):
        if margin < 0:
            raise ValueError(f"`margin` is {margin}; it must be 0 or more.")
        self.reward, self.margin, self.retries = reward, margin, retries

    def __call__(
        self, prompts: Sequence[Text], answers: Sequence[Text], baselines: Sequence[Text], **columns: list
    ) -> list[Outcome]:
        """Return N outcomes, one for each answer and its baseline."""
        ours, theirs = (self._rewards(prompts, completions, columns) for completions in (answers, baselines))
        return compare_scores(ours, theirs, self.margin)

    def _rewards(self, prompts: Sequence[Text], completions: Sequence[Text], columns: dict) -> list[float | None]:
        batch = Batch(prompts, completions, None, columns)
        result = run_reward(
            self.reward,
            batch,
            retries=self.retries,
            timeout=None,
            allowed_failures=len(batch),
            on_progress=lambda n: None,
        )
        if result.failures:
            error = next(reversed(result.failures.values()))
            warnings.warn(
                f"The judge '{reward_name(self.reward)}' failed on {len(result.failures)} of {len(batch)} answers, "
                f"which are left out ({error_text(error)}).",
                stacklevel=3,
            )
        return sums(result.rewards)


class EndpointJudge:
    """A language model behind an OpenAI-compatible endpoint compares the answers.

    Each pair is judged twice, with the answers in both orders; verdicts that disagree are a tie, because judges favour
    a position ("Judging LLM-as-a-Judge", Zheng et al. 2023, arXiv 2306.05685, section 3.4). A pair without two
    verdicts after all retries is not judged.

    Args:
        url: Base URL of the endpoint, see [`ChatEndpoint`].
        model: Name of the judging model.
        criteria: What makes an answer better, as a sentence of the question.
        options: Further arguments of [`ChatEndpoint`].

    Attributes:
        disagreements: How many pairs of the last call were ties because the verdicts disagreed.

    Raises:
        ValueError: `url` is no HTTP URL; when called: the endpoint refuses the request (wrong key, no such model, ...).
    """

    def __init__(self, url: str, model: str, *, criteria: str = CRITERIA, **options: Any):
        self.endpoint, self.criteria = ChatEndpoint(url, model, **options), criteria
        self.disagreements = 0

    def __call__(
        self, prompts: Sequence[Text], answers: Sequence[Text], baselines: Sequence[Text], **columns: list
    ) -> list[Outcome]:
        """Ask about every pair in both orders."""
        texts = [
            (prompt_text(prompt), completion_text(answer), completion_text(baseline))
            for prompt, answer, baseline in zip(prompts, answers, baselines, strict=True)
        ]
        questions = [self._question(*text) for text in texts]
        questions += [self._question(prompt, second, first) for prompt, first, second in texts]
        verdicts = self.endpoint.ask(questions, _read_verdict)
        pairs = list(zip(verdicts[: len(texts)], verdicts[len(texts) :], strict=True))
        self.disagreements = sum(one != -other for one, other in pairs if one is not None and other is not None)
        outcomes = [_agreed(one, other) for one, other in pairs]
        missing = outcomes.count(None)
        if missing:
            warnings.warn(
                f"The judge at {self.endpoint.url} gave no verdict on {missing} of {len(texts)} pairs, which are left "
                f"out; the last failure was: {self.endpoint.last_failure}.",
                stacklevel=2,
            )
        return outcomes

    def _question(self, prompt: str, first: str, second: str) -> str:
        return _QUESTION.format(criteria=self.criteria, prompt=prompt, first=first, second=second)


def _read_verdict(reply: str) -> Outcome:
    """Return 1 for the first answer, -1 for the second, 0 for neither; None if there is no verdict."""
    found = _VERDICT.findall(reply)
    return _SIGNS[found[-1].lower()] if found else None


def _agreed(one: Outcome, swapped: Outcome) -> Outcome:
    if one is None or swapped is None:
        return None
    return one if one == -swapped else 0
