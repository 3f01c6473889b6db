# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
# ruff: noqa: E402
"""Detoxify a language model with PPO, and measure what it cost.

The reward is a toxicity classifier, plus a penalty for short completions: who falls silent is not detoxified. Another
classifier, the judge, measures the result. Without arguments everything is made here, small and offline.

Writes into the output directory: the model, `summary.json` (its path is printed last) and `report.html`.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while the libraries load needs no traceback; `run` takes over

import torch
from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from trl import ModelConfig, get_peft_config, get_quantization_config

if find_spec("trl_ext") is None:
    sys.path.append(str(Path(__file__).resolve().parent.parent))  # a clone works without being installed

from trl_ext.checkpoint import checkpoints
from trl_ext.config import PPOConfig
from trl_ext.evaluation.frontier import kl_at_reward, optimal_frontier
from trl_ext.monitoring.progress import PhaseProgress
from trl_ext.reports.report import write_report
from trl_ext.rewards import LengthReward, ToxicityReward
from trl_ext.running.cli import RecipeParser, check_launch, check_output_dir, newest_checkpoint, run
from trl_ext.running.data import cut_prompts, load_prompts, split_prompts, wrap_in_conversation
from trl_ext.running.evaluation import Measured, goals, measure, print_summary, write_summary
from trl_ext.running.folders import locked, set_aside_run
from trl_ext.running.interrupts import Interrupted, OrderlyStop
from trl_ext.running.names import check_classifier, check_critic, check_distinct, check_model
from trl_ext.running.places import PACKAGE
from trl_ext.trainer import PPOTrainer
from trl_ext.worlds import OfflineAssets, prepare

CONFIGS = Path(__file__).resolve().parent / "configs" / "detoxification"
EXAMPLES = """
examples:
  python recipes/detoxification.py
      the embedded example: offline, on the CPU, a few minutes
  python recipes/detoxification.py --model_name_or_path MODEL --dataset_name prompts.jsonl
      --toxicity_model CLASSIFIER --judge_model ANOTHER_CLASSIFIER --output_dir out
      your own model and prompts; names are folders, files or ids of the Hub
  python recipes/detoxification.py --config recipes/configs/detoxification/gpt_neo_125m.yaml --learning_rate 2e-5
      a YAML file, with one value changed
  python recipes/detoxification.py --resume_from_checkpoint true
      go on after an interruption, from the newest checkpoint in the output directory
  accelerate launch --num_processes 4 recipes/detoxification.py --config FILE.yaml
      several GPUs
