# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Episodes that a reward for each word needs, against the same reward's sum at the end of the completion.

    python -m eval.quality.token_rewards OUTPUT --seeds 0 1 2 --episodes 6144

The embedded language model continues the opening of a comment. Each of its words earns a score: 1 for praise, -1 for an
insult, 0 for all others. One run gives each score to the token that ends the word, the other gives their sum to the
last token; both have the same settings, and a third gives the sum with `lam` 0.95. Nothing else differs.
"""

import argparse
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoTokenizer

from trl_ext import PPOConfig, PPOTrainer
from trl_ext.files import read_json_lines, write_json
from trl_ext.rewards import Summed
from trl_ext.rewards.spans import spread_spans
from trl_ext.worlds import prepare, vocabulary

WORD = re.compile(r"[\w'-]+")
SCORES = {
    **dict.fromkeys(vocabulary.PRAISE_NOUNS + vocabulary.PRAISE_ADJECTIVES + vocabulary.PRAISE_STUFF, 1.0),
    **dict.fromkeys(vocabulary.INSULT_NOUNS + vocabulary.INSULT_ADJECTIVES + vocabulary.INSULT_STUFF, -1.0),
}
# The sum at the end also gets the lambda that suits it better.
ARMS = {"words": 0.5, "end": 0.5, "end, lam 0.95": 0.95}


class WordScores:
    """The score of each word, on the token that ends it.

    Args:
        tokenizer: Of the policy.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer, self.__name__ = tokenizer, "words"

    def __call__(self, completions: list[str], completion_ids: list[list[int]], **columns: Any) -> list[list[float]]:
        """Return one list a completion, with one number a token."""
        rewards = []
        for text, ids in zip(completions, completion_ids, strict=True):
            spans = [(*word.span(), SCORES.get(word[0], 0.0)) for word in WORD.finditer(text)]
            rewards.append(spread_spans(spans, text, ids, self.tokenizer))
        return rewards


def train(arm: str, seed: int, episodes: int, folder: Path, *, rollout: int = 128) -> list[tuple[int, float]]:
    """Train once, and return the curve: episodes so far, and the mean reward of the rollout."""
    assets = prepare()
    words = WordScores(AutoTokenizer.from_pretrained(assets.model))
    trainer = PPOTrainer(
        model=assets.model,
        reward_funcs=words if arm == "words" else Summed(words, name="words"),
        args=PPOConfig(
            output_dir=str(folder),
            seed=seed,
            total_episodes=episodes,
            per_device_train_batch_size=rollout // 2,
            gradient_accumulation_steps=2,
            local_rollout_forward_batch_size=rollout,
            max_completion_length=32,
            num_ppo_epochs=1,
            num_mini_batches=2,
            learning_rate=1e-4,
            critic_learning_rate=5e-3,
            vf_coef=0.01,
            lam=ARMS[arm],
            kl_coef=0.05,
            gradient_checkpointing=False,
            logging_steps=2,  # a line for each rollout
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=Dataset.from_list(read_json_lines(Path(assets.train_prompts))),
    )
    trainer.train()
    return [(int(line["episodes"]), line["reward"]) for line in trainer.state.log_history if "reward" in line]


def episodes_to(curve: Sequence[tuple[int, float]], level: float, window: int = 5) -> int | None:
    """Return the episodes after which the mean reward of `window` rollouts reaches `level`; None if it never does."""
    for i in range(window, len(curve) + 1):
        if statistics.fmean(reward for _, reward in curve[i - window : i]) >= level:
            return curve[i - 1][0]
    return None


def table(curves: dict[str, list[list[tuple[int, float]]]], levels: Sequence[float]) -> str:
    """Return a table of the episodes to each level, by seed, and their ratio to those of the words' own scores."""
    lines = ["| reward | arm | episodes by seed | mean | ratio |", "|---|---|---|---|---|"]
    for level in levels:
        base: float | None = None
        for arm, runs in curves.items():
            found = [episodes_to(curve, level) for curve in runs]
            known = [count for count in found if count is not None]
            mean = statistics.fmean(known) if len(known) == len(found) else None
            base = mean if arm == "words" else base
            ratio = f"{mean / base:.1f}" if mean is not None and base else "-"
            counts = ", ".join("never" if count is None else str(count) for count in found)
            lines.append(f"| {level:g} | {arm} | {counts} | {'-' if mean is None else f'{mean:.0f}'} | {ratio} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all arms and seeds, write their curves, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder of the curves")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--episodes", type=int, default=6144)
    parser.add_argument("--levels", type=float, nargs="+", default=[0.5, 1.0, 1.5, 2.0])
    parser.add_argument("--rollout", type=int, default=128, help="completions of a rollout")
    args = parser.parse_args(arguments)
    curves: dict[str, list[list[tuple[int, float]]]] = {arm: [] for arm in ARMS}
    for seed in args.seeds:
        for arm in ARMS:
            folder = args.output / f"{arm}-{seed}"
            curves[arm].append(train(arm, seed, args.episodes, folder, rollout=args.rollout))
            write_json(args.output / "curves.json", curves)
            print(f"seed {seed}, {arm}: {curves[arm][-1][-1]}", flush=True)
    print(table(curves, args.levels))


if __name__ == "__main__":
    main()
