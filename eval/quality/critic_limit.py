# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The largest explained variance that any critic can have, before training.

    python -m eval.quality.critic_limit RUN --completions 2000 --branches 8

RUN is the folder of a detoxification (`trl_ext detox --output_dir RUN`). Its policy, as it was before training,
completes prompts of the training data once, and then continues each prefix of each completion several times. The
returns of continuations of one prefix differ by chance alone, and no function of the prefix can predict that part: the
limit is `1 - E[Var(return | prefix)] / Var(return)`, over all tokens of the completions.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from recipes.detoxification import reopen
from trl_ext.evaluation.detoxification import score
from trl_ext.evaluation.intervals import bootstrap
from trl_ext.evaluation.sampling import Policy, Samples
from trl_ext.experience.prompts import tokenize_prompts
from trl_ext.files import write_json
from trl_ext.rewards import RewardRunner
from trl_ext.running.policy import policy_of
from trl_ext.text.decoding import decode_answers
from trl_ext.text.rows import Text

from .cli import check_positive, run_command

BATCH = 256


class Branches(NamedTuple):
    """S states, the prefixes of N completions, in the order of the completions.

    Attributes:
        completion: The completion that each state is a prefix of, int64, shape (S,).
        position: Number of its tokens in the state, int64, shape (S,).
        returned: Return of the completion itself, float64, shape (S,).
        branched: Returns of K other continuations of the state, float64, shape (S, K).
    """

    completion: Tensor
    position: Tensor
    returned: Tensor
    branched: Tensor


def limit(states: Branches) -> float:
    """Return the share of the returns' variance that the states decide; its estimate needs two branches or more."""
    # The variance of K draws with divisor K - 1 is unbiased for the variance within a state, for any K.
    within = states.branched.var(dim=1).mean()
    return float(1 - within / states.returned.var(correction=0))


def of_completions(states: Branches, chosen: Sequence[int]) -> Branches:
    """Return the states of some of the completions; a completion that is chosen twice counts twice."""
    ends = torch.cumsum(torch.bincount(states.completion), 0).tolist()
    rows = torch.cat([torch.arange(0 if i == 0 else ends[i - 1], ends[i]) for i in chosen])
    return Branches(*(column[rows] for column in states))


def summarize(states: Branches, *, fewest: int = 20) -> dict[str, Any]:
    """Return the limit, its 95% interval (bootstrap over completions), and the limit at each position, JSON-able.

    Args:
        states: The states.
        fewest: A position that fewer completions reach has None.
    """
    ends = bootstrap(lambda chosen: limit(of_completions(states, chosen.tolist())), int(states.completion.max()) + 1)
    at = [states.position == place for place in range(int(states.position.max()) + 1)]
    return {
        "limit": limit(states),
        "limit_ci95": [ends.low, ends.high],
        "by_position": [
            limit(Branches(*(c[rows] for c in states))) if int(rows.sum()) >= fewest else None for rows in at
        ],
        "completions": int(states.completion.max()) + 1,
        "branches": states.branched.shape[1],
    }


def branch(
    policy: Policy, rewards: RewardRunner, prompts: list[Text], branches: int, longest: int, penalty: float | None
) -> Branches:
    """Complete prompts, and draw further continuations from every prefix of the completions.

    Args:
        policy: Samples as in training; seed the global generator for the same samples.
        rewards: The training reward.
        prompts: N prompts, one completion each.
        branches: K continuations of each prefix.
        longest: Length limit of a completion in tokens.
        penalty: `missing_eos_penalty` of training.
    """
    prompt_ids = tokenize_prompts(prompts, policy.tokenizer, policy.chat_template_kwargs)
    own = torch.arange(len(prompts))
    first = _continue(policy, rewards, prompts, prompt_ids, own.tolist(), [[] for _ in prompts], longest, penalty)
    prefixes = [(i, ids[:place]) for i, ids in enumerate(first.completion_ids) for place in range(len(ids))]
    owners = [i for i, _ in prefixes for _ in range(branches)]
    starts = [prefix for _, prefix in prefixes for _ in range(branches)]
    drawn = _continue(policy, rewards, prompts, prompt_ids, owners, starts, longest, penalty)
    completion = torch.tensor([i for i, _ in prefixes])
    position = torch.tensor([len(prefix) for _, prefix in prefixes])
    return Branches(completion, position, first.returns[completion], drawn.returns.view(-1, branches))


