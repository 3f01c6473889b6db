# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
# ruff: noqa: E402
"""Teach a language model to follow instructions in InstructGPT's three steps, and compare it with the SFT model.

Supervised fine-tuning (`sft`), a reward model from preference pairs (`reward`), PPO against it (`ppo`), and a
comparison by a judge that training never saw (`eval`). Without arguments everything is made here, small and offline.

Each stage works in a folder of its own in the output directory. A stage that was done with the same configuration is
skipped, an interrupted stage goes on. The comparison leaves `report.html` and `summary.json`; its path is printed last.
"""

import copy
import os
import signal
import sys
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while the libraries load needs no traceback; `run` takes over

import datasets
from datasets import Dataset
from transformers.utils import logging as hf_logging
from trl import ModelConfig

if find_spec("trl_ext") is None:
    sys.path.append(str(Path(__file__).resolve().parent.parent))  # a clone works without being installed

from trl_ext.config import PPOConfig
from trl_ext.evaluation.path import split_rows
from trl_ext.instructions import comparison, policy, reward_stage, showing, training
from trl_ext.instructions.comparison import gold_quality
from trl_ext.instructions.data import StageData
from trl_ext.instructions.names import resolve_names
from trl_ext.instructions.options import PPOStage, PreferenceData, RewardStage, RunOptions, SupervisedStage
from trl_ext.instructions.rewards import PROXY, make_gold
from trl_ext.instructions.settings import StageSettings
from trl_ext.instructions.stages import Record, fingerprint, read_record, require, run_stage
from trl_ext.kl_control import check_bounds
from trl_ext.model_card import add_results
from trl_ext.monitoring.progress import PhaseProgress
from trl_ext.monitoring.reward_hacking import RewardHackingMonitor
from trl_ext.reports.runs import report_of
from trl_ext.running.best_eta import KEPT
from trl_ext.running.cli import RecipeParser, check_output_dir, run
from trl_ext.running.folders import locked
from trl_ext.running.interrupts import Interrupted
from trl_ext.running.models import init_kwargs, load_tokenizer, training_options
from trl_ext.running.policy import policy_of
from trl_ext.running.records import Reopened, rebuilt, rebuilt_config, write_record
from trl_ext.running.records import read_record as read_options
from trl_ext.trainer import PPOTrainer

CONFIGS = Path(__file__).resolve().parent / "configs" / "instruction_following"
EXAMPLES = """
examples:
  trl_ext instruct
      the embedded example: offline, on the CPU, all four stages
  trl_ext instruct --stages ppo eval --kl_target 3
      the last two again, with another setting; the others are found in the output directory
  trl_ext instruct --critic reward
      the critic starts from the run's own reward model
  trl_ext instruct --model_name_or_path MODEL --preference_dataset PAIRS --output_dir out
      your own model and preference data; names are folders, files or ids of the Hub
  trl_ext instruct --config qwen2.5_0.5b_ultrafeedback
      a YAML file
"""
OPTIONS = {
    "stages and comparison": RunOptions,
    "stage sft": SupervisedStage,
    "preference data": PreferenceData,
    "stage reward": RewardStage,
    "stage ppo": PPOStage,
}


def make_parser() -> RecipeParser:
    """Return the parser of this recipe's options, PPO's, the model's, and the Trainer's (which are for PPO)."""
    return RecipeParser(OPTIONS, CONFIGS, __doc__ or "", EXAMPLES, "trl_ext instruct")