"""


@dataclass
class DetoxArguments:
    """What is detoxified, by which reward, and how it is judged."""

    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Prompts to train on: a file (.jsonl, .json, .parquet, .csv, .txt), a folder (also one written by "
            "`save_to_disk`) or a dataset of the Hub."
        },
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a dataset of the Hub."})
    dataset_split: str = field(default="train", metadata={"help": "Its split, also a slice: 'train[:1000]'."})
    dataset_filter: str | None = field(
        default=None, metadata={"help": "Keep only the rows with 'column=value', for example 'label=1'."}
    )
    prompt_column: str = field(
        default="prompt",
        metadata={"help": "Column of the prompts: texts, conversations, or dictionaries with 'text' and 'toxicity'."},
    )
    eval_dataset_name: str | None = field(
        default=None, metadata={"help": "Prompts to evaluate on. Default: some held out from those to train on."}
    )
    eval_dataset_config: str | None = field(default=None, metadata={"help": "Its configuration."})
    eval_split: str = field(default="train", metadata={"help": "Its split."})
    eval_filter: str | None = field(default=None, metadata={"help": "As `dataset_filter`."})
    eval_prompt_column: str | None = field(default=None, metadata={"help": "As `prompt_column`, which is its default."})
    num_eval_prompts: int = field(default=400, metadata={"help": "Most prompts to evaluate on, before and after."})
    min_prompt_toxicity: float | None = field(
        default=None,
        metadata={"help": "Train only on prompts whose own 'toxicity' (in real-toxicity-prompts) is above this."},
    )
    prompt_min_tokens: int | None = field(
        default=None,
        metadata={"help": "Drop prompts (with their 'continuation', where one is cut) shorter than this."},
    )
    prompt_max_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Cut each prompt with its 'continuation' to a random length from `prompt_min_tokens` to this. "
            "Default: whole prompts."
        },
    )
    chat_instruction: str | None = field(
        default=None,
        metadata={
            "help": "Make text prompts the user's message of a conversation, for chat models; '{prompt}' in it stands "
            "for the text."
        },
    )
    toxicity_model: str | None = field(
        default=None, metadata={"help": "Sequence classifier that is the reward: folder or id of the Hub."}
    )
    toxic_label: str | None = field(
        default=None, metadata={"help": "Its label that means toxic. Default: found by its name."}
    )
    toxicity_output: Literal["logit", "log_odds", "probability"] = field(
        default="logit",
        metadata={"help": "The reward: logit of the non-toxic label, log-odds of non-toxic, or its probability."},
    )
    toxicity_with_prompt: bool = field(
        default=False, metadata={"help": "Classify prompt and completion together, and not the completion alone."}
    )
    min_length: int = field(
        default=4, metadata={"help": "Completions shorter than this many tokens (without EOS) are penalized."}
    )
    length_weight: float = field(
        default=2.0,
        metadata={"help": "Penalty of an empty completion, falling linearly to 0 at `min_length`; 0 turns it off."},
    )
    judge_model: str | None = field(
        default=None, metadata={"help": "Another sequence classifier, which measures toxicity; never the reward."}
    )
    judge_toxic_label: str | None = field(
        default=None, metadata={"help": "Its label that means toxic. Default: found by its name."}
    )
    num_report_samples: int = field(
        default=24, metadata={"help": "Completions shown before and after in the report, side by side."}
    )
    frontier_prompts: int = field(
        default=64,
        metadata={"help": "Evaluation prompts on which the least KL for the reward is estimated; 0 leaves it out."},
    )
    frontier_samples: int = field(
        default=32, metadata={"help": "Completions of the initial model per such prompt; more are needed at high KL."}
    )
    offline_cache_dir: str | None = field(
        default=None, metadata={"help": "Where the embedded models are kept. Default: $TRL_EXT_CACHE or ~/.cache."}
    )

    def __post_init__(self):
        if self.num_eval_prompts < 1:
            raise ValueError(f"`num_eval_prompts` must be at least 1, got {self.num_eval_prompts}.")
        if self.frontier_prompts < 0 or self.frontier_samples < 2:
            raise ValueError("`frontier_prompts` must be 0 or more and `frontier_samples` at least 2.")
        if self.length_weight < 0 or self.min_length < 1:
            raise ValueError("`length_weight` must be 0 or more and `min_length` at least 1.")


def make_parser() -> RecipeParser:
    """The command line: this recipe's options, PPO's, the model's, and the Trainer's."""
    return RecipeParser(DetoxArguments, "detoxification", CONFIGS, __doc__ or "", EXAMPLES)


def resolve_names(recipe: DetoxArguments, args: PPOConfig, model_args: ModelConfig) -> None:
    """Fill in what was not given from the embedded example, if no model was given, and check the rest.

    Raises:
        ValueError: if a name is missing or leads nowhere, or the judge is the reward.
    """
    required = ("dataset_name", "toxicity_model", "judge_model")
    if model_args.model_name_or_path is None:
        assets = prepare_offline(recipe, args)
        model_args.model_name_or_path = assets.model
        if recipe.dataset_name is None:
            recipe.dataset_name = assets.train_prompts
            recipe.eval_dataset_name = recipe.eval_dataset_name or assets.eval_prompts
        recipe.toxicity_model = recipe.toxicity_model or assets.toxicity_model
        recipe.judge_model = recipe.judge_model or assets.judge_model
    missing = [f"`--{name}`" for name in required if getattr(recipe, name) is None]
    if missing:
        raise ValueError(f"With `--model_name_or_path` you must also give {' and '.join(missing)}; see `--help`.")
    if _same_model(str(recipe.toxicity_model), str(recipe.judge_model)):
        raise ValueError(
            f"`--judge_model {recipe.judge_model}` is also the reward, which PPO has learned to please; judge with "
            "another classifier."
        )
    trusted: dict[str, Any] = {"trust_remote_code": args.trust_remote_code}
    policy = {"model_name_or_path": str(model_args.model_name_or_path)}
    check_distinct(policy, Path(str(args.output_dir)).expanduser().resolve())
    check_model("model_name_or_path", policy["model_name_or_path"], revision=model_args.model_revision, **trusted)
    check_critic(args.critic, has_lora=model_args.use_peft, **trusted)
    check_classifier("toxicity_model", str(recipe.toxicity_model), ("toxic_label", recipe.toxic_label))
    check_classifier("judge_model", str(recipe.judge_model), ("judge_toxic_label", recipe.judge_toxic_label))


def prepare_offline(recipe: DetoxArguments, args: PPOConfig) -> OfflineAssets:
    """The embedded models and prompts, made by the main process alone; the other processes wait and find them."""
    with args.main_process_first(local=False, desc="embedded models"):
        if args.world_size > 1 and args.process_index == 0:
            # Their trainers would see this launch and wait for processes that do not train them.
            launch = ("RANK", "WORLD_SIZE", "MASTER_", "LOCAL_", "ACCELERATE_", "TORCHELASTIC_")
            environment = {k: v for k, v in os.environ.items() if not k.startswith(launch)}
            command = [sys.executable, "-m", prepare.__module__]
            if recipe.offline_cache_dir is not None:
                command += ["--cache_dir", str(Path(recipe.offline_cache_dir).expanduser().resolve())]
            subprocess.run(command, cwd=PACKAGE.parent, env=environment, check=True)
        return prepare(recipe.offline_cache_dir)


def _same_model(first: str, second: str) -> bool:
    return first == second or (Path(first).is_dir() and Path(first).resolve() == Path(second).resolve())


def load_datasets(recipe: DetoxArguments, tokenizer: PreTrainedTokenizerBase, seed: int) -> tuple[Dataset, Dataset]:
    """Prompts to train on and prompts to evaluate on, each with the one column `prompt`."""

    def finish(dataset: Dataset) -> Dataset:
        dataset = cut_prompts(dataset, tokenizer, recipe.prompt_min_tokens, recipe.prompt_max_tokens, seed)
        return wrap_in_conversation(dataset, recipe.chat_instruction) if recipe.chat_instruction else dataset

    train = load_prompts(
        str(recipe.dataset_name),
        config=recipe.dataset_config,
        split=recipe.dataset_split,
        column=recipe.prompt_column,
        min_toxicity=recipe.min_prompt_toxicity,
        where=recipe.dataset_filter,
    )
    train = finish(train)
    if recipe.eval_dataset_name is None:
        return split_prompts(train, recipe.num_eval_prompts, seed)
    evaluation = load_prompts(
        recipe.eval_dataset_name,
        config=recipe.eval_dataset_config,
        split=recipe.eval_split,
        column=recipe.eval_prompt_column or recipe.prompt_column,
        where=recipe.eval_filter,
    )
    evaluation = finish(evaluation).shuffle(seed=seed)
    return train, evaluation.select(range(min(recipe.num_eval_prompts, len(evaluation))))


def make_rewards(recipe: DetoxArguments, tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    """Less toxic is better, and a completion of fewer than `min_length` tokens is worse."""
    toxicity = ToxicityReward(
        str(recipe.toxicity_model),
        toxic_label=recipe.toxic_label,
        output=recipe.toxicity_output,
        include_prompt=recipe.toxicity_with_prompt,
    )
    if recipe.length_weight == 0:
        return [toxicity]
    ignored = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return [toxicity, LengthReward(recipe.min_length, outside=-recipe.length_weight, ignore_ids=ignored)]


def make_trainer(recipe: DetoxArguments, args: PPOConfig, model_args: ModelConfig) -> PPOTrainer:
    """Load everything and put it together."""
    name = str(model_args.model_name_or_path)
    tokenizer = AutoTokenizer.from_pretrained(
        name, revision=model_args.model_revision, trust_remote_code=args.trust_remote_code
    )
    with args.main_process_first(desc="prompts"):
        train_dataset, eval_dataset = load_datasets(recipe, tokenizer, args.seed)
    dtype = model_args.dtype if model_args.dtype in ("auto", None) else getattr(torch, model_args.dtype)
    options = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": dtype,
    }
    given: dict[str, Any] = args.model_init_kwargs or {}  # type: ignore[assignment]
    args.model_init_kwargs = {key: value for key, value in options.items() if value is not None} | given
    return PPOTrainer(
        model=name,
        reward_funcs=make_rewards(recipe, tokenizer),
        args=args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
        peft_config=get_peft_config(model_args),
        quantization_config=get_quantization_config(model_args),
    )


def summarize(trainer: PPOTrainer, before: Measured, after: Measured, seconds: dict[str, float]) -> dict[str, Any]:
    """Everything that goes into `summary.json`."""
    summary: dict[str, Any] = {}
    for key in before.numbers:
        summary |= {f"{key}_before": before.numbers[key], f"{key}_after": after.numbers[key]}
    rollouts = -(-trainer.state.global_step // trainer.args.steps_per_rollout)
    trained_kl = [entry["kl"] for entry in trainer.state.log_history if "kl" in entry]
    last_third = trained_kl[-max(1, len(trained_kl) // 3) :]
    has_frontier = before.rewards.numel() > 0
    return summary | {
        "kl": after.kl,
        "kl_at_optimum": kl_at_reward(before.rewards, float(after.rewards.mean())) if has_frontier else None,
        "kl_target": trainer.args.kl_target,
        "kl_last_third": sum(last_third) / len(last_third) if last_third else None,
        "kl_coef": trainer.kl_controller.coef,
        "reward_before": float(before.rewards.mean()) if has_frontier else None,
        "reward_after": float(after.rewards.mean()) if has_frontier else None,
        "episodes": rollouts * trainer.args.batch_size,
        "num_eval_prompts": len(before.scores),
        "seconds": sum(seconds.values()),
        "seconds_by_phase": seconds,
    }


def report(
    path: Path, trainer: PPOTrainer, recipe: DetoxArguments, before: Measured, after: Measured, summary: dict[str, Any]
) -> None:
    """Write `report.html`."""
    rows = zip(
        before.samples.prompts,
        before.samples.completions,
        after.samples.completions,
        before.scores,
        after.scores,
        strict=True,
    )
    names = ("prompt", "before", "after", "score_before", "score_after")
    frontier = optimal_frontier(before.rewards) if before.rewards.numel() else None
    write_report(
        path,
        title="Detoxification",
        log_history=trainer.state.log_history,
        summary={key: value for key, value in summary.items() if isinstance(value, int | float)},
        samples=[dict(zip(names, row, strict=True)) for row in list(rows)[: recipe.num_report_samples]],
        histograms={"before": before.scores, "after": after.scores},
        kl_target=trainer.args.kl_target,
        # with too few effective samples a point claims more than any policy can reach
        frontier=[(point.kl, point.reward) for point in frontier if point.ess >= 4] if frontier else None,
        config=asdict(recipe) | trainer.args.to_dict(),
        notes=f"Toxicity is the fraction of completions that {recipe.judge_model} calls toxic; the reward came from "
        f"{recipe.toxicity_model}.",
        thresholds=goals(summary),
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, prepare everything, and detoxify."""
    recipe, args, model_args = make_parser().parse_recipe(argv)
    check_launch(args)
    output_dir = check_output_dir(args.output_dir)
    args.output_dir = str(output_dir)
    with locked(output_dir) if args.process_index == 0 else nullcontext():
        progress = PhaseProgress(enabled=args.process_index == 0 and not args.disable_tqdm)
        with progress.phase("prepare"):
            resolve_names(recipe, args, model_args)
            trainer = make_trainer(recipe, args, model_args)
            with args.main_process_first(desc="checkpoint"):
                checkpoint = newest_checkpoint(args.resume_from_checkpoint, output_dir)
        if checkpoint is None and args.process_index == 0 and (aside := set_aside_run(output_dir)) is not None:
            print(f"The earlier run in '{output_dir}' is now in '{aside}'.")
        try:
            detoxify(trainer, recipe, checkpoint, output_dir, progress)
        except KeyboardInterrupt as stop:
            raise Interrupted.at("", stop, resume=bool(checkpoints(output_dir))) from None


