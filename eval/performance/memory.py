# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Measure the memory of PPO phase by phase: `python -m eval.performance.memory --shape llama-3-8b --critic adapter`."""

import argparse
import dataclasses
import json
import platform
import subprocess
import sys
import tempfile
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import PretrainedConfig

from trl_ext import PPOConfig, PPOTrainer
from trl_ext.commands.plan import setup_from, setup_parser
from trl_ext.files import write_json
from trl_ext.planner.plan import GIB, Footprint, load_config, plan
from trl_ext.planner.setup import Setup
from trl_ext.planner.shapes import SHAPES
from trl_ext.rewards import PreferenceReward

from .arrangements import four_models, one_base, weights_by_role
from .peaks import CudaMemory, ProcessMemory
from .progress import PhasePeaks
from .random_models import SPECIAL, prompts, word_tokenizer

DESCRIPTION = """Run PPO for two rollouts on random weights of an architecture, measure the peak memory of every phase
and put the planner's figures beside it. Nothing is downloaded. With --compare: the same with four separate models."""

RESULTS = Path(__file__).parent / "results"
PHASES = ("generate", "score", "evaluate", "learn")
ARRANGEMENTS = ("one-base", "four-models")
ROLLOUTS = 2  # the optimizer has no state yet in the first
VERSIONS = ("torch", "transformers", "peft", "trl", "bitsandbytes")


def constant_reward(prompts: list, completions: list, completion_ids: list, **columns: Any) -> list[float]:
    """Return 0 for every completion: a reward that costs nothing."""
    return [0.0] * len(completions)


def scaled(config: PretrainedConfig, arguments: argparse.Namespace) -> PretrainedConfig:
    """Return the configuration with the sizes of the command line in place of its own."""
    text = config.get_text_config()
    for option, field in (("layers", "num_hidden_layers"), ("vocab_size", "vocab_size"), ("hidden", "hidden_size")):
        if getattr(arguments, option) is not None:
            setattr(text, field, getattr(arguments, option))
    if arguments.hidden is not None:
        text.intermediate_size = arguments.intermediate or 4 * arguments.hidden
        text.head_dim = arguments.hidden // text.num_attention_heads
    if arguments.layers is not None and getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[: arguments.layers]
    return config


def ppo_config(setup: Setup, generation_batch: int, folder: str, on_cpu: bool, **changes: Any) -> PPOConfig:
    """Return the settings of a run of `ROLLOUTS` rollouts with one epoch each, but for `changes`."""
    if setup.rollout % setup.micro_batch:
        raise ValueError(f"`micro_batch` {setup.micro_batch} does not divide `rollout` {setup.rollout}.")
    settings: dict[str, Any] = {
        "output_dir": folder,
        "per_device_train_batch_size": setup.micro_batch,
        "gradient_accumulation_steps": setup.rollout // setup.micro_batch,
        "num_ppo_epochs": 1,
        "total_episodes": ROLLOUTS * setup.rollout,
        "max_completion_length": setup.completion,
        "local_rollout_forward_batch_size": generation_batch,
        "logits_chunk_size": setup.logits_chunk_size,
        "gradient_checkpointing": setup.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"every_n_layers": setup.every_n_layers} if setup.every_n_layers > 1 else None,
        "optim": setup.optimizer,
        # Completions of full length: nothing ends them, and no special token is lost when they are decoded.
        "generation_kwargs": {"suppress_tokens": list(range(len(SPECIAL)))},
        "use_cpu": on_cpu,
        "bf16": setup.dtype == "bfloat16" and not on_cpu,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": not sys.stderr.isatty(),
    }
    return PPOConfig(**settings | changes)