class Pipeline:
    """The stages of one output directory: names, data, judge, then one method a stage.

    Args:
        options: The parsed options: one dataclass of each type in `OPTIONS`, in this order.
        args: Configuration of PPO.
        model_args: The model that everything starts from.
    """

    def __init__(self, options: Sequence[Any], args: PPOConfig, model_args: ModelConfig):
        self.options, self.args, self.model_args = options, args, model_args
        self.run, self.sft_stage, self.pairs, self.reward_stage, self.ppo_stage = options
        self.output_dir = check_output_dir(args.output_dir)
        self.is_embedded = model_args.model_name_or_path is None
        self.embedded_prompts = resolve_names(*options, args=args, model_args=model_args)
        if self.embedded_prompts is not None:
            self.run.category_column = self.run.category_column or "kind"
        self.settings = StageSettings(args, model_args)
        self.tokenizer = load_tokenizer(model_args, trust_remote_code=args.trust_remote_code)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.tokenizer.padding_side = "left"
        self.data = StageData(
            self.sft_stage,
            self.pairs,
            self.ppo_stage,
            self.tokenizer,
            embedded=self.embedded_prompts,
            prompt_column=args.prompt_column,
            num_eval_prompts=self.run.num_eval_prompts,
            category_column=self.run.category_column,
            seed=args.seed,
        )
        self.data.check(self.run.stages, ptx=args.ptx_coef > 0)
        self.gold = make_gold(self.ppo_stage, args, is_embedded=self.embedded_prompts is not None)
        if self.run.category_column is not None and self.gold is None:
            raise ValueError("`--category_column` compares gold rewards; give a `--judge_model`, or leave it out.")

    # ---- stages ----

    def sft(self) -> Record | None:
        """Fine-tune on demonstrations; None where that was neither asked for nor done: the model is the base then."""
        folder, settings = self.output_dir / "sft", self.settings.sft(self.sft_stage, self.pairs)
        if "sft" not in self.run.stages:
            is_done = read_record(folder) is not None
            return require(folder, "sft", self.run.stages[0], fingerprint(settings)) if is_done else None

        def work(folder: Path) -> dict[str, Any]:
            parts = (self.start(None), self.tokenizer, self.data.demonstrations, self.args, self.sft_stage)
            return training.train_supervised(folder, *parts, **training_options(self.model_args))

        return run_stage("sft", folder, settings, (), work)

    def reward(self, sft: Record | None) -> Record:
        """Train the reward models and measure them on held-out pairs."""
        stage, folder = self.reward_stage, self.output_dir / "reward"
        settings = self.settings.reward(stage, self.pairs, self.embedded_prompts)
        upstream = [] if sft is None else [sft.fingerprint]
        if "reward" not in self.run.stages:
            if stage.reward_model is not None and read_record(folder) is None:
                return Record(fingerprint(settings, upstream), settings, 0.0, {"models": [stage.reward_model]})
            needing = "ppo" if "ppo" in self.run.stages else "eval"
            remedy = ", or give a trained `--reward_model`"
            return require(folder, "reward", needing, fingerprint(settings, upstream), remedy)

        def work(folder: Path) -> dict[str, Any]:
            parts = (self.start(sft), stage, self.args, self.tokenizer)
            return reward_stage.work(folder, *parts, data=self.data, loading=training_options(self.model_args))

        return run_stage("reward", folder, settings, upstream, work)

    def ppo(self, sft: Record | None, reward: Record) -> Record:
        """Train the policy."""
        folder = self.output_dir / self.run.ppo_folder
        upstream = [reward.fingerprint, *([] if sft is None else [sft.fingerprint])]
        own = (self.ppo_stage, self.sft_stage, self.run.num_eval_prompts, self.embedded_prompts)
        settings = self.settings.ppo(*own)
        if "ppo" not in self.run.stages:
            return require(folder, "ppo", "eval", fingerprint(settings, upstream))

        def work(folder: Path) -> dict[str, Any]:
            trainer, rows, monitor = self.make_trainer(sft, reward, folder)
            return policy.train(trainer, monitor, folder, self.ppo_stage, self.halves(rows)[0])

        return run_stage("ppo", folder, settings, upstream, work)

    def evaluate(self, sft: Record | None, reward: Record, ppo: Record) -> Path:
        """Compare the policies before and after PPO, write report and summary, and return the path of the summary."""
        progress = PhaseProgress(bars=not self.args.disable_tqdm)
        folder = self.output_dir / self.run.ppo_folder
        target = self.output_dir if folder.name == "ppo" else folder  # several runs, several summaries
        with progress.phase("eval"):
            trainer, rows, _ = self.make_trainer(sft, reward, folder)
            rows, column = self.halves(rows)[1], self.run.category_column
            repeats = 1 if column is None else self.run.category_samples
            parts = (trainer.rewards, rows, self.gold, self.args.seed, repeats)
            measured = partial(comparison.measure, policy_of(trainer), *parts)
            before = measured()
            average = policy.load(trainer, ppo.result, measured)
            after = measured()
        records = {"sft": sft, "reward": reward, "ppo": ppo}
        seconds = {name: record.seconds for name, record in records.items() if record is not None}
        categories = None if column is None else rows[column][:]
        seconds |= progress.take_seconds()
        summary = comparison.summarize(before, after, categories, reward.result, seconds, average)
        summary |= {name: ppo.result[name] for name in KEPT if name in ppo.result}
        summary |= {"alarms": ppo.result["alarms"], "train_seconds": ppo.seconds, **showing.course(ppo.result)}
        runs = {self.run.ppo_folder: ppo.result}
        if self.run.compare_with is not None:
            runs[self.run.compare_with] = comparison.read_run(self.output_dir / self.run.compare_with)
        summary = showing.report(
            target,
            before,
            after,
            summary,
            runs=runs,
            reward=reward.result,
            model=str(self.model_args.model_name_or_path),
            about=report_of(trainer, title="Instruction following", options=(*self.options, self.model_args)),
            num_samples=self.run.num_report_samples,
            embedded=self.is_embedded,
        )
        add_results(ppo.result["model"], summary)
        showing.print_summary(summary)
        return target / "summary.json"

    def halves(self, rows: Dataset) -> tuple[Dataset | None, Dataset]:
        """Return the evaluation prompts to choose eta on, and those to report on: all, where none is chosen."""
        if not self.ppo_stage.keep_best_eta:
            return None, rows
        choosing, reported = split_rows(len(rows))
        return rows.select(choosing), rows.select(reported)

    # ---- models ----

    def start(self, sft: Record | None) -> str:
        """Return the model that the reward models and PPO start from."""
        return str(self.model_args.model_name_or_path) if sft is None else str(sft.result["model"])

    def make_trainer(
        self, sft: Record | None, reward: Record, folder: Path
    ) -> tuple[PPOTrainer, Dataset, RewardHackingMonitor]:
        """Return the trainer of the PPO run, at its beginning, the prompts to evaluate on, and the monitor."""
        args, (prompts, held_out) = self.args, self.data.prompts
        args.output_dir = str(folder)
        args.model_init_kwargs = init_kwargs(self.model_args) | (args.model_init_kwargs or {})  # type: ignore[operator]
        return policy.make_trainer(
            self.ppo_stage,
            args,
            self.model_args,
            policy=self.start(sft),
            reward_models=reward.result["models"],
            max_length=self.reward_stage.reward_max_length,
            tokenizer=self.tokenizer,
            prompts=prompts,
            eval_prompts=held_out,
            gold=self.gold,
            ptx_dataset=self.data.ptx if args.ptx_coef else None,
            folder=folder,
            category=self.run.category_column,
        )


