# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""AgileRL's PPO for language models against ours: seconds of every phase, samples per second, peak memory.

Both train a LoRA adapter and a critic adapter on the same random base, on prompts of the same lengths, with the same
reward model, completions and optimizer steps, on a CPU. Every run is a process of its own, and the two take turns.
AgileRL needs other versions of some libraries than we do, so it runs in an environment of its own:
`python -m eval.performance.versus_agilerl --agilerl_python ../agilerl/bin/python`.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm
from transformers.utils import logging

from trl_ext import PPOConfig
from trl_ext.files import write_json
from trl_ext.planner.plan import GIB

from . import versus_trl
from .memory import RESULTS, describe_device
from .random_models import EOS_ID, SPECIAL, word_tokenizer
from .stopwatch import PHASES
from .turns import by_turns, result_of
from .versus_trl import QUICK, WARM_UP, Run

TRAINERS = ("agilerl", "ours")
ROOT = Path(__file__).parents[2]
VERSIONS = """import json, platform
from importlib.metadata import version
packages = ("agilerl", "torch", "transformers", "peft")
print(json.dumps({"python": platform.python_version()} | {name: version(name) for name in packages}))"""


def agilerl_versions(python: str) -> dict[str, str]:
    """Return the versions of AgileRL and of what it is built on.

    Raises:
        ValueError: when that interpreter does not start or has no AgileRL.
    """
    try:
        done = subprocess.run([python, "-c", VERSIONS], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1]
        raise ValueError(f"--agilerl_python {python} has no AgileRL: {reason}.") from error
    return json.loads(done.stdout)


def in_agilerls(python: str, run: Run, measure: str, **options: Any) -> dict[str, Any]:
    """Do a run of `agilerl_run` by the interpreter `python`, with our models and prompts.

    Args:
        python: Has AgileRL.
        run: Which.
        measure: "time" or "memory".
        options: Settings of AgileRL's PPO.
    """
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(run.seed)
        for name, reward in {"policy": False, "reward": True}.items():
            versus_trl.model(run, reward=reward).save_pretrained(Path(folder) / name)
        rows = word_tokenizer(run.vocab_size)(list(versus_trl.data(run)["prompt"]))["input_ids"]
        tokens = {
            "pad_token_id": SPECIAL.index("<pad>"),
            "eos_token_id": EOS_ID if run.lengths == "geometric" else None,
        }
        described = {"prompts": rows, "warm_up": WARM_UP, "learning_rate": PPOConfig.learning_rate}
        described |= dataclasses.asdict(run) | tokens | options
        write_json(Path(folder) / "run.json", described)
        command = [python, "-m", f"{__package__}.agilerl_run", folder, measure]
        return result_of(command, run, PYTHONPATH=str(ROOT))


def compare(cell: Run, rounds: int, python: str, advance: Callable[[], Any], **options: Any) -> dict[str, Any]:
    """Run both trainers in one cell of the table, taking turns.

    Returns:
        `run` and what `turns.by_turns` returns, and `speed_after_sampling`, the ratio without the phase "generate".

    Raises:
        RuntimeError: when completions of a fixed length had other numbers of tokens.
    """

    def measured(trainer: str, measure: str, number: int) -> dict[str, Any]:
        run = versus_trl.of_a_turn(cell, trainer, measure, number)
        if trainer == "ours":
            result = versus_trl.in_own_process(run, measure)
        else:
            result = in_agilerls(python, run, measure, **options)
        advance()
        return result

    result = {"run": dataclasses.asdict(cell), "options": options} | by_turns(TRAINERS, rounds, cell.batch, measured)
    tokens = [result[trainer]["completion_tokens"] for trainer in TRAINERS]
    if cell.lengths == "fixed" and set(tokens) != {cell.batch * cell.completion}:
        raise RuntimeError(f"{cell} had completions of {tokens} tokens in AgileRL's run and in ours.")
    rest = [sum(result[trainer]["seconds"][phase] for phase in PHASES if phase != "generate") for trainer in TRAINERS]
    return result | {"speed_after_sampling": rest[0] / rest[1]}


