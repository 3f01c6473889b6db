# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""How many samples reward functions may fail on."""

import warnings

from trl_ext.messages.printable import error_text, one_line

from .base import Batch, completion_text, prompt_text

_OF_BEGINNINGS = (
    " It was given the beginnings of completions (`critic_reads_reward_every`): let it return None for those it cannot "
    "score."
)


class Failures:
    """Samples that reward functions failed on: of one batch, or of all beginnings of the completions of a rollout.

    Args:
        count: number of samples.
        share: fraction of them that a function may fail on, as `max_reward_failures`.
        retries: tries that a message tells of.
        kind: what messages call a function.
        of_beginnings: whether the samples are beginnings of completions.

    Attributes:
        hint: what messages say of beginnings.
    """

    def __init__(self, count: int, share: float, *, retries: int, kind: str, of_beginnings: bool):
        self.count, self.share, self.retries, self.kind = count, share, retries, kind
        self.hint = _OF_BEGINNINGS if of_beginnings else ""
        self._samples = "beginnings of completions" if of_beginnings else "samples"
        self._counts: dict[str, int] = {}
        self._latest: dict[str, str] = {}

    @property
    def allowed(self) -> float:
        """Number of failures of a function above which the run ends."""
        return self.share * self.count + 1e-9  # 0.29 * 100 is a little less than 29

    def add(self, name: str, failures: dict[int, BaseException], batch: Batch) -> None:
        """Count the failures of a function in a batch, by sample.

        Raises:
            RuntimeError: the function has failed on more than `share` of the samples.
        """
        if not failures:
            return
        index, error = next(reversed(failures.items()))
        self._counts[name] = self._counts.get(name, 0) + len(failures)
        self._latest[name] = f"sample {index} ({shown(batch, index)}) gave {error_text(error)}"
        if self._counts[name] > self.allowed:
            raise RuntimeError(
                f"{self.kind} '{name}' failed on at least {self._counts[name]} of {self.count} {self._samples} after "
                f"{self.retries} retries, more than max_reward_failures={self.share:g} allows; {self._latest[name]}. "
                f"Fix the function, let it return None where it does not apply, or raise `max_reward_failures` or "
                f"`reward_timeout`."
            ) from error

    def warn(self) -> None:
        """Warn of the samples that are skipped."""
        for name, count in self._counts.items():
            warnings.warn(
                f"{self.kind} '{name}' failed on {count} of {self.count} {self._samples}, which are skipped; "
                f"{self._latest[name]}. Return None where the function does not apply.{self.hint}",
                stacklevel=3,
            )


def shown(batch: Batch, index: int) -> str:
    """Return one sample, short enough for a message."""
    prompt, completion = batch.prompts[index], batch.completions[index]
    texts = one_line(prompt_text(prompt), 58), one_line(completion_text(completion), 58)
    return f"prompt {texts[0]!r}, completion {texts[1]!r}"
