# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""TRL's last PPOTrainer (trl <= 1.12) against ours: seconds of every phase, samples per second, peak memory.

Both train the same random model on the same prompts, with the same reward model, lengths and number of updates.
Every run is a process of its own, and the two take turns. Run it with TRL 1.12 in front of the installed one, where
`make test-trl-1.12` has put it: `PYTHONPATH=.venv/trl-1.12.0 .venv/bin/python -m eval.performance.versus_trl`.
"""

import argparse
import dataclasses
import importlib.util
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from peft import LoraConfig
from rich.console import Console
from tqdm.auto import tqdm
from transformers import LlamaConfig, PreTrainedModel

from trl_ext import PPOConfig, PPOTrainer
from trl_ext.actor_critic import trunk
from trl_ext.files import write_json

from .memory import RESULTS, describe_device, installed_versions
from .operations import Sizes, operations, peak_rate
from .peaks import CudaMemory, ProcessMemory
from .progress import TimedProgress
from .random_models import end_with_probability, prompts, random_model, word_tokenizer
from .stopwatch import Stopwatch, timed_functions
from .turns import by_turns, result_of
from .versus_table import TRAINERS, results_table

WARM_UP = 1  # updates at the start of a run that do not count


class Setting(NamedTuple):
    """One setting of both trainers: `critic` is ours, TRL's is always a separate model, trained in full."""

    title: str
    lora: bool
    critic: str


SETTINGS = {
    "a": Setting("full fine-tuning, separate critic", False, "copy"),
    "b": Setting("LoRA, critic adapter", True, "adapter"),
    "c": Setting("LoRA, critic head", True, "head"),
    "c-full": Setting("full fine-tuning, critic head", False, "head"),
}


@dataclasses.dataclass
class Run:
    """One run of one trainer.

    Attributes:
        trainer: "trl" or "ours"; "agilerl" in `eval.performance.versus_agilerl`.
        setting: A key of `SETTINGS`.
        vocab_size, hidden_size, layers: Of a Llama; the reward model is one of the same size.
        prompt, completion: Tokens of every prompt and of every completion.
        batch, micro_batch: Completions of an update, and at a time in learning.
        epochs: Passes over them.
        updates: Rollouts.
        seed: Of the first round; every round has its own.
        lengths: "fixed": every completion has the most tokens; "geometric": an EOS token ends it, with a probability of
            4 / `completion` at every token, so that the mean is about a quarter of the most.
        clock: "wall", or "cpu" for processor seconds, on a machine that others use too.
        logits_chunk_size: As in our PPOConfig; TRL has no such thing.
        device: "cuda" or "cpu".
    """

    trainer: str = "ours"
    setting: str = "a"
    vocab_size: int = 4096
    hidden_size: int = 256
    layers: int = 4
    prompt: int = 64
    completion: int = 32
    batch: int = 16
    micro_batch: int = 8
    epochs: int = 4
    updates: int = WARM_UP + 2
    logits_chunk_size: int = 512
    seed: int = 42
    lengths: str = "fixed"
    clock: str = "wall"
    device: str = "cpu"


QUICK: dict[str, Any] = {
    "hidden_size": 64,
    "layers": 1,
    "prompt": 4,
    "batch": 4,
    "micro_batch": 2,
    "epochs": 1,
    "updates": 2,
}


# ---- model, data and settings of both ----


