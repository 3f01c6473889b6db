# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Runs one training several times in child processes: to its end, and killed at chosen points and resumed.

    python tests/killed_runs.py FOLDER KIND PROCESSES KILLS [SEED]

KILLS is a number of points drawn at random, or points such as "save.7,learn.3": the seventh time that the run comes to
"save". Children are forked after the imports and before any computation, which spares each one the imports. Started
by `test_resume.py`; by hand it compares the runs itself and prints one line for each.
"""

import json
import os
import random
import signal
import socket
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from tests import scripted
from tests.experience import copying_engine
from trl_ext import AdaptiveKL, PPOTrainer, checkpoint, folders
from trl_ext import trainer as trainer_module
from trl_ext.monitoring.reward_hacking import RewardHackingMonitor
from trl_ext.rewards import Ensemble, LengthDebiased, RunningNormalization

PHASES = ("sample", "score", "learn", "step", "save", "rotate")
TIMING = ("time/", "tokens_per_second", "runtime", "samples_per_second", "steps_per_second", "train_loss")


class Points:
    """Counts how often this process comes to each phase, and kills the process group at one of them."""

    def __init__(self, kill: tuple[str, int] | None):
        self.kill, self.seen = kill, Counter[str]()

    def at(self, phase: str) -> None:
        """Come to a point of the phase."""
        self.seen[phase] += 1
        if (phase, self.seen[phase]) == self.kill:
            os.killpg(os.getpgrp(), signal.SIGKILL)  # as a power cut would

    def before(self, phase: str, function: Callable) -> Callable:
        """The function, with a point of the phase before each call."""

        def called(*args: Any, **kwargs: Any) -> Any:
            self.at(phase)
            return function(*args, **kwargs)

        return called


class AtStep(TrainerCallback):
    """A point after each optimizer step and after each checkpoint."""

    def __init__(self, points: Points):
        self.points = points

    def on_step_end(self, args, state, control, **kwargs):
        self.points.at("step")

    def on_save(self, args, state, control, **kwargs):
        self.points.at("step")


class OwnMemory:
    """A reward with a state of this process alone: what it has scored so far."""

    __name__ = "own_memory"

    def __init__(self, points: Points):
        self.letters, self._points = 0, points

    def __call__(self, completions, **kwargs):
        self._points.at("score")
        self.letters += sum(map(len, completions))
        return [(self.letters % 7) / 7 + text.count("a") for text in completions]

    def state_dict(self):
        return {"letters": self.letters}

    def load_state_dict(self, state):
        self.letters = state["letters"]


def short(completions: list[str], **kwargs) -> list[float]:
    """Another opinion than `scripted.reward`."""
    return [-len(c) / 8 for c in completions]


def against_hacking() -> dict:
    """An ensemble with a member that learns, PPO-ptx, and a monitor with state in every signal."""
    return {
        "reward_funcs": [
            RunningNormalization(Ensemble([LengthDebiased(scripted.reward, min_samples=8), short], "mean_minus_std"))
        ],
        "ptx_coef": 0.1,
        "ptx_dataset": Dataset.from_dict({"text": [f"the dog sat {'on a mat ' * (i % 3)}{i}" for i in range(11)]}),
        "callbacks": [RewardHackingMonitor(short, warmup=3, max_kl=5.0)],
    }


def by_token(completion_ids: list[list[int]], **kwargs) -> list[list[float]]:
    """A reward for each token."""
    return [[(token % 7) / 7 for token in ids] for ids in completion_ids]


def everything(points: Points) -> dict:
    """All that a critic, a KL, a reward and an evaluation can have, at once."""
    return {
        "reward_funcs": [RunningNormalization(by_token), OwnMemory(points)],
        "reward_constraints": ["own_memory >= 1", "kl <= 0.5"],
        "eval_reward_funcs": short,
        "critic_pretraining_episodes": 12,
        "critic_pretraining_epochs": 2,
        "critic_epochs": 2,
        "critic_mini_batches": 2,
        "critic_held_out": 0.3,
        "kl_estimator": "exact",
        "mask_ratio_range": [0.8, 1.25],
        "critic_reads_reward_every": 2,
    }


def make_trainer(folder: Path, kind: str, points: Points) -> PPOTrainer:
    """Two epochs of two rollouts of four optimizer steps each, with state in every part that can have some."""
    settings: dict[str, Any] = {"reward_funcs": [RunningNormalization(scripted.reward), OwnMemory(points)]}
    if kind == "full":
        settings |= {"reward_constraints": ["own_memory >= 1"]}
    if kind == "hacking":
        settings = against_hacking()
    if kind == "stream":
        # the buffer holds rows when a run is killed, and rollouts of 8 go over the end of 11 rows
        stream = scripted.prompts(11).to_iterable_dataset(num_shards=3).shuffle(seed=3, buffer_size=4)
        settings |= {"train_dataset": stream, "max_steps": 16}
    if kind == "critic":
        settings |= {"critic_epochs": 2, "critic_mini_batches": 2, "critic_pretraining_episodes": 12}
        settings |= {"critic_pretraining_epochs": 2, "critic_held_out": 0.3}
    if kind in ("everything", "ahead"):
        settings = everything(points)
    else:
        settings["kl_controller"] = AdaptiveKL(target=0.5, init_coef=0.1)
    make = copying_engine.trainer if kind == "ahead" else partial(scripted.trainer, scripted=False)
    trainer = make(
        folder,
        critic={"full": "copy", "critic": "copy", "everything": "copy", "ahead": "copy", "lora": "adapter"}.get(
            kind, "head"
        ),
        peft_config=LoraConfig(r=4, target_modules="all-linear") if kind == "lora" else None,
        num_critics=2 if kind == "lora" else 1,
        merge_adapters_while_sampling=kind == "lora",
        cache_implementation="static" if kind == "lora" else None,
        **({"critic_reads_reward_every": 1} if kind == "lora" else {}),
        **({"kl_estimator": "exact" if kind == "lora" else "k1"} | settings),
        # a rollout of 8 completions in all, whatever the number of processes
        per_device_train_batch_size=4 // int(os.environ.get("WORLD_SIZE", "1")),
        num_mini_batches=2,
        num_train_epochs=2,
        total_episodes=None,
        target_approx_kl=0.05,
        critic_warmup_rollouts=1,
        logging_steps=3,  # so that a kill falls between two logs
        save_strategy="steps",
        save_steps=1,
        save_total_limit=3,
        eval_strategy="steps",
        eval_steps=5,
        eval_dataset=scripted.prompts(4),
        learning_rate=3e-3,
        policy_ema_decay=None if kind == "stream" else 0.9,
    )
    trainer.add_callback(AtStep(points))
    if kind == "ahead":
        engine: Any = trainer.generation_engine
        engine.sample = points.before("sample", engine.sample)
    else:
        trainer.generation_engine = points.before("sample", trainer.generation_engine)
    return trainer


def add_points(points: Points) -> None:
    """Points before every call that changes the disk while a checkpoint is written, and within rotation."""
    saving = [(checkpoint, name) for name in ("_begin", "commit", "_drop_replaced")]
    saving += [(folders, "digest"), (folders, "write_json"), (trainer_module, "write_json")]
    for module, name in saving:
        setattr(module, name, points.before("save", getattr(module, name)))
    for name in ("_save", "_save_optimizer_and_scheduler", "_save_rng_state", "_ppo_state"):
        setattr(PPOTrainer, name, points.before("save", getattr(PPOTrainer, name)))
    PPOTrainer._learn = points.before("learn", PPOTrainer._learn)  # type: ignore[method-assign]
    checkpoint.remove = points.before("rotate", checkpoint.remove)
    rmtree = checkpoint.shutil.rmtree
    checkpoint.shutil.rmtree = points.before("rotate", rmtree)  # type: ignore[assignment]


def train(folder: Path, kind: str, kill: tuple[str, int] | None, resume: bool) -> None:
    """One run, from the start or from the newest complete checkpoint; leaves what it ended with."""
    points = Points(kill)
    add_points(points)
    trainer = make_trainer(folder, kind, points)
    trainer.train(resume_from_checkpoint=resume and bool(checkpoint.checkpoints(folder)))
    rank = trainer.args.process_index
    if rank == 0:
        save_file({n: p.contiguous() for n, p in scripted.weights(trainer).items()}, folder / "weights.safetensors")
    left: dict[str, Any] = {"log": trainer.state.log_history, "kl": trainer.kl_controller.state_dict()}
    left["rewards"] = trainer.rewards.state_dict()
    left["constraints"] = trainer.rewards.constraints.state_dict()
    monitors = [c for c in trainer.callback_handler.callbacks if isinstance(c, RewardHackingMonitor)]
    left["monitors"] = [monitor.state_dict() for monitor in monitors]
    left["points"] = points.seen
    (folder / f"left_{rank}.json").write_text(json.dumps(left))


def run(processes: int, *args: Any) -> list[int]:
    """Exit codes of `train(*args)` in so many child processes, negative for the signal that ended one."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    children: list[int] = []
    for rank in range(processes):
        pid = os.fork()
        if pid == 0:
            os.setpgid(0, children[0] if children else 0)
            if processes > 1:
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
                os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port}
            code = 1
            try:
                train(*args)
                code = 0
            except BaseException:
                import traceback

                traceback.print_exc()
            sys.stderr.flush()
            os._exit(code)
        children.append(pid)
        os.setpgid(pid, children[0])
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]


