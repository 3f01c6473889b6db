# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The reward of what is written so far, for a critic that reads it.

A critic may know more than the policy: what it reads reaches the policy through the advantages alone (asymmetric
actor-critic, Pinto et al. 2017, arXiv 1710.06542). The reward of the beginning of a completion is known when the rest
is written, and a critic that reads it need not learn the reward function by heart.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from trl_ext.monitoring import PhaseProgress
from trl_ext.processes import Reduce, together
from trl_ext.rewards import RewardRunner, Scores
from trl_ext.rewards.base import Batch
from trl_ext.rewards.failures import Failures
from trl_ext.text.decoding import UNFINISHED, as_completions, decode_answers

from .rollout import Rollout


class RewardsSoFar:
    """Scores the beginnings of completions.

    Args:
        every: Tokens from one beginning to the next, as `critic_reads_reward_every`.
        rewards: Scores completions.
        tokenizer: Tokenizer of the policy.
        chat_template_kwargs: Extra arguments of the tokenizer's chat template.
        reduce: Sums a tensor over processes.
    """

    def __init__(
        self,
        every: int,
        rewards: RewardRunner,
        tokenizer: PreTrainedTokenizerBase,
        chat_template_kwargs: dict[str, Any],
        reduce: Reduce,
    ):
        self.every, self.rewards, self.tokenizer = every, rewards, tokenizer
        self.chat_template_kwargs, self.reduce = chat_template_kwargs, reduce

    def fill(self, rollout: Rollout, batch: Batch, scores: Scores, progress: PhaseProgress, state: Any) -> None:
        """Fill in `rewards_so_far`: what of a completion's reward is known, and not earned by its tokens already.

        0 before the first beginning, then the total reward of the latest one, and from the end of the completion on its
        own, less the rewards of the tokens so far. A beginning that no function has a reward for, or that a function
        fails on, counts as the one before it. The share of failures is that of all beginnings of this process.

        Args:
            rollout: N completions, with `token_scores`.
            batch: Their texts.
            scores: Their rewards.
            progress: Shows how many are done.
            state: The trainer's state, for reward functions.

        Raises:
            RuntimeError: A function failed on more than `max_reward_failures` of the beginnings.
        """
        ids = batch.completion_ids or []
        so_far = torch.zeros(len(rollout), rollout.completion_length + 1)
        longest = int(self.reduce(torch.tensor(rollout.completion_length, device=rollout.scores.device), "max"))
        counts = [len(range(self.every, len(row), self.every)) for row in ids]
        failures = self.rewards.count_failures(sum(counts), of_beginnings=True)
        with progress.phase("score", sum(counts) * len(self.rewards.names), "rewards of beginnings") as advance:
            # As many calls on every process, each with one beginning of a completion at most.
            for tokens in range(self.every, longest, self.every):
                rows = [i for i, row in enumerate(ids) if len(row) > tokens]
                found = self._score(rollout, batch, rows, tokens, failures, advance, state)
                for i, reward, valid in zip(rows, _learned(found).tolist(), found.valid.tolist(), strict=True):
                    if valid:
                        so_far[i, tokens:] = reward
        with together("Scoring"):
            failures.warn()
        for i, reward in enumerate(_learned(scores).tolist()):
            so_far[i, len(ids[i]) :] = reward
        earned = functional.pad(rollout.token_scores.cumsum(1), (1, 0))
        rollout.rewards_so_far = so_far.to(earned) - earned

    def _score(
        self,
        rollout: Rollout,
        batch: Batch,
        rows: list[int],
        tokens: int,
        failures: Failures,
        advance: Any,
        state: Any,
    ) -> Scores:
        """Return the rewards of the first `tokens` tokens of some completions."""
        with together("Decoding"):
            chosen = batch.select(rows)
            ids = [row[:tokens] for row in chosen.completion_ids or []]
            kwargs = self.chat_template_kwargs
            texts = decode_answers(self.tokenizer, chosen.prompts, _prompt_ids(rollout, rows), ids, kwargs)
            completions = as_completions(chosen.prompts, [text.rstrip(UNFINISHED) for text in texts])
        return self.rewards(
            chosen.prompts,
            completions,
            ids,
            chosen.columns,
            trainer_state=state,
            on_progress=advance,
            update_state=False,
            failures=failures,
            together=together,
        )


def _prompt_ids(rollout: Rollout, rows: list[int]) -> list[list[int]]:
    width = rollout.input_ids.shape[1] - rollout.completion_length
    ids, real = rollout.input_ids[rows, :width], rollout.attention_mask[rows, :width].bool()
    return [row[mask].tolist() for row, mask in zip(ids, real, strict=True)]


def _learned(scores: Scores) -> Tensor:
    return scores.total if scores.learned is None else scores.learned
