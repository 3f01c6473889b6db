# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Everything that a GPU has to show: `python -m eval.performance.on_gpu --output FOLDER`.

Models have the shapes of published ones and random weights: nothing is downloaded. Every job is a process of its own
and writes one file; a job whose file is there is not done again, so that the command can be repeated until all are.
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console

from trl_ext import PPOTrainer
from trl_ext.actor_critic.trunk import KEPT_LOGITS
from trl_ext.files import write_json
from trl_ext.planner.plan import load_config
from trl_ext.planner.setup import Setup
from trl_ext.planner.weights import linear_layers, meta_model

from . import memory
from .arrangements import one_base
from .gpu_table import summary, summary_tables
from .operations import Sizes, operations, peak_rate
from .progress import TimedProgress
from .random_models import prompts, random_model, word_tokenizer
from .stopwatch import Stopwatch

DESCRIPTION = """Measure on a GPU: the peak rate of a matrix product, the memory of every planned run beside the plan,
tokens per second of every phase, the share of the peak that learning reaches, and the engines side by side."""
PARTS = ("peak", "memory", "phases", "engines")
ENGINES: dict[str, dict[str, Any]] = {
    "generate": {},
    "static-cache": {"cache_implementation": "static"},
    "continuous-batching": {"use_transformers_continuous_batching": True},
    "vllm": {"use_vllm": True, "vllm_mode": "colocate", "vllm_gpu_memory_utilization": 0.3},
}
WARM_UP, COUNTED = 1, 1  # rollouts whose time does not count, and those whose does
LIMIT = 600  # seconds that a job may take


class Job(NamedTuple):
    """One measurement.

    Attributes:
        part: One of `PARTS`.
        shape: Name of the model's shape; "" for the peak rate.
        setup: The run.
        engine: A key of `ENGINES`; "" but for the engines.
    """

    part: str
    shape: str = ""
    setup: Setup = Setup()
    engine: str = ""

    @property
    def name(self) -> str:
        """Name of the job, and of its file."""
        if not self.shape:
            return self.part
        s = self.setup
        trained = f"r{s.rank}" if s.rank else "full"
        lengths = f"{s.prompt}+{s.completion}"
        parts = (
            self.part,
            self.shape,
            s.quantization,
            trained,
            s.critic,
            lengths,
            f"batch{s.micro_batch}",
            self.engine,
        )
        return "_".join(part for part in parts if part)


def jobs() -> list[Job]:
    """Return all measurements; the memory is that of the runs whose plans are among the results."""
    found = [Job("peak")]
    for path in sorted(memory.RESULTS.glob("*_planned.json")):
        planned = json.loads(path.read_text(encoding="utf-8"))
        names = {field.name for field in dataclasses.fields(Setup)} & set(planned["arguments"])
        setup = Setup(**{name: planned["arguments"][name] for name in names})
        # Peaks do not depend on the number of completions beyond those that are sampled at a time.
        setup = dataclasses.replace(setup, rollout=max(16, planned["generation_batch"]))
        found.append(Job("memory", planned["shape"], setup))
    common: dict[str, Any] = {"rollout": 64, "logits_chunk_size": 512}
    full = Setup(quantization="none", rank=0, micro_batch=8, generation_batch=64, **common)
    lora = Setup(quantization="none", micro_batch=8, generation_batch=64, **common)
    nf4 = Setup(micro_batch=4, generation_batch=16, **common | {"rollout": 16})
    shapes = {"qwen2.5-0.5b": full, "llama-3.2-3b": lora, "llama-3-8b": nf4}
    found += [Job("phases", shape, setup) for shape, setup in shapes.items()]
    found += [Job("engines", shape, shapes[shape], e) for shape in ("qwen2.5-0.5b", "llama-3.2-3b") for e in ENGINES]
    return found


def tiny_jobs() -> list[Job]:
    """Return a small job of every kind, for a CPU: their figures mean nothing."""
    sizes: dict[str, Any] = {"prompt": 5, "completion": 6, "micro_batch": 2, "rollout": 4, "rank": 4}
    sizes |= {"logits_chunk_size": 256, "dtype": "float32"}
    nf4 = Setup(critic="adapter", reward_adapters=1, **sizes)
    full = Setup(quantization="none", generation_batch=4, **sizes | {"rank": 0})
    shape = "llama-3-8b"
    engines = [Job("engines", shape, full, engine) for engine in ("generate", "static-cache", "continuous-batching")]
    return [Job("peak"), Job("memory", shape, nf4), Job("phases", shape, full), *engines]


