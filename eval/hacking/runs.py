# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Short runs of PPO on the embedded worlds, with and without over-optimization: what a monitor saw of each, as JSON."""

import gc
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from datasets import Dataset
from transformers import AutoTokenizer

from trl_ext import PPOConfig, PPOTrainer, ToxicityReward
from trl_ext.files import read_json_lines, write_json, write_json_lines
from trl_ext.instructions.options import RewardStage, SupervisedStage
from trl_ext.instructions.rewards import calibrate
from trl_ext.instructions.sampling import rank_pairs, sample_answers
from trl_ext.instructions.training import train_reward_model, train_supervised
from trl_ext.rewards import LengthReward, PreferenceReward
from trl_ext.worlds import prepare
from trl_ext.worlds.instructions import InstructionJudge, grade
from trl_ext.worlds.instructions_models import prepare_instructions

from .series import APART, WATCHED, Recorder

ROLLOUT = 128
LOADING: dict[str, Any] = {"init_kwargs": {}, "peft_config": None}


class Setting(NamedTuple):
    """One run.

    Attributes:
        world: "instructions" or "detoxification".
        reward: Number of preference pairs behind the reward model, or "judge"; "classifier" or "classifier, length".
        kl_target: Nats per completion; None for no penalty.
        seed: Of the reward model and of PPO.
        rollouts: How many.
    """

    world: str
    reward: str
    kl_target: float | None
    seed: int
    rollouts: int

    @property
    def name(self) -> str:
        """Name of the run's file."""
        target = "free" if self.kl_target is None else f"kl{self.kl_target:g}"
        return f"{self.world}-{self.reward.replace(', ', '+').replace(' ', '-')}-{target}-seed{self.seed}"


def _grid(world: str, reward: str, targets: Sequence[float | None], seeds: Sequence[int]) -> list[Setting]:
    """Return runs of 28 rollouts, and of 36 without a penalty."""
    pairs = [(target, seed) for target in targets for seed in seeds]
    return [Setting(world, reward, target, seed, 36 if target is None else 28) for target, seed in pairs]


# The order alternates, so that a part of them is already a sample of everything.
SETTINGS: list[Setting] = [
    *_grid("instructions", "2000", [None], [1, 2, 3]),
    *_grid("instructions", "8000", [0.3, 0.6], [0, 1]),
    *_grid("detoxification", "classifier", [None], [0]),
    *_grid("detoxification", "classifier, length", [0.5], [0]),
    *_grid("instructions", "500", [None], [0]),
    *_grid("instructions", "judge", [1.0], [0, 1]),
    *_grid("instructions", "2000", [None], [4]),
    *_grid("instructions", "2000", [0.3], [1, 2]),
    *_grid("instructions", "500", [None], [1]),
    *_grid("instructions", "judge", [2.0], [2, 3]),
    *_grid("instructions", "2000", [None], [5]),
    *_grid("instructions", "8000", [0.3, 0.6], [2]),
    *_grid("detoxification", "classifier, length", [0.9], [0]),
    *_grid("instructions", "500", [None], [2]),
    *_grid("instructions", "2000", [0.2, 0.3], [3]),
    *_grid("instructions", "2000", [None], [6]),
    *_grid("instructions", "8000", [0.2], [3, 4]),
    *_grid("instructions", "judge", [0.5], [4]),
    *_grid("instructions", "8000", [1.0], [5]),
    *_grid("detoxification", "classifier", [None], [1]),
    *_grid("detoxification", "classifier, length", [0.3], [1]),
    *_grid("instructions", "500", [None], [3, 4]),
    *_grid("instructions", "2000", [None], [7, 8]),
]