def measure(
    config: PretrainedConfig, setup: Setup, footprint: Footprint, arrangement: str, device: str
) -> dict[str, Any]:
    """Return peaks, seconds and tokens per second of every phase, and the weights by role.

    Args:
        config: The architecture.
        setup: The run.
        footprint: Its plan, from which the batches of sampling and scoring are taken.
        arrangement: "one-base" or "four-models".
        device: "cuda" or "cpu".

    Raises:
        ValueError: for what cannot run or be measured.
    """
    peaks = PhasePeaks(CudaMemory() if device == "cuda" else ProcessMemory())
    vocab_size = config.get_text_config().vocab_size
    tokenizer = word_tokenizer(vocab_size)
    build = one_base if arrangement == "one-base" else four_models
    with tempfile.TemporaryDirectory() as folder:
        actor_critic, reward_models = build(config, setup, device, Path(folder) / "reward_adapters")
        trainer = PPOTrainer(
            model=actor_critic,
            # Given as functions, models stay where they are and as they are.
            reward_funcs=[constant_reward, *(PreferenceReward(m, tokenizer=tokenizer) for m in reward_models)],
            args=ppo_config(setup, footprint.generation_batch, folder, device == "cpu"),
            train_dataset=prompts(setup.rollout * ROLLOUTS, setup.prompt, vocab_size),
            processing_class=tokenizer,
        )
        scorers = [fn.scorer for fn in trainer.rewards.reward_funcs if isinstance(fn, PreferenceReward)]
        for scorer in scorers:
            scorer.batches.size = footprint.reward_batch
        trainer.progress = peaks
        trainer.train()
        peaks.start(None)
    tokens = ROLLOUTS * setup.rollout * setup.completion
    phases = {}
    for phase in (p for p in PHASES if p != "score" or scorers):
        seconds = peaks.total_seconds[phase]
        phases[phase] = peaks.peaks[phase] | {"seconds": seconds, "tokens_per_second": tokens / seconds}
    return {"phases": phases, "weights": weights_by_role(trainer.model, trainer.rewards.reward_funcs)}


def describe_device(device: str) -> dict[str, Any]:
    """Return name and memory of the device, for the record."""
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        return {"type": "cuda", "name": properties.name, "memory": properties.total_memory}
    return {"type": "cpu", "name": platform.machine(), "memory": None}