def without_timing(log: list[dict]) -> list[dict]:
    """A log without what no two runs have in common."""
    return [{k: v for k, v in line.items() if not any(part in k for part in TIMING)} for line in log]


def differences(whole: Path, resumed: Path, processes: int) -> list[str]:
    """What differs, bit by bit, between a run and one that was killed and resumed."""
    found = []
    last = checkpoint.checkpoints(whole)[-1].name
    files = ["weights.safetensors", *(f"{last}/rollout_{rank}.safetensors" for rank in range(processes))]
    averages = [path.relative_to(whole) for path in (whole / last / "ema").glob("*.safetensors")]
    for name in [*files, *map(str, averages)]:
        first, second = load_file(whole / name), load_file(resumed / name)
        if first.keys() != second.keys() or not all(torch.equal(first[n], second[n]) for n in first):
            found.append(name)
    moments = [torch.load(folder / last / "optimizer.pt", weights_only=True)["state"] for folder in (whole, resumed)]
    same = all(torch.equal(moments[0][i][n], moments[1][i][n]) for i in moments[0] for n in moments[0][i])
    found += [] if same and moments[0].keys() == moments[1].keys() else ["optimizer"]
    for rank in range(processes):
        first, second = (json.loads((folder / f"left_{rank}.json").read_text()) for folder in (whole, resumed))
        for name in ("kl", "rewards", "constraints", "monitors"):
            found += [] if first[name] == second[name] else [f"{name} of process {rank}"]
        if rank == 0 and without_timing(first["log"]) != without_timing(second["log"]):
            found.append("log")
    if [c.name for c in checkpoint.checkpoints(whole)] != [c.name for c in checkpoint.checkpoints(resumed)]:
        found.append("the checkpoints that are left")
    return found + [
        f"{c.name}: {fault}" for c in checkpoint.checkpoints(resumed) if (fault := checkpoint.find_damage(c))
    ]


