# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
# ruff: noqa: E402
"""Teach a language model to follow instructions, in InstructGPT's three steps, and measure what came of it.

Supervised fine-tuning (`sft`), a reward model from preference pairs (`reward`), PPO against it (`ppo`), and a
comparison by a judge that training never saw (`eval`). Without arguments everything is made here, small and offline.

Each stage works in a folder of its own in the output directory. What is done with the same configuration is skipped,
and what was interrupted goes on. The comparison leaves `summary.json` (its path is printed last) and `report.html`.
"""

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while the libraries load needs no traceback; `run` takes over

import datasets
import torch
from datasets import Dataset
from transformers import AutoTokenizer
from transformers.utils import logging as hf_logging
from trl import ModelConfig, get_peft_config, get_quantization_config

if find_spec("trl_ext") is None:
    sys.path.append(str(Path(__file__).resolve().parent.parent))  # a clone works without being installed

from trl_ext.config import PPOConfig
from trl_ext.instructions import comparison, policy, reward_stage, showing, training
from trl_ext.instructions.arguments import STAGES, InstructArguments
from trl_ext.instructions.data import StageData
from trl_ext.instructions.stages import Record, fingerprint, read_record, require, run_stage
from trl_ext.monitoring.progress import PhaseProgress
from trl_ext.monitoring.reward_hacking import RewardHackingMonitor
from trl_ext.rewards import PreferenceReward
from trl_ext.running.cli import RecipeParser, check_output_dir, run
from trl_ext.running.evaluation import write_summary
from trl_ext.running.folders import content_of, locked, model_content
from trl_ext.running.interrupts import Interrupted
from trl_ext.running.names import CRITIC_KINDS, check_critic, check_model, check_reward_model
from trl_ext.trainer import PPOTrainer
from trl_ext.worlds.instructions import InstructionJudge
from trl_ext.worlds.instructions_models import prepare_instructions

CONFIGS = Path(__file__).resolve().parent / "configs" / "instruction_following"
EXAMPLES = """
examples:
  python recipes/instruction_following.py
      the embedded example: offline, on the CPU, all four stages
  python recipes/instruction_following.py --stages ppo eval --kl_target 3
      the last two again, with another setting; the others are found in the output directory
  python recipes/instruction_following.py --model_name_or_path MODEL --preference_dataset PAIRS --output_dir out
      your own model and preference data; names are folders, files or ids of the Hub
  python recipes/instruction_following.py --config recipes/configs/instruction_following/qwen2.5_0.5b_ultrafeedback.yaml
      a YAML file
"""
# Settings of a run that change nothing about its result, by the beginnings of their names.
_INCIDENTAL = (
    "output_dir", "logging", "log_", "save_", "disable_tqdm", "report_to", "push_to_hub", "hub_", "run_name",
    "resume_from", "num_completions", "load_best", "metric_for", "greater_is", "project", "trackio", 
)  # fmt: skip


def make_parser() -> RecipeParser:
    """The command line: this recipe's options, PPO's, the model's, and the Trainer's (which are for PPO)."""
    return RecipeParser(InstructArguments, "stages, data and rewards", CONFIGS, __doc__ or "", EXAMPLES)