# ---- one job ----


def execute(job: Job, device: str, sizes: dict[str, int]) -> dict[str, Any]:
    """Do a job in this process.

    Args:
        job: Which.
        device: "cuda" or "cpu".
        sizes: `layers`, `hidden`, `intermediate` and `vocab_size` in place of the shape's own; {} for its own.

    Returns:
        The content of its file.

    Raises:
        ValueError, ImportError: for what cannot run or be measured.
    """
    made = {"part": job.part, "device": memory.describe_device(device), "versions": memory.installed_versions()}
    if job.part == "peak":
        size, dtype = (8192, torch.bfloat16) if device == "cuda" else (256, torch.float32)
        seconds = 5.0 if device == "cuda" else 0.1
        return made | {"operations_per_second": peak_rate(device, dtype, size=size, seconds=seconds)}
    given = argparse.Namespace(**{name: sizes.get(name) for name in ("layers", "hidden", "intermediate", "vocab_size")})
    given.shape, given.arrangement, given.device, given.plan_only = job.shape, "one-base", device, False
    made |= {"shape": job.shape, "arguments": dataclasses.asdict(job.setup)}
    if job.part == "memory":
        return made | memory.run(given, job.setup)
    config = memory.scaled(load_config(job.shape), given)
    if job.part == "engines":
        return made | {"engine": job.engine} | sampling_speed(config, job, device)
    return made | speeds(config, job.setup, device)


def timed_run(
    config: Any, setup: Setup, device: str, model: Any, **engine: Any
) -> tuple[dict[str, float], dict[str, float]]:
    """Train for some rollouts; return the seconds of each phase of the last one, and its logged metrics.

    Args:
        config: The architecture.
        setup: The run; its `generation_batch` is used as it is.
        device: "cuda" or "cpu".
        model: The policy: an actor-critic, or a folder.
        engine: Settings of `PPOConfig` that choose the engine.
    """
    stopwatch = Stopwatch(device, steps=1)
    rollouts, vocab_size = WARM_UP + COUNTED, config.get_text_config().vocab_size
    with tempfile.TemporaryDirectory() as folder:
        args = memory.ppo_config(setup, setup.generation_batch or setup.rollout, folder, device == "cpu", **engine)
        args.total_episodes, args.logging_steps = rollouts * setup.rollout, 1
        trainer = PPOTrainer(
            model=model,
            reward_funcs=memory.constant_reward,
            args=args,
            train_dataset=prompts(setup.rollout * rollouts, setup.prompt, vocab_size),
            processing_class=word_tokenizer(vocab_size),
            callbacks=[stopwatch],
        )
        trainer.progress = TimedProgress(stopwatch)
        trainer.train()
    counted = stopwatch.updates[WARM_UP:]
    seconds = {phase: statistics.median(update[phase] for update in counted) for phase in counted[0]}
    return seconds, [logs for logs in trainer.state.log_history if "reward" in logs][-1]


def speeds(config: Any, setup: Setup, device: str) -> dict[str, Any]:
    """Return tokens per second of each phase, and operations of learning."""
    with tempfile.TemporaryDirectory() as folder:
        model, _ = one_base(config, setup, device, Path(folder))
        seconds, _ = timed_run(config, setup, device, model)
    tokens = setup.rollout * setup.completion
    phases = {
        phase: {"seconds": seconds[phase], "tokens_per_second": tokens / seconds[phase]}
        for phase in ("generate", "evaluate", "learn")
    }
    needed, done = learning_operations(config, setup)
    return {"phases": phases, "operations": needed, "operations_with_recomputation": done}


def learning_operations(config: Any, setup: Setup) -> tuple[int, int]:
    """Count the operations of learning from a rollout once, without attention and elementwise work.

    Returns:
        Those of the forward and backward pass, and the same with what is computed twice to save memory.
    """
    model = meta_model(config)
    trunk = sum(inputs * outputs for _, inputs, outputs in linear_layers(model).values())
    vocab_size, scored = config.get_text_config().vocab_size, setup.micro_batch * setup.completion
    twice = scored > setup.logits_chunk_size and scored * vocab_size > KEPT_LOGITS
    head = model.get_output_embeddings().weight.numel()
    sizes = Sizes(trunk, head, setup.prompt, setup.completion, epochs=1, recompute=False)
    options: dict[str, Any] = {"lora": setup.rank > 0, "critic": setup.critic}
    needed = operations("ours", sizes=sizes, **options)["learn"]
    done = operations("ours", sizes=sizes._replace(recompute=twice), **options)["learn"]
    if setup.gradient_checkpointing:
        passes = 1 if setup.critic == "head" else 2
        done += 2 * trunk * (setup.prompt + setup.completion) * passes
    return setup.rollout * needed, setup.rollout * done