def model(run: Run, *, reward: bool = False) -> PreTrainedModel:
    """Build a Llama with random weights; `reward` makes it a classifier with one label."""
    config = LlamaConfig(
        vocab_size=run.vocab_size,
        hidden_size=run.hidden_size,
        intermediate_size=run.hidden_size * 11 // 4,
        num_hidden_layers=run.layers,
        num_attention_heads=max(1, run.hidden_size // 64),
        max_position_embeddings=run.prompt + run.completion,
        tie_word_embeddings=False,
    )
    dtype = torch.bfloat16 if run.device == "cuda" else torch.float32
    made = random_model(config, dtype=dtype, device=run.device, reward=reward)
    if run.lengths == "geometric" and not reward:
        end_with_probability(made, min(0.5, 4 / run.completion))
    return made


def settings(run: Run, folder: str) -> dict[str, Any]:
    """Return the arguments of either PPOConfig."""
    return {
        "output_dir": folder,
        "per_device_train_batch_size": run.micro_batch,
        "gradient_accumulation_steps": run.batch // run.micro_batch,
        "num_ppo_epochs": run.epochs,
        "total_episodes": run.updates * run.batch,
        "temperature": 1.0,
        "bf16": False,  # the weights have the dtype that is computed in
        "gradient_checkpointing": False,  # TRL never switches it on
        "use_cpu": run.device == "cpu",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
        "seed": run.seed,
    }


def lora(run: Run) -> LoraConfig | None:
    """Return the adapter of the policy, in settings with one."""
    return LoraConfig(r=16, lora_alpha=32, target_modules="all-linear") if SETTINGS[run.setting].lora else None


def data(run: Run) -> Dataset:
    """Return more prompts than a run draws: at the last batch of its data TRL steps for every micro-batch."""
    return prompts((run.updates + 1) * run.batch, run.prompt, run.vocab_size)


def train_trl(run: Run, folder: str, stopwatch: Stopwatch) -> None:
    """Train with `trl.experimental.ppo.PPOTrainer`."""
    from trl.experimental.ppo import ppo_trainer

    tokenizer = word_tokenizer(run.vocab_size)
    reward_model = model(run, reward=True)
    policy = model(run).requires_grad_(True)
    trainer = ppo_trainer.PPOTrainer(
        args=ppo_trainer.PPOConfig(
            response_length=run.completion,
            stop_token="eos" if run.lengths == "geometric" else None,
            num_sample_generations=0,
            **settings(run, folder),
        ),
        processing_class=tokenizer,
        model=policy,
        ref_model=None,
        reward_model=reward_model,
        value_model=model(run, reward=True).requires_grad_(True),
        train_dataset=data(run)
        .map(lambda row: {"input_ids": tokenizer(row["prompt"])["input_ids"]})
        .remove_columns(["prompt"]),
        peft_config=lora(run),
        callbacks=[stopwatch],
    )
    with timed_functions(ppo_trainer, reward_model, stopwatch):
        trainer.train()


def train_ours(run: Run, folder: str, stopwatch: Stopwatch) -> None:
    """Train with `trl_ext.PPOTrainer`."""
    tokenizer, policy = word_tokenizer(run.vocab_size), model(run)
    if run.lengths == "fixed":
        tokenizer.eos_token = policy.generation_config.eos_token_id = None  # as in TRL's run nothing ends a completion
    reward_model = model(run, reward=True)

    @torch.no_grad()
    def score(prompts: list[str], completion_ids: list[list[int]], **columns: Any) -> list[float]:
        stopwatch.count(sum(map(len, completion_ids)))
        rows = [p + c for p, c in zip(tokenizer(prompts)["input_ids"], completion_ids, strict=True)]
        batch = tokenizer.pad({"input_ids": rows}, padding_side="right", return_tensors="pt").to(run.device)
        return reward_model(**batch).logits.squeeze(1).tolist()

    trainer = PPOTrainer(
        policy,
        score,
        PPOConfig(
            critic=SETTINGS[run.setting].critic,
            max_completion_length=run.completion,
            logits_chunk_size=run.logits_chunk_size,
            **settings(run, folder),
        ),
        train_dataset=data(run),
        processing_class=tokenizer,
        peft_config=lora(run),
        callbacks=[stopwatch],
    )
    trainer.progress = TimedProgress(stopwatch)
    trainer.train()


def execute(run: Run, measure: str) -> dict[str, Any]:
    """Do a run in this process.

    Args:
        run: Which.
        measure: "time" or "memory".

    Returns:
        `updates`, the seconds by phase of every update after the first, and `tokens`, those of their completions; or
        `process` and `allocated`, peaks in bytes as in `eval.performance.peaks`.
    """
    torch.manual_seed(run.seed)
    memory = None
    if measure == "memory":
        memory = CudaMemory() if run.device == "cuda" else ProcessMemory()
        memory.reset()
    stopwatch = Stopwatch(run.device, clock=run.clock, steps=1 if run.trainer == "trl" else run.epochs)
    with tempfile.TemporaryDirectory() as folder:
        {"trl": train_trl, "ours": train_ours}[run.trainer](run, folder, stopwatch)
    if memory is not None:
        return memory.read()
    return {"updates": stopwatch.updates[WARM_UP:], "tokens": stopwatch.tokens[WARM_UP:]}


# ---- the comparison ----


def sizes(run: Run) -> Sizes:
    """Return the sizes that a run's operations depend on."""
    hidden, scored = run.hidden_size, run.micro_batch * run.completion
    recompute = scored > run.logits_chunk_size and scored * run.vocab_size > trunk.KEPT_LOGITS
    layer = 4 * hidden**2 + 3 * hidden * (hidden * 11 // 4)
    return Sizes(run.layers * layer, hidden * run.vocab_size, run.prompt, run.completion, run.epochs, recompute)


def counted(run: Run, trainer: str) -> dict[str, int]:
    """Return the operations of an update, by phase."""
    _, lora, critic = SETTINGS[run.setting]
    counts = operations(trainer, lora=lora, critic=critic, sizes=sizes(run))
    return {phase: run.batch * count for phase, count in counts.items()}


def machine_rate(device: str) -> float:
    """Return the highest rate of a matrix product, in operations per second."""
    if device == "cuda":
        return peak_rate("cuda", torch.bfloat16, size=8192)
    return peak_rate("cpu", torch.float32, size=2048, seconds=3.0)


def in_own_process(run: Run, measure: str) -> dict[str, Any]:
    """Call [`execute`] in a new process."""
    arguments = [json.dumps(dataclasses.asdict(run)), measure]
    return result_of([sys.executable, "-m", __spec__.name, "--run", *arguments], run)


def of_a_turn(cell: Run, trainer: str, measure: str, number: int) -> Run:
    """Return a trainer's run in a round; every round draws other completions."""
    run = dataclasses.replace(cell, trainer=trainer, seed=cell.seed + number)
    # The second update has the peak, as the optimizer has its state then; one epoch is enough.
    return dataclasses.replace(run, epochs=1, updates=2) if measure == "memory" else run


def compare(cell: Run, rounds: int, rate: float, advance: Callable[[], Any]) -> dict[str, Any]:
    """Run both trainers in one cell of the table, taking turns.

    Args:
        cell: Everything but the trainer.
        rounds: Timed runs of each trainer.
        rate: Operations per second of the machine at its best.
        advance: Called after every run.

    Returns:
        `run` and what `turns.by_turns` returns; by trainer also `floor`, seconds of the phases' operations at that
        rate; `speed_by_count` is the ratio if all time went into products with weights.
    """

    def measured(trainer: str, measure: str, number: int) -> dict[str, Any]:
        result = in_own_process(of_a_turn(cell, trainer, measure, number), measure)
        advance()
        return result

    result = {"run": dataclasses.asdict(cell)} | by_turns(TRAINERS, rounds, cell.batch, measured)
    for trainer in TRAINERS:
        result[trainer]["floor"] = {phase: count / rate for phase, count in counted(cell, trainer).items()}
    theirs, ours = (sum(result[trainer]["floor"].values()) for trainer in TRAINERS)
    return result | {"speed_by_count": theirs / ours}


def write(cells: list[dict[str, Any]], device: dict[str, Any], folder: Path) -> Path:
    """Write the results under the name of the device."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{device['name'].replace(' ', '-')}.json"
    contents = {"device": device | {"threads": torch.get_num_threads()}, "versions": installed_versions()}
    write_json(path, contents | {"cells": cells})
    return path


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        prog="python -m eval.performance.versus_trl",
        description="TRL's last PPOTrainer (trl <= 1.12) against ours: time by phase, samples per second, peak memory.",
    )
    known = ", ".join(f"{name} ({setting.title})" for name, setting in SETTINGS.items())
    made.add_argument("--settings", nargs="+", default=["a", "b", "c"], choices=SETTINGS, metavar="NAME", help=known)
    made.add_argument("--vocab_size", nargs="+", type=int, default=[4096, 32768], help="vocabularies (4096 32768)")
    made.add_argument("--completion", nargs="+", type=int, default=[32, 256], help="tokens of completions (32 256)")
    for field in dataclasses.fields(Run):
        if field.type in (int, "int") and field.name not in ("vocab_size", "completion"):
            text = f"{field.name.replace('_', ' ')} ({field.default})"
            made.add_argument(f"--{field.name}", type=int, help=text)
    made.add_argument("--lengths", default="fixed", choices=("fixed", "geometric"), help="of completions (fixed)")
    made.add_argument("--clock", default="wall", choices=("wall", "cpu"), help="seconds that count (wall)")
    made.add_argument("--rounds", type=int, help="timed runs of each trainer in each cell (2)")
    made.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, the figures mean nothing")
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cuda", "cpu"))
    made.add_argument("--output", type=Path, default=RESULTS / "versus_trl", help="folder for the results")
    made.add_argument("--run", nargs=3, metavar=("RUN", "MEASURE", "FILE"), help=argparse.SUPPRESS)
    return made


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    arguments = parser().parse_args(argv)
    if arguments.run is not None:
        run, measure, path = arguments.run
        write_json(Path(path), execute(Run(**json.loads(run)), measure))
        return 0
    if importlib.util.find_spec("trl.experimental.ppo") is None:
        print(
            "error: the installed TRL has no PPOTrainer (it had one up to 1.12): run `make test-trl-1.12`, then this "
            "with PYTHONPATH=.venv/trl-1.12.0.",
            file=sys.stderr,
        )
        return 2
    given = {field.name: getattr(arguments, field.name, None) for field in dataclasses.fields(Run)}
    sizes: dict[str, Any] = {name: size for name, size in given.items() if isinstance(size, int)}
    vocabularies, completions, rounds = arguments.vocab_size, arguments.completion, arguments.rounds or 2
    if arguments.quick:
        sizes, vocabularies, completions, rounds = QUICK | sizes, [256], [8], arguments.rounds or 1
    kinds = {name: getattr(arguments, name) for name in ("device", "lengths", "clock")}
    cells = [
        Run(setting=setting, vocab_size=vocab_size, completion=completion, **kinds, **sizes)
        for setting in arguments.settings
        for vocab_size in vocabularies
        for completion in completions
    ]
    results = []
    device = describe_device(arguments.device) | {"operations_per_second": machine_rate(arguments.device)}
    with tqdm(total=len(cells) * len(TRAINERS) * (rounds + 1), unit="run", disable=None) as bar:
        for cell in cells:
            results.append(compare(cell, rounds, device["operations_per_second"], bar.update))
            path = write(results, device, arguments.output)  # after each, since the whole takes long
    # A pipe says nothing about its width, and the table would be squeezed into 80 columns.
    console = Console(width=None if sys.stdout.isatty() else 132)
    console.print(results_table(results, device, {name: setting.title for name, setting in SETTINGS.items()}))
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