class Pipeline:
    """The stages of one output directory.

    Args:
        recipe, args, model_args: The parsed command line.
    """

    def __init__(self, recipe: InstructArguments, args: PPOConfig, model_args: ModelConfig):
        self.recipe, self.args, self.model_args = recipe, args, model_args
        self.output_dir = check_output_dir(args.output_dir)
        self.embedded = model_args.model_name_or_path is None
        self.eval_prompts: str | None = None
        self.digests: dict[tuple[str, str], str] = {}
        self.resolve_names()
        self.tokenizer = AutoTokenizer.from_pretrained(
            self.base, revision=model_args.model_revision, trust_remote_code=args.trust_remote_code
        )
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.tokenizer.padding_side = "left"
        dtype = model_args.dtype if model_args.dtype in ("auto", None) else getattr(torch, model_args.dtype)
        options = {"revision": model_args.model_revision, "attn_implementation": model_args.attn_implementation}
        options |= {"dtype": dtype}
        self.init_kwargs = {key: value for key, value in options.items() if value is not None}
        files = None if self.eval_prompts is None else (str(recipe.dataset_name), self.eval_prompts)
        self.data = StageData(recipe, self.tokenizer, files, args.seed)
        self.check_data()
        self.gold = self.make_gold()

    @property
    def base(self) -> str:
        """The model that everything starts from."""
        return str(self.model_args.model_name_or_path)

    def resolve_names(self) -> None:
        """Fill in what was not given from the embedded example, if no model was given, and check the rest.

        Raises:
            ValueError: if a name is missing or leads nowhere, or the judge is the reward.
        """
        recipe = self.recipe
        if self.embedded:
            with PhaseProgress().phase("prepare"):
                assets = prepare_instructions(recipe.offline_cache_dir)
            self.model_args.model_name_or_path = assets.model
            recipe.sft_dataset = recipe.sft_dataset or assets.demonstrations
            if recipe.dataset_name is None and recipe.preference_dataset is None:
                recipe.dataset_name, self.eval_prompts = assets.train_prompts, assets.eval_prompts
        if recipe.judge_model is not None and recipe.judge_model == recipe.reward_model:
            raise ValueError("`judge_model` is also the reward, which PPO has learned to please; judge with another.")
        if self.eval_prompts is None and recipe.preference_dataset is None:
            needed = {"reward": recipe.reward_model is None, "ppo": recipe.dataset_name is None}
            needed["sft"] = recipe.sft_dataset is None
            for stage, missing in needed.items():
                if missing and stage in recipe.stages:
                    raise ValueError(f"Stage `{stage}` needs data: give `--preference_dataset`; see `--help`.")
        trusted: dict[str, Any] = {"trust_remote_code": self.args.trust_remote_code}
        check_model("model_name_or_path", self.base, revision=self.model_args.model_revision, **trusted)
        check_critic(self.args.critic, has_lora=self.model_args.use_peft, **trusted)
        for option in ("reward_model", "judge_model"):
            if (name := getattr(recipe, option)) is not None:
                check_reward_model(option, name, **trusted)
        if "eval" in recipe.stages and recipe.compare_with not in (None, recipe.ppo_folder):
            comparison.read_run(self.output_dir / str(recipe.compare_with))

    def check_data(self) -> None:
        """Read all the data that the stages will read, so that a fault in the last is not found after hours.

        Raises:
            ValueError: for data that cannot be used.
        """
        stages = set(self.recipe.stages)
        needed = {
            "demonstrations": "sft" in stages,
            "pairs": "reward" in stages and self.recipe.preference_dataset is not None,
            "prompts": bool(stages & {"ppo", "eval"}),
            "ptx": "ppo" in stages and self.args.ptx_coef > 0,
        }
        for part, is_needed in needed.items():
            if is_needed:
                getattr(self.data, part)

    def make_gold(self) -> Any | None:
        """The reward that watches and evaluates: the embedded judge, or a reward model; None if there is none."""
        if self.eval_prompts is not None:
            return InstructionJudge()
        if self.recipe.judge_model is None:
            return None
        return PreferenceReward(self.recipe.judge_model, append_eos=True, name="gold", device=self.args.device)

    # ---- stages ----

    def settings(self, *prefixes: str) -> dict[str, Any]:
        """The recipe's options that begin with one of `prefixes`, with data by content, and what every stage uses."""
        own = {key: value for key, value in asdict(self.recipe).items() if key.startswith(prefixes)}
        shared = ("seed", "bf16", "fp16", "optim", "gradient_checkpointing", "per_device_train_batch_size")
        return self.by_content(own | asdict(self.model_args) | {name: getattr(self.args, name) for name in shared})

    def by_content(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Settings with the digest of each file and folder in place of its name, so that another content is noticed."""
        kinds = {"dataset": content_of, "dataset_name": content_of, "model": model_content, "critic": model_content}
        kinds["model_name_or_path"] = model_content
        for key, value in settings.items():
            identity = next((kind for end, kind in kinds.items() if key.endswith(end)), None)
            if identity is not None and isinstance(value, str) and value not in CRITIC_KINDS:
                if (key, value) not in self.digests:
                    self.digests[key, value] = str(identity(value))
                settings[key] = self.digests[key, value]
        return settings

    def sft_settings(self) -> dict[str, Any]:
        """What the `sft` stage depends on."""
        prefixes = ("sft_",) if self.recipe.sft_dataset is not None else ("sft_", "preference_", "num_preference_eval")
        return self.settings(*prefixes)

    def reward_settings(self) -> dict[str, Any]:
        """What the `reward` stage depends on."""
        settings = self.settings("preference_", "num_preference_", "label_noise", "reward_", "num_reward_")
        if self.recipe.preference_dataset is None and self.eval_prompts is not None:
            sampling = ("temperature", "top_p", "top_k", "max_completion_length")
            settings |= {name: getattr(self.args, name) for name in sampling}
            settings |= {"dataset_name": self.recipe.dataset_name, "eval_dataset": self.eval_prompts}
        return self.by_content(settings)

    def ppo_settings(self) -> dict[str, Any]:
        """What a PPO run depends on."""
        elsewhere: tuple[str, ...] = ("stages", "sft_", "preference_", "num_preference_", "label_noise", "reward_")
        elsewhere += ("num_reward_", "num_report", "compare_with", "offline_cache", "ppo_folder", "num_eval_prompts")
        own = {key: value for key, value in asdict(self.recipe).items() if not key.startswith(elsewhere)}
        if self.args.ptx_coef and self.recipe.ptx_dataset is None:
            own |= {"sft_dataset": self.recipe.sft_dataset, "sft_split": self.recipe.sft_split}
        if self.eval_prompts is None and self.recipe.dataset_name is not None:
            own["num_eval_prompts"] = self.recipe.num_eval_prompts  # taken from those to train on
        ppo = {key: value for key, value in self.args.to_dict().items() if not key.startswith(_INCIDENTAL)}
        return self.by_content(own | ppo | asdict(self.model_args))

    def sft(self) -> Record | None:
        """Supervised fine-tuning; None where it was neither asked for nor done: the model is the base then."""
        folder, settings = self.output_dir / "sft", self.sft_settings()
        if "sft" in self.recipe.stages:
            return run_stage("sft", folder, settings, (), self.train_supervised)
        if read_record(folder) is None:
            return None
        return require(folder, "sft", self.recipe.stages[0], fingerprint(settings))

    def train_supervised(self, folder: Path) -> dict[str, Any]:
        """The work of the `sft` stage."""
        recipe = self.recipe
        return training.train_supervised(
            folder,
            self.base,
            self.tokenizer,
            self.data.demonstrations,
            self.args,
            learning_rate=recipe.sft_learning_rate,
            epochs=recipe.sft_epochs,
            batch_size=recipe.sft_batch_size,
            max_length=recipe.sft_max_length,
            **self.loading(),
        )

    def loading(self) -> dict[str, Any]:
        """How TRL's trainers load a model: quantization and LoRA."""
        quantization = get_quantization_config(self.model_args)
        extra = {} if quantization is None else {"quantization_config": quantization}
        return {"init_kwargs": self.init_kwargs | extra, "peft_config": get_peft_config(self.model_args)}

    def start(self, sft: Record | None) -> str:
        """The model that the reward models and PPO start from."""
        return self.base if sft is None else str(sft.result["model"])

    def reward(self, sft: Record | None) -> Record:
        """The reward models and how good they are."""
        folder, settings = self.output_dir / "reward", self.reward_settings()
        upstream = [] if sft is None else [sft.fingerprint]
        if "reward" in self.recipe.stages:
            return run_stage("reward", folder, settings, upstream, lambda f: self.train_reward(f, self.start(sft)))
        if self.recipe.reward_model is not None and read_record(folder) is None:
            return Record(fingerprint(settings, upstream), settings, 0.0, {"models": [self.recipe.reward_model]})
        needing = "ppo" if "ppo" in self.recipe.stages else "eval"
        return require(
            folder, "reward", needing, fingerprint(settings, upstream), ", or give a trained `--reward_model`"
        )

    def train_reward(self, folder: Path, start: str) -> dict[str, Any]:
        """The work of the `reward` stage."""
        parts = (self.recipe, self.args, self.tokenizer)
        return reward_stage.work(folder, start, *parts, data=self.data, loading=self.loading())

    def ppo(self, sft: Record | None, reward: Record) -> Record:
        """The PPO run."""
        folder = self.output_dir / self.recipe.ppo_folder
        upstream = [reward.fingerprint, *([] if sft is None else [sft.fingerprint])]
        settings = self.ppo_settings()
        if "ppo" not in self.recipe.stages:
            return require(folder, "ppo", "eval", fingerprint(settings, upstream))

        def work(folder: Path) -> dict[str, Any]:
            trainer, _, monitor = self.make_trainer(sft, reward, folder)
            return policy.train(trainer, monitor, folder)

        return run_stage("ppo", folder, settings, upstream, work)

    def make_trainer(
        self, sft: Record | None, reward: Record, folder: Path
    ) -> tuple[PPOTrainer, Dataset, RewardHackingMonitor]:
        """The trainer of the PPO run, at its beginning, the prompts to evaluate on, and who watches."""
        recipe, args = self.recipe, self.args
        args.output_dir = str(folder)
        args.model_init_kwargs = self.init_kwargs | (args.model_init_kwargs or {})  # type: ignore[operator]
        prompts, held_out = self.data.prompts
        return policy.make_trainer(
            recipe,
            args,
            self.model_args,
            policy=self.start(sft),
            reward_models=reward.result["models"],
            tokenizer=self.tokenizer,
            prompts=prompts,
            eval_prompts=held_out,
            gold=self.gold,
            ptx_dataset=self.data.ptx if args.ptx_coef else None,
            folder=folder,
        )

    def evaluate(self, records: dict[str, Record | None]) -> Path:
        """Compare the policies before and after PPO, write the report and the summary, and return the latter's path."""
        sft, reward, ppo = records["sft"], records["reward"], records["ppo"]
        assert reward is not None and ppo is not None
        progress = PhaseProgress(enabled=not self.args.disable_tqdm)
        with progress.phase("eval"):
            folder = self.output_dir / self.recipe.ppo_folder
            target = self.output_dir if folder.name == "ppo" else folder  # several runs, several summaries
            trainer, rows, _ = self.make_trainer(sft, reward, folder)
            before = comparison.measure(trainer, rows, self.gold)
            trainer.model.load_pretrained(ppo.result["model"])
            after = comparison.measure(trainer, rows, self.gold)
        seconds = {name: record.seconds for name, record in records.items() if record is not None}
        kinds = rows["kind"][:] if "kind" in rows.column_names else None
        summary = comparison.summarize(before, after, kinds, reward.result, seconds | progress.take_seconds())
        summary["alarms"] = ppo.result["alarms"]
        runs = {self.recipe.ppo_folder: ppo.result}
        if self.recipe.compare_with is not None:
            runs[self.recipe.compare_with] = comparison.read_run(self.output_dir / self.recipe.compare_with)
        showing.report(
            target / "report.html",
            before,
            after,
            summary,
            runs=runs,
            reward=reward.result,
            config=asdict(self.recipe) | self.args.to_dict(),
            kl_target=self.args.kl_target,
            num_samples=self.recipe.num_report_samples,
            embedded=self.embedded,
        )
        write_summary(target / "summary.json", summary)
        showing.print_summary(summary)
        return target / "summary.json"


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and run the stages."""
    recipe, args, model_args = make_parser().parse_recipe(argv)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError("This recipe runs in one process, because its stages hand over files; start it with `python`.")
    hf_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    recipe.stages = [stage for stage in STAGES if stage in recipe.stages]
    with locked(check_output_dir(args.output_dir)):
        run_stages(Pipeline(recipe, args, model_args))


def run_stages(pipeline: Pipeline) -> None:
    """Run the stages that were asked for, in their order."""
    recipe = pipeline.recipe
    records: dict[str, Record | None] = {"sft": pipeline.sft()}
    if recipe.stages != ["sft"]:
        records["reward"] = pipeline.reward(records["sft"])
        showing.print_reward(records["reward"].result)  # type: ignore[union-attr]
    if {"ppo", "eval"} & set(recipe.stages):
        records["ppo"] = pipeline.ppo(records["sft"], records["reward"])  # type: ignore[arg-type]
    print(f"Output: {pipeline.output_dir}")
    if "eval" in recipe.stages:
        try:
            print(pipeline.evaluate(records))
        except KeyboardInterrupt as stop:
            raise Interrupted.at("in stage `eval`", stop) from None


if __name__ == "__main__":
    run(main)