class _Continued(NamedTuple):
    completion_ids: list[list[int]]
    returns: Tensor


@torch.no_grad()
def _continue(
    policy: Policy,
    rewards: RewardRunner,
    prompts: list[Text],
    prompt_ids: list[list[int]],
    owners: list[int],
    starts: list[list[int]],
    longest: int,
    penalty: float | None,
) -> _Continued:
    """Continue the beginning `starts[j]` of a completion of prompt `owners[j]`, and score the whole completion."""
    ids: list[list[int]] = [[] for _ in owners]
    returns = torch.zeros(len(owners), dtype=torch.float64)
    # Beginnings of like length together: the engine pads a batch to its longest.
    order = sorted(range(len(owners)), key=lambda j: len(prompt_ids[owners[j]]) + len(starts[j]))
    for rows in (order[at : at + BATCH] for at in range(0, len(order), BATCH)):
        texts, asked = [prompts[owners[j]] for j in rows], [prompt_ids[owners[j]] for j in rows]
        with policy.actor_critic.hold():
            begun = [prompt + starts[j] for prompt, j in zip(asked, rows, strict=True)]
            out = policy.engine(policy.actor_critic.causal_lm, begun)
        # The engine's limit counts new tokens alone. What is beyond the limit of a completion is cut off.
        said = [(starts[j] + list(new))[:longest] for j, new in zip(rows, out.ids, strict=True)]
        ended = [
            done and len(starts[j]) + len(new) <= longest
            for j, new, done in zip(rows, out.ids, out.terminated, strict=True)
        ]
        answers = decode_answers(policy.tokenizer, texts, asked, said, policy.chat_template_kwargs)
        samples = Samples(texts, asked, answers, said, ended, [len(row) for row in said])
        returns[torch.tensor(rows)] = score(rewards, samples, penalty)
        for j, row in zip(rows, said, strict=True):
            ids[j] = row
    return _Continued(ids, returns)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m eval.quality.critic_limit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, help="folder of a detoxification")
    parser.add_argument("--completions", type=int, default=400, help="prompts that are completed once (400)")
    parser.add_argument("--branches", type=int, default=8, help="continuations of each prefix (8)")
    parser.add_argument("--seed", type=int, default=0, help="of prompts and samples (0)")
    parser.add_argument("--output", type=Path, default=Path("critic_limit.json"), help="JSON file to write")
    arguments = parser.parse_args(argv)

    def run() -> None:
        check_positive(arguments, "completions")
        if arguments.branches < 2:
            raise ValueError(f"--branches is {arguments.branches}; a variance needs two.")
        torch.manual_seed(arguments.seed)
        trainer = reopen(arguments.run).trainer
        trainer.model.eval()
        column, dataset = trainer.args.prompt_column, trainer.train_dataset
        chosen = torch.randperm(len(dataset))[: arguments.completions].tolist()
        states = branch(
            policy_of(trainer),
            trainer.rewards,
            [dataset[i][column] for i in chosen],
            arguments.branches,
            trainer.args.max_completion_length,
            trainer.args.missing_eos_penalty,
        )
        summary = summarize(states)
        write_json(arguments.output, summary)
        low, high = summary["limit_ci95"]
        print(
            f"Largest explained variance of any critic: {summary['limit']:.3f} (95% interval {low:.3f} to {high:.3f})"
        )
        places = enumerate(summary["by_position"])
        print("by position: " + ", ".join(f"{i}: {value:.2f}" for i, value in places if value is not None))

    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