def sampling_speed(config: Any, job: Job, device: str) -> dict[str, Any]:
    """Return completion tokens per second of sampling, and the gap between the engine's log-probabilities and ours."""
    setup = job.setup
    with tempfile.TemporaryDirectory() as folder:
        policy = random_model(config, dtype=getattr(torch, setup.dtype), device=device)
        policy.save_pretrained(folder)  # an engine of its own loads the model by name
        word_tokenizer(config.get_text_config().vocab_size).save_pretrained(folder)
        del policy
        # An EOS token in 100,000 words ends hardly any of a random model's completions.
        engine = ENGINES[job.engine] | {"importance_sampling_correction": True, "generation_kwargs": None}
        if device == "cpu" and job.engine == "continuous-batching":
            engine["transformers_continuous_batching_config"] = {"num_blocks": 32, "max_batch_tokens": 64}
        seconds, metrics = timed_run(config, setup, device, folder, **engine)
    tokens = setup.rollout * metrics["completions/mean_length"]
    gaps = {name: metrics[name] for name in metrics if name.startswith("engine/") or "importance" in name}
    return {"seconds": seconds["generate"], "tokens_per_second": tokens / seconds["generate"], "metrics": gaps}


# ---- all jobs ----


def in_own_process(job: Job, arguments: argparse.Namespace, path: Path) -> str | None:
    """Do a job in a new process; return why it failed, or None."""
    command = [sys.executable, "-m", __spec__.name, "--job", job.name, "--output", str(path.parent)]
    command += ["--device", arguments.device, *(["--tiny"] if arguments.tiny else [])]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return f"more than {LIMIT} seconds"
    return (done.stderr.strip().splitlines() or ["no message"])[-1] if done.returncode else None


def run_all(
    chosen: list[Job],
    arguments: argparse.Namespace,
    launch: Callable[[Job, argparse.Namespace, Path], str | None] = in_own_process,
) -> dict[str, str]:
    """Do the jobs that have no file yet; return why those failed that did."""
    failed = {}
    for job in chosen:
        path = arguments.output / f"{job.name}.json"
        if path.exists():
            print(f"{job.name}: done before")
            continue
        print(job.name, flush=True)
        if (reason := launch(job, arguments, path)) is not None:
            failed[job.name] = reason
            print(f"  failed: {reason}", flush=True)
    return failed


def do(job: Job, arguments: argparse.Namespace, path: Path) -> None:
    """Do a job in this process and write its file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, execute(job, arguments.device, TINY if arguments.tiny else {}))


TINY = {"layers": 1, "hidden": 128, "intermediate": 256, "vocab_size": 128}


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(prog="python -m eval.performance.on_gpu", description=DESCRIPTION)
    made.add_argument("--output", type=Path, default=memory.RESULTS / "gpu", help="folder for the results")
    made.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    made.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cuda, or cpu with --tiny (cuda)")
    made.add_argument("--tiny", action="store_true", help="tiny sizes: shows that it runs, the figures mean nothing")
    made.add_argument("--job", help=argparse.SUPPRESS)
    return made


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    arguments = parser().parse_args(argv)
    if arguments.device == "cpu" and not arguments.tiny:
        print("error: --device cpu needs --tiny; the sizes are those of a GPU.", file=sys.stderr)
        return 2
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("error: torch sees no GPU; try --tiny --device cpu.", file=sys.stderr)
        return 2
    chosen = [job for job in (tiny_jobs() if arguments.tiny else jobs()) if job.part in arguments.parts]
    if arguments.job is not None:
        job = next(job for job in chosen if job.name == arguments.job)
        try:
            do(job, arguments, arguments.output / f"{job.name}.json")
        except (ValueError, ImportError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        return 0
    failed = run_all(chosen, arguments)
    made = summary(arguments.output)
    write_json(arguments.output / "summary.json", made | {"failed": failed})
    for table in summary_tables(made):
        Console(width=None if sys.stdout.isatty() else 132).print(table)
    print(arguments.output / "summary.json")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
