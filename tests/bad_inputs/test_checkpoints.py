# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints that a run cannot go on from, or cannot write."""

import functools
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from filelock import FileLock
from peft import LoraConfig

from tests import scripted
from tests.bad_inputs.case import Case, check, table
from tests.tiny_models import tiny_causal_lm, tiny_tokenizer
from trl_ext import AdaptiveKL, checkpoint
from trl_ext.resuming import CheckpointError

ROOT = Path(tempfile.mkdtemp(prefix="bad-checkpoints-"))
EVERY_STEP = {"save_strategy": "steps", "save_steps": 1}


@pytest.fixture(autouse=True, scope="module")
def cleaned():
    yield
    shutil.rmtree(ROOT)


@functools.cache
def run() -> Path:
    """A run with a checkpoint after each of its first two steps."""
    made = scripted.trainer(ROOT / "run", **EVERY_STEP, max_steps=2, total_episodes=None)
    made.train()
    return ROOT / "run"


def resumed(name: str, damage: Callable[[Path], object] | None = None, given: Any = True, **settings: Any) -> Callable:
    """Copies the run to a folder of its own, damages checkpoint 2 in it, and resumes from what is `given` there."""

    def call() -> None:
        folder = ROOT / name
        shutil.copytree(run(), folder)
        if damage is not None:
            damage(folder / "checkpoint-2")
        made = scripted.trainer(folder, **{**EVERY_STEP, **settings})
        made.train(resume_from_checkpoint=given if isinstance(given, bool) else str(folder / given))

    return call


def named(name: str, damage: Callable[[Path], object], message: str, given: str = "checkpoint-2") -> Case:
    """A damaged checkpoint that is resumed from by its path."""
    return Case(name, resumed(name, damage, given), CheckpointError, f"{ROOT / name / given} {message}.")


def changed(name: str, change: str, **settings: Any) -> Case:
    """A run that is resumed with something else than before."""
    message = (
        f"{ROOT / name}/checkpoint-2 is a checkpoint of another configuration: {change}; use the same settings, or "
        "another `output_dir` to start anew."
    )
    return Case(name, resumed(name, **settings), CheckpointError, message)


def truncate(folder: Path) -> None:
    with open(folder / "optimizer.pt", "r+b") as file:
        file.truncate(100)


def flip_a_bit(folder: Path, name: str = "model.safetensors", at: int = -5) -> None:
    content = bytearray((folder / name).read_bytes())
    content[at] ^= 4
    (folder / name).write_bytes(content)


def zero(folder: Path, name: str = "rng_state.pth") -> None:
    (folder / name).write_bytes(bytes((folder / name).stat().st_size))


def without(*names: str) -> Callable[[Path], None]:
    """Somebody removes a file and makes the manifest fit."""

    def damage(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        for name in names:
            (folder / name).unlink()
            manifest.pop(name, None)
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return damage


def sizes_only(folder: Path) -> None:
    """A manifest as earlier versions wrote it."""
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({name: entry["bytes"] for name, entry in manifest.items()}))


def of_two_processes(folder: Path) -> None:
    state = json.loads((folder / "ppo_state.json").read_text())
    state["configuration"]["number of processes"] = 2
    (folder / "ppo_state.json").write_text(json.dumps(state))
    checkpoint.commit(folder)


def of_trl(folder: Path) -> None:
    for name in ("ppo_state.json", "manifest.json", "rollout_0.safetensors"):
        (folder / name).unlink()
    shutil.rmtree(folder / "critic")


def both_zeroed(folder: Path) -> None:
    for name in ("checkpoint-1", "checkpoint-2"):
        zero(folder.with_name(name))


def all_removed(folder: Path) -> None:
    for name in ("checkpoint-1", "checkpoint-2"):
        shutil.rmtree(folder.with_name(name))


def other_weights():
    model = tiny_causal_lm()
    model.lm_head.weight.data += 0.01
    return model


def other_tokenizer():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages[0].content }}"
    return tokenizer


def trained(name: str, prepare: Callable[[Any], object], **settings: Any) -> Callable[[], object]:
    """A run in a folder of its own, with something done to the trainer first."""

    def call() -> None:
        made = scripted.trainer(ROOT / name, **EVERY_STEP, **settings)
        prepare(made)
        made.train()

    return call