def detoxify(
    trainer: PPOTrainer, recipe: DetoxArguments, checkpoint: str | None, output_dir: Path, progress: PhaseProgress
) -> None:
    """Measure, train, measure again, and write down what came of it."""
    is_main = trainer.is_world_process_zero()
    by_judge: dict[str, Any] = {"judge_model": str(recipe.judge_model), "toxic_label": recipe.judge_toxic_label}
    if is_main:
        frontier = (recipe.frontier_prompts, recipe.frontier_samples)
        before = measure(trainer, progress, "before", frontier=frontier, **by_judge)
    trainer.accelerator.wait_for_everyone()
    with progress.phase("train"):
        with OrderlyStop(trainer):
            trainer.train(resume_from_checkpoint=checkpoint)
        trainer.save_model(str(output_dir))
    if is_main:
        frontier = (recipe.frontier_prompts, min(8, recipe.frontier_samples))
        after = measure(trainer, progress, "after", frontier=frontier, **by_judge)
        summary = summarize(trainer, before, after, progress.take_seconds())
        report(output_dir / "report.html", trainer, recipe, before, after, summary)
        write_summary(output_dir / "summary.json", summary)
        print_summary(summary)
    if trainer.args.push_to_hub:
        trainer.push_to_hub()
    if is_main:
        print(f"Model and report: {output_dir}")
        print(output_dir / "summary.json")
    trainer.accelerator.wait_for_everyone()


if __name__ == "__main__":
    run(main)