def results_table(cells: list[dict[str, Any]], device: dict[str, Any]) -> Table:
    """Return two rows for every cell, AgileRL's and ours, with the ratios of ours to AgileRL's."""
    title = f"AgileRL's PPO and ours on {device['name']}: seconds per update of {cells[0]['run']['batch']} completions"
    table = Table(title=title, box=SIMPLE, pad_edge=False)
    for column in ("vocab", "tokens", "lengths", "", *PHASES, "after sampling", "samples/s", "peak GiB"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for cell in cells:
        run = cell["run"]
        for trainer in TRAINERS:
            figures, ours = cell[trainer], trainer == "ours"
            names = (
                ["", "", ""]
                if ours
                else [str(run["vocab_size"]), f"{run['prompt']}+{run['completion']}", run["lengths"]]
            )
            ratios = {"speed": f" ({cell['speed']:.2f}x)", "memory": f" ({cell['memory']:.2f}x)"} if ours else {}
            totals = [
                f"{cell['speed_after_sampling']:.2f}x" if ours else "",
                f"{figures['samples_per_second']:.2f}" + ratios.get("speed", ""),
                f"{figures['process'] / GIB:.2f}" + ratios.get("memory", ""),
            ]
            seconds = [f"{figures['seconds'][phase]:.2f}" for phase in PHASES]
            table.add_row(*names, trainer, *seconds, *totals, end_section=ours)
    return table


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        prog="python -m eval.performance.versus_agilerl",
        description="AgileRL's PPO against ours, with a critic adapter: time by phase, samples per second, memory.",
    )
    made.add_argument("--agilerl_python", required=True, help="interpreter of an environment that has AgileRL")
    made.add_argument("--vocab_size", nargs="+", type=int, default=[4096, 32768], help="vocabularies (4096 32768)")
    made.add_argument("--completion", nargs="+", type=int, default=[32, 256], help="tokens of completions (32 256)")
    made.add_argument("--updates", type=int, default=Run.updates, help=f"updates, the first warms up ({Run.updates})")
    made.add_argument("--lengths", nargs="+", default=["fixed", "geometric"], choices=("fixed", "geometric"))
    made.add_argument("--clock", default="wall", choices=("wall", "cpu"), help="seconds that count (wall)")
    made.add_argument("--rounds", type=int, help="timed runs of each trainer in each cell (2)")
    made.add_argument("--sampling_batch", type=int, help="prompts that AgileRL samples at a time (all)")
    made.add_argument("--two_passes", action="store_true", help="AgileRL's actor and critic learn one after the other")
    made.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, the figures mean nothing")
    made.add_argument("--output", type=Path, default=RESULTS / "versus_agilerl", help="folder for the results")
    return made


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    arguments = parser().parse_args(argv)
    try:
        device = describe_device("cpu") | {"agilerl": agilerl_versions(arguments.agilerl_python)}
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    sizes: dict[str, Any] = {"updates": arguments.updates, "setting": "b", "device": "cpu", "clock": arguments.clock}
    vocabularies, completions, rounds = arguments.vocab_size, arguments.completion, arguments.rounds or 2
    if arguments.quick:
        sizes, vocabularies, completions, rounds = sizes | QUICK, [256], [8], arguments.rounds or 1
    cells = [
        Run(vocab_size=vocab_size, completion=completion, lengths=lengths, **sizes)
        for lengths in arguments.lengths
        for vocab_size in vocabularies
        for completion in completions
    ]
    options = {
        "sampling_batch": arguments.sampling_batch or cells[0].batch,
        "fuse_actor_critic_pass": not arguments.two_passes,
    }
    results = []
    logging.disable_progress_bar()  # of models that are saved for AgileRL
    with tqdm(total=len(cells) * len(TRAINERS) * (rounds + 1), unit="run", disable=None) as bar:
        for cell in cells:
            results.append(compare(cell, rounds, arguments.agilerl_python, bar.update, **options))
            path = versus_trl.write(results, device, arguments.output)  # after each, since the whole takes long
    Console(width=None if sys.stdout.isatty() else 132).print(results_table(results, device))
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