def fills_the_disk(made: Any) -> None:
    save = made._save_rng_state

    def full(folder: str) -> None:
        if made.state.global_step == 2:
            raise OSError(28, "No space left on device")
        save(folder)

    made._save_rng_state = full


def occupied(made: Any) -> None:
    (Path(made.args.output_dir) / "checkpoint-1").write_text("not a folder")


def of_another_run(made: Any) -> None:
    folder = Path(made.args.output_dir) / "checkpoint-1"
    folder.mkdir()
    made.held = FileLock(folder / ".writing")
    made.held.acquire()


ONE_IS_WHOLE = "resume from checkpoint-1, which is whole"
NOT_WHAT_WAS_WRITTEN = "is not a complete checkpoint (the content of '{}' is not what was written); " + ONE_IS_WHOLE
HALF = f"was only half written and is now incomplete-checkpoint-2; {ONE_IS_WHOLE}"
NO_STATE = "has no ppo_state.json: it is not a checkpoint that PPOTrainer can resume from"
NO_OPTIMIZER = (
    "has no state of the optimizer: it was saved with `save_only_model`, and a run cannot go on from it; give it as "
    "`model` to start from its weights"
)

CASES = [
    named("truncated", truncate, HALF),
    named("flipped-weights", flip_a_bit, NOT_WHAT_WAS_WRITTEN.format("model.safetensors")),
    named(
        "flipped-critic",
        lambda f: flip_a_bit(f, "critic/value_head.safetensors"),
        NOT_WHAT_WAS_WRITTEN.format("critic/value_head.safetensors"),
    ),
    named("zeroed-random-state", zero, NOT_WHAT_WAS_WRITTEN.format("rng_state.pth")),
    named(
        "zeroed-rollout",
        lambda f: zero(f, "rollout_0.safetensors"),
        NOT_WHAT_WAS_WRITTEN.format("rollout_0.safetensors"),
    ),
    named("zeroed-log", lambda f: zero(f, "trainer_state.json"), NOT_WHAT_WAS_WRITTEN.format("trainer_state.json")),
    named("zeroed-manifest", lambda f: zero(f, "manifest.json"), HALF),
    named("manifest-missing", lambda f: (f / "manifest.json").unlink(), HALF),
    named("critic-missing", lambda f: shutil.rmtree(f / "critic"), HALF),
    named(
        "rollout-missing",
        without("rollout_0.safetensors"),
        "has no 'rollout_0.safetensors'; resume from another checkpoint",
    ),
    named("random-state-missing", without("rng_state.pth"), "has no 'rng_state.pth'; resume from another checkpoint"),
    named("log-missing", without("trainer_state.json"), "has no 'trainer_state.json'; resume from another checkpoint"),
    named("state-missing", without("ppo_state.json"), NO_STATE),
    named("only-the-model", without("optimizer.pt", "scheduler.pt", "rollout_0.safetensors"), NO_OPTIMIZER),
    named("of-trl", of_trl, NO_STATE),
    named(
        "not-there",
        lambda f: None,
        "is not a folder; give a checkpoint, or True for the newest whole one",
        "checkpoint-7",
    ),
    named(
        "a-file",
        lambda f: (f.parent / "notes.txt").touch(),
        "is not a folder; give a checkpoint, or True for the newest whole one",
        "notes.txt",
    ),
    named("an-empty-folder", lambda f: (f.parent / "empty").mkdir(), NO_STATE, "empty"),
    Case(
        "the-output-folder",
        resumed("the-output-folder", None, "."),
        CheckpointError,
        f"{ROOT / 'the-output-folder'} {NO_STATE}; it holds checkpoints, give checkpoint-2 in it.",
    ),
    named(
        "old-manifest-and-zeroed-state",
        lambda f: (sizes_only(f), zero(f, "ppo_state.json")),
        "is damaged (ppo_state.json cannot be read); resume from another one",
    ),
    named(
        "old-manifest-and-zeroed-weights",
        lambda f: (sizes_only(f), zero(f, "model.safetensors")),
        f"could not be loaded (ValueError: The checkpoint '{ROOT}/old-manifest-and-zeroed-weights/checkpoint-2' cannot "
        "be loaded: Error while deserializing header: invalid JSON in header: EOF while parsing a value at line 1 "
        "column 0.): it is damaged, or of another version; resume from another checkpoint, or start anew in another "
        "`output_dir`",
    ),
    *(
        Case(
            name,
            resumed(name, damage),
            CheckpointError,
            f"There is no whole checkpoint of PPOTrainer in {ROOT / name}; leave `resume_from_checkpoint` out to start "
            "anew.",
        )
        for name, damage in (("none", all_removed), ("all-damaged", both_zeroed))
    ),
    changed("another-critic", "critic (then head, now model)", critic="copy"),
    changed("more-epochs", "num_ppo_epochs (then 2, now 3)", num_ppo_epochs=3),
    changed("another-seed", "seed (then 42, now 43)", seed=43),
    changed("another-controller", "KL controller (then FixedKL, now AdaptiveKL)", kl_controller=AdaptiveKL(target=6.0)),
    changed(
        "more-rewards",
        "reward functions (then ['reward'], now ['reward', 'reward_2']), reward_weights (then [1.0], now [1.0, 1.0])",
        reward_funcs=[scripted.reward, scripted.reward],
    ),
    changed("other-weights-of-rewards", "reward_weights (then [1.0], now [0.5])", reward_weights=[0.5]),
    changed("fewer-processes", "number of processes (then 2, now 1)", damage=of_two_processes),
    Case(
        "full-disk",
        trained("full-disk", fills_the_disk),
        RuntimeError,
        f"{ROOT}/full-disk/checkpoint-2 could not be written (OSError: [Errno 28] No space left on device); make room "
        "or choose another `output_dir`; checkpoint-1 is whole.",
    ),
    Case(
        "occupied",
        trained("occupied", occupied),
        RuntimeError,
        f"{ROOT}/occupied/checkpoint-1 could not be written (FileExistsError: [Errno 17] File exists: "
        f"'{ROOT}/occupied/checkpoint-1'); make room or choose another `output_dir`; there is no older one.",
    ),
    Case(
        "two-runs",
        trained("two-runs", of_another_run),
        RuntimeError,
        f"{ROOT}/two-runs/checkpoint-1 is being written by another process: two runs have the same `output_dir`; give "
        "each its own.",
    ),
]