def options(folder: Path, setting: Setting) -> PPOConfig:
    """Return the settings of PPO: those of the recipes, with smaller rollouts."""
    free = setting.kl_target is None
    penalty = {"kl_coef": 0.0} if free else {"kl_controller": "pid", "kl_target": setting.kl_target, "kl_coef": 0.2}
    instructions = setting.world == "instructions"
    return PPOConfig(
        output_dir=str(folder),
        seed=setting.seed,
        max_completion_length=16 if instructions else 20,
        per_device_train_batch_size=ROLLOUT // 2,
        gradient_accumulation_steps=2,
        num_mini_batches=2,
        num_ppo_epochs=1,
        local_rollout_forward_batch_size=2 * ROLLOUT,
        per_device_eval_batch_size=2 * ROLLOUT,
        total_episodes=ROLLOUT * setting.rollouts,
        learning_rate=6e-4 if free else 3e-4,
        lr_scheduler_type="constant" if free else "linear",
        max_ratio=None,
        critic_learning_rate=5e-3,
        vf_coef=0.01,
        missing_eos_penalty=1.0 if instructions and not free else None,
        eval_strategy="steps",
        eval_on_start=True,
        eval_steps=14,
        gradient_checkpointing=False,
        logits_chunk_size=2048,
        logging_steps=10,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        **penalty,
    )


class World(Protocol):
    """Everything that the runs of one world have in common.

    Attributes:
        model: Folder of the policy to start from.
        tokenizer: Its tokenizer.
        prompts: Rows to train on.
        evaluation: Rows to evaluate on, `WATCHED` and `APART`.
        gold: The gold reward.
    """

    model: str
    tokenizer: Any
    prompts: Dataset
    evaluation: dict[str, Dataset]
    gold: Any

    def rewards(self, setting: Setting) -> list[Any]:
        """Return the reward functions of a run."""