def installed_versions() -> dict[str, str | None]:
    """Return the versions of the libraries that the figures depend on."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in VERSIONS:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def run(arguments: argparse.Namespace, setup: Setup) -> dict[str, Any]:
    """Plan and measure one arrangement; return the content of the results file."""
    config = scaled(load_config(arguments.shape), arguments)
    footprint = plan(config, setup)
    phases: dict[str, dict[str, Any]] = {phase: {} for phase in footprint.phases}
    measured: dict[str, Any] = {"phases": phases}
    if not arguments.plan_only:
        measured = measure(config, setup, footprint, arguments.arrangement, arguments.device)
    results = {
        "shape": arguments.shape if arguments.shape in SHAPES else Path(arguments.shape).stem,
        "arrangement": arguments.arrangement,
        "device": None if arguments.plan_only else describe_device(arguments.device),
        "versions": installed_versions(),
        "arguments": dataclasses.asdict(setup) | {"layers": arguments.layers, "hidden": arguments.hidden},
        "generation_batch": footprint.generation_batch,
        "reward_batch": footprint.reward_batch,
        **measured,
    }
    if arguments.arrangement == "one-base":
        results["planner"] = {"resident": footprint.resident, "phases": footprint.phases}
        for phase, figures in measured["phases"].items():
            figures["planned"] = footprint.phase_peak(phase)
            if "allocated" in figures:
                figures["difference_percent"] = 100 * (figures["planned"] / max(1, figures["allocated"]) - 1)
    return results


def results_table(results: dict[str, Any]) -> Table:
    """Return a table of planned and measured memory, phase by phase."""
    table = Table(title=f"{results['shape']}, {results['arrangement']}, {_device_name(results)}")
    columns = {"planned": "planned GiB", "allocated": "measured GiB", "difference_percent": "difference"}
    columns |= {"process": "process GiB", "tokens_per_second": "tokens/s"}
    for title in ("phase", *columns.values()):
        table.add_column(title, justify="left" if title == "phase" else "right")
    for phase, figures in results["phases"].items():
        table.add_row(phase, *(_cell(title, figures.get(key)) for key, title in columns.items()))
    return table


def _device_name(results: dict[str, Any]) -> str:
    return "planned" if results["device"] is None else results["device"]["name"]


def _cell(title: str, value: float | None) -> str:
    if value is None:
        return ""
    if title.endswith("GiB"):
        return f"{value / GIB:.2f}"
    return f"{value:+.1f}%" if title == "difference" else f"{value:.1f}"


def write(results: dict[str, Any], folder: Path) -> Path:
    """Write results into a file named after the run."""
    setup = results["arguments"]
    parts = [results["shape"], setup["quantization"], setup["critic"], f"{setup['prompt']}+{setup['completion']}"]
    parts += [f"batch{setup['micro_batch']}", results["arrangement"], _device_name(results)]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{'_'.join(parts).replace(' ', '-')}.json"
    write_json(path, results)
    return path


def compare(argv: list[str], folder: Path) -> int:
    """Run both arrangements, each in a process of its own, and print the ratio of their peaks in learning."""
    results = []
    rest = [argument for argument in argv if argument != "--compare"]
    for arrangement in ARRANGEMENTS:
        with tempfile.TemporaryDirectory() as own:
            command = [sys.executable, "-m", __spec__.name, *rest, "--arrangement", arrangement]
            status = subprocess.run([*command, "--output", own], check=False).returncode
            if status:
                return status
            results.append(json.loads(next(Path(own).glob("*.json")).read_text(encoding="utf-8")))
            write(results[-1], folder)
    for kind in ("process", "allocated"):
        one, four = (result["phases"]["learn"][kind] for result in results)
        print(f"Learning peak, {kind}: {one / GIB:.2f} GiB of {four / GIB:.2f} GiB, ratio {one / four:.3f}")
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = setup_parser("python -m eval.performance.memory", DESCRIPTION)
    made.set_defaults(dtype=None)
    made.add_argument("--shape", required=True, help="a name of the planner's, or a config.json")
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda or cpu")
    made.add_argument("--arrangement", default="one-base", help=" or ".join(ARRANGEMENTS))
    made.add_argument("--compare", action="store_true", help="run both arrangements, print the ratio of the peaks")
    made.add_argument("--plan_only", action="store_true", help="write the planner's figures, measure nothing")
    made.add_argument("--layers", type=int, help="layers, instead of the shape's own")
    made.add_argument("--hidden", type=int, help="hidden size, instead of the shape's own")
    made.add_argument("--intermediate", type=int, help="width of the MLP; with --hidden (four times that)")
    made.add_argument("--vocab_size", type=int, help="vocabulary, instead of the shape's own")
    made.add_argument("--output", type=Path, default=RESULTS, help="folder for the results")
    return made


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    arguments = parser().parse_args(argv)
    on_cpu = arguments.device == "cpu" and not arguments.plan_only
    arguments.dtype = arguments.dtype or ("float32" if on_cpu else "bfloat16")
    try:
        if arguments.device not in ("cuda", "cpu") or arguments.arrangement not in ARRANGEMENTS:
            raise ValueError(f"--device is cuda or cpu, --arrangement {' or '.join(ARRANGEMENTS)}.")
        if arguments.device == "cuda" and not arguments.plan_only and not torch.cuda.is_available():
            raise ValueError("--device cuda: torch sees no GPU; use --device cpu.")
        setup = setup_from(arguments)
        if arguments.compare:
            return compare(argv, arguments.output)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # between the libraries
            results = run(arguments, setup)
    except (ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    Console().print(results_table(results))
    print(write(results, arguments.output))
    return 0


if __name__ == "__main__":
    sys.exit(main())