def draw(count: int, seen: dict[str, int], seed: int) -> list[tuple[str, int]]:
    """Points spread evenly over the phases, each at random within its phase."""
    random_source = random.Random(seed)
    return [(phase, random_source.randint(1, seen[phase])) for phase in (PHASES[i % len(PHASES)] for i in range(count))]


def main(root: Path, kind: str, processes: int, kills: str, seed: int = 0) -> int:
    """Prints one line for each kill; 0 if every run ended like the one that was not killed."""
    torch.set_num_threads(1)
    assert run(processes, root / "whole", kind, None, False) == [0] * processes
    seen = [json.loads((root / "whole" / f"left_{rank}.json").read_text())["points"] for rank in range(processes)]
    most = {phase: max(counts.get(phase, 0) for counts in seen) for phase in PHASES}
    given = [point.split(".") for point in kills.split(",")]
    points = draw(int(kills), most, seed) if kills.isdigit() else [(phase, int(count)) for phase, count in given]
    failed = 0
    for i, point in enumerate(points):
        folder = root / f"killed-{i}"
        assert run(processes, folder, kind, point, False) == [-signal.SIGKILL] * processes, point
        before = sorted(path.name for path in folder.glob("*checkpoint-*"))
        assert run(processes, folder, kind, None, True) == [0] * processes, point
        found = differences(root / "whole", folder, processes)
        failed += bool(found)
        print(
            f"{'.'.join(map(str, point))} of {most[point[0]]} {before}: {', '.join(found) or 'identical'}", flush=True
        )
    return failed


if __name__ == "__main__":
    folder, kind, processes, kills, *seed = sys.argv[1:]
    sys.exit(main(Path(folder), kind, int(processes), kills, *map(int, seed)))