class Instructions:
    """Instructions: a fine-tuned model, reward models of several sizes, and the judge as gold reward.

    Args:
        folder: Where the models that are trained for the runs are kept.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        assets = prepare_instructions()
        self.tokenizer = AutoTokenizer.from_pretrained(assets.model, padding_side="left")
        self.args = options(folder, Setting("instructions", "judge", None, 0, 1))
        stage = SupervisedStage(sft_learning_rate=5e-4, sft_batch_size=64)
        shown = Dataset.from_list(read_json_lines(Path(assets.demonstrations)))
        done = train_supervised(folder / "sft", assets.model, self.tokenizer, shown, self.args, stage, **LOADING)
        self.model = done["model"]
        rows = read_json_lines(Path(assets.train_prompts))
        self.prompts = Dataset.from_list(rows)
        held_out = Dataset.from_list(read_json_lines(Path(assets.eval_prompts)))
        self.evaluation = {WATCHED: held_out.select(range(102)), APART: held_out.select(range(102, 306))}
        self.gold = InstructionJudge()

    def _pairs(self) -> Dataset:
        file = self.folder / "pairs.jsonl"
        if not file.is_file():
            rows = self.prompts.select(range(8000)).to_list()
            asked = [row["prompt"] for row in rows for _ in range(4)]
            texts = sample_answers(self.model, self.tokenizer, asked, self.args, 1, {})
            answers = [texts[i : i + 4] for i in range(0, len(texts), 4)]
            write_json_lines(file, rank_pairs(rows, answers, grade, n=8000, label_noise=0.15, seed=0))
        return Dataset.from_list(read_json_lines(file))

    def rewards(self, setting: Setting) -> list[Any]:
        """Return the judge, or one of a few reward models trained on some of the pairs each."""
        if setting.reward == "judge":
            return [InstructionJudge()]
        count = int(setting.reward)
        seed = {500: setting.seed % 3, 2000: 1 + (setting.seed - 1) % 3, 8000: 0}[count]
        pairs = self._pairs().shuffle(seed=seed).select(range(count))
        target = self.folder / f"reward-{count}-{seed}"
        stage = RewardStage(reward_learning_rate=1e-3, reward_epochs=3 if count < 8000 else 1, reward_batch_size=64)
        train_reward_model(
            self.folder, target, self.model, self.tokenizer, pairs, self.args, stage, seed=seed, **LOADING
        )
        reward = PreferenceReward(str(target), append_eos=True, batch_size=2 * ROLLOUT, name="proxy")
        shown = self.prompts["prompt"][:256]
        calibrate([reward], shown, sample_answers(self.model, self.tokenizer, shown, self.args, setting.seed, {}))
        return [reward]


class Detoxification:
    """Detoxification: the embedded classifier as reward, and the judge as gold reward."""

    def __init__(self) -> None:
        assets = prepare()
        self.tokenizer = AutoTokenizer.from_pretrained(assets.model, padding_side="left")
        self.model, self.classifier = assets.model, assets.toxicity_model
        self.prompts = Dataset.from_list(read_json_lines(Path(assets.train_prompts)))
        held_out = Dataset.from_list(read_json_lines(Path(assets.eval_prompts)))
        self.evaluation = {WATCHED: held_out.select(range(100)), APART: held_out.select(range(100, 300))}
        self.gold = Comment(assets.judge_model)

    def rewards(self, setting: Setting) -> list[Any]:
        """Return the classifier, with or without a penalty for short completions."""
        toxicity = ToxicityReward(self.classifier, output="logit", batch_size=2 * ROLLOUT)
        if setting.reward == "classifier":
            return [toxicity]
        return [toxicity, LengthReward(8, outside=-2.5, ignore_ids=[self.tokenizer.eos_token_id])]


class Comment:
    """Gold reward of detoxification: the judge's probability of non-toxic, times the different words out of eight.

    The judge alone would give an empty completion, or one word eight times, full marks.

    Args:
        judge: Folder of a classifier.
    """

    __name__ = "gold"

    def __init__(self, judge: str):
        self.judge = ToxicityReward(judge, output="probability", batch_size=2 * ROLLOUT)

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
        """Return N marks in [0, 1]."""
        marks = self.judge(prompts, completions, **columns)
        shares = [min(1.0, len(set(text.lower().split())) / 8) for text in completions]
        return [float(mark) * share for mark, share in zip(marks, shares, strict=True)]


WORLDS: dict[str, Callable[[Path], World]] = {
    "instructions": Instructions,
    "detoxification": lambda folder: Detoxification(),
}


def make_run(setting: Setting, world: World, folder: Path) -> dict[str, Any]:
    """Train, and return the setting and the series that the monitor saw."""
    started = time.perf_counter()
    monitor = Recorder(world.gold, category="kind" if "kind" in world.prompts.column_names else None)
    trainer = PPOTrainer(
        model=str(world.model),
        reward_funcs=world.rewards(setting),
        args=options(folder, setting),
        train_dataset=world.prompts,
        eval_dataset=world.evaluation,
        processing_class=world.tokenizer,
        callbacks=[monitor],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train()
    kl = [line["kl"] for line in trainer.state.log_history if "kl" in line]
    return {
        "name": setting.name,
        **setting._asdict(),
        "kl": round(sum(kl[-8:]) / len(kl[-8:]), 3),
        "alarms": [list(alarm) for alarm in monitor.alarms],
        "seconds": round(time.perf_counter() - started, 1),
        "series": monitor.series,
    }


def make_runs(folder: Path, settings: Sequence[Setting]) -> None:
    """Make the runs that `folder` does not hold yet, one after the other."""
    worlds: dict[str, World] = {}
    for setting in settings:
        file = folder / f"{setting.name}.json"
        if file.is_file():
            continue
        if setting.world not in worlds:
            worlds[setting.world] = WORLDS[setting.world](folder / "models")
        run = make_run(setting, worlds[setting.world], folder / "work")
        write_json(file, run)
        print(
            f"{setting.name}: {run['seconds']} s, KL {run['kl']}, {[alarm[:2] for alarm in run['alarms']]}", flush=True
        )
        gc.collect()