def run_stages(pipeline: Pipeline) -> None:
    """Run the stages that were asked for, in their order."""
    stages = pipeline.run.stages
    sft = pipeline.sft()
    if stages != ["sft"]:
        reward = pipeline.reward(sft)
        showing.print_reward(reward.result)
    if {"ppo", "eval"} & set(stages):
        ppo = pipeline.ppo(sft, reward)
    print(f"Output: {pipeline.output_dir}")
    if "eval" in stages:
        try:
            print(pipeline.evaluate(sft, reward, ppo))
        except KeyboardInterrupt as stop:
            raise Interrupted.at("in stage `eval`", stop) from None


def reopen(folder: Path, **changes: Any) -> Reopened:
    """Return a run as it was before PPO, for `trl_ext interpolate`; `changes` are other settings of PPO."""
    record = read_options(folder)
    assert record is not None
    options: list[Any] = [rebuilt(kind, record) for kind in OPTIONS.values()]
    model_args = rebuilt(ModelConfig, record)
    pipeline = Pipeline(options, rebuilt_config(record, str(folder), **changes), model_args)
    pipeline.run.stages = ["eval"]
    sft = pipeline.sft()
    trainer, rows, _ = pipeline.make_trainer(sft, pipeline.reward(sft), folder / pipeline.run.ppo_folder)
    rows = pipeline.halves(rows)[1]
    return Reopened(trainer, rows[:], None if pipeline.gold is None else gold_quality(pipeline.gold))


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and run the stages."""
    *options, args, model_args = make_parser().parse_recipe(argv)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError("This recipe runs in one process, because its stages hand over files; start it with `python`.")
    check_bounds(args.reward_constraints, [PROXY])
    hf_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    with locked(folder := check_output_dir(args.output_dir)):
        given = [copy.copy(part) for part in (args, model_args, *options)]  # the pipeline puts names into them
        pipeline = Pipeline(options, args, model_args)
        write_record(folder, "instruct", given[0], given[1:], model=f"{pipeline.run.ppo_folder}/model")
        run_stages(pipeline)


if __name__ == "__main__":
    run(main)