@table(CASES)
def test_checkpoint(case: Case) -> None:
    check(case)


# What is named by a digest is compared with the identity of the run that is tried.
IDENTITIES = {
    "another-model": ("model", lambda: {"model": other_weights()}),
    "another-prompt": ("train_dataset", lambda: {"train_dataset": scripted.prompts(17).select(range(1, 17))}),
    "more-prompts": ("train_dataset", lambda: {"train_dataset": scripted.prompts(24)}),
    "another-template": ("tokenizer", lambda: {"processing_class": other_tokenizer()}),
    "supervised-data": (
        "ptx_dataset",
        lambda: {"ptx_dataset": Dataset.from_dict({"text": ["a cat sat"]}), "ptx_coef": 0.1},
    ),
    "adapters": ("adapters", lambda: {"peft_config": LoraConfig(r=2, target_modules="all-linear")}),
}


@pytest.mark.parametrize("name", IDENTITIES)
def test_another_identity_is_named_with_both(name):
    key, change = IDENTITIES[name]
    now = scripted.trainer(ROOT / "identity", **change())._configuration
    folder = ROOT / name
    shutil.copytree(run(), folder)
    then = json.loads((folder / "checkpoint-2" / "ppo_state.json").read_text())["configuration"]
    differing = [f"{k} (then {then[k]}, now {v})" for k, v in now.items() if then[k] != v]
    assert any(text.startswith(f"{key} (then ") for text in differing)
    message = (
        f"{folder}/checkpoint-2 is a checkpoint of another configuration: {', '.join(differing)}; use the same "
        "settings, or another `output_dir` to start anew."
    )
    made = scripted.trainer(folder, **change())
    check(Case(name, lambda: made.train(resume_from_checkpoint=True), CheckpointError, message))
