# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Resuming: the checkpoint that a run goes on from, and what both must have in common."""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from . import checkpoint
from .checkpoint import STATE
from .critic_learning import CriticOptions
from .experience.advantages import AdvantageOptions
from .experience.ahead import RolloutAhead
from .experience.rollout import Rollout
from .files import write_json
from .learning import LossOptions
from .processes import ProcessFailureError, together
from .sharding import local
from .step_gate import StepLimits

logger = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A checkpoint that cannot be resumed from."""


# ---- finding and reading ----


def find_checkpoint(
    given: str | bool | None, output_dir: str | Path, current: dict[str, Any], process: int, *, leader: bool
) -> str | None:
    """Return the checkpoint that `resume_from_checkpoint` means, which this process can go on from.

    Args:
        given: A folder, True for the newest whole checkpoint in `output_dir`, None or False for none.
        output_dir: Folder of the run's checkpoints.
        current: Values that must agree with the checkpoint's, by name.
        process: Index of this process.
        leader: True on the process that compares contents and sets damaged checkpoints aside before the others look.

    Raises:
        CheckpointError: when there is none, the one given is damaged, or it differs.
    """
    found = _find_checkpoint(given, output_dir, leader)
    if found is not None:
        folder = Path(found)
        with together(f"Resuming from {folder}"), loading(folder):
            check_checkpoint(folder, current, process)
    return found


def _find_checkpoint(given: str | bool | None, output_dir: str | Path, leader: bool) -> str | None:
    output_dir = Path(output_dir)
    with together("Looking for a checkpoint"):
        if leader and given is True:
            checkpoint.newest_whole(output_dir)
        elif leader and given:
            _check_whole(Path(str(given)))
        elif leader and (earlier := _whole(output_dir)):
            logger.warning(
                f"{output_dir} has checkpoints of an earlier run, up to {earlier[-1].name}: after an interruption, "
                "`resume_from_checkpoint=True` would go on from the highest step. Move them away, or choose another "
                "`output_dir`."
            )
    if given is not True:
        return str(given) if given else None
    whole = _whole(output_dir)
    if not whole:
        raise CheckpointError(
            f"There is no whole checkpoint of PPOTrainer in {output_dir}; leave `resume_from_checkpoint` out to start "
            "anew."
        )
    return str(whole[-1])


def _whole(output_dir: Path) -> list[Path]:
    return [folder for folder in checkpoint.checkpoints(output_dir) if checkpoint.is_complete(folder)]


def _check_whole(folder: Path) -> None:
    aside = folder.with_name(f"incomplete-{folder.name}")
    if not folder.is_dir() and aside.is_dir():
        raise CheckpointError(f"{folder} was only half written and is now {aside.name}; {_way_out(folder)}.")
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; give a checkpoint, or True for the newest whole one.")
    if not (folder / STATE).is_file() and not (folder / checkpoint.MANIFEST).is_file():
        raise _no_checkpoint(folder)
    fault = checkpoint.find_damage(folder)
    if fault is not None:
        raise CheckpointError(f"{folder} is not a complete checkpoint ({fault}); {_way_out(folder)}.")


def _way_out(folder: Path) -> str:
    whole = [other.name for other in _whole(folder.parent) if other != folder]
    return f"resume from {whole[-1]}, which is whole" if whole else "there is no other checkpoint to resume from"


def _no_checkpoint(folder: Path) -> CheckpointError:
    hint = f"; it holds checkpoints, give {inside[-1].name} in it" if (inside := _whole(folder)) else ""
    return CheckpointError(f"{folder} has no {STATE}: it is not a checkpoint that PPOTrainer can resume from{hint}.")


@contextmanager
def loading(folder: Path) -> Iterator[None]:
    """Turn whatever reading a damaged file raises into a [`CheckpointError`] that names the checkpoint."""
    try:
        yield
    except (CheckpointError, ProcessFailureError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]
        raise CheckpointError(
            f"{folder} could not be loaded ({reason:.300}): it is damaged, or of another version; resume from another "
            "checkpoint, or start anew in another `output_dir`."
        ) from error


def state_file(folder: Path, process: int) -> Path:
    """Return the file that holds the state of process number `process`."""
    return folder / (STATE if process == 0 else f"ppo_state_{process}.json")


def write_state(folder: Path, process: int, state: dict[str, Any]) -> None:
    """Write the state of a process, the last of its files of a checkpoint.

    The main process also drops the copy of the weights that accelerate adds to the optimizer's state under FSDP: the
    checkpoint has them already, as `save_pretrained` leaves them.
    """
    write_json(state_file(folder, process), state)
    if process == 0:
        (folder / "pytorch_model_fsdp.bin").unlink(missing_ok=True)


def read_state(folder: Path, process: int) -> dict[str, Any]:
    """Return the state that a process saved.

    A checkpoint of several processes by an earlier version has the first process's state alone, which all then read.

    Raises:
        CheckpointError: when there is none, or it is no JSON object.
    """
    path = state_file(folder, process)
    try:
        state = json.loads((path if path.is_file() else folder / STATE).read_text())
        assert isinstance(state["configuration"], dict)
    except OSError:
        raise _no_checkpoint(folder) from None
    except (ValueError, TypeError, KeyError, AssertionError):
        raise CheckpointError(f"{folder} is damaged ({path.name} cannot be read); resume from another one.") from None
    return _upgraded(state)


def save_rollouts(folder: Path, process: int, rollout: Rollout, ahead: RolloutAhead) -> None:
    """Write the rollout in use and, where there is one, the rollout that was sampled ahead."""
    rollout.save(folder / f"rollout_{process}.safetensors")
    ahead.save(folder / f"next_rollout_{process}.json")


def load_rollouts(folder: Path, process: int, ahead: RolloutAhead, device: torch.device) -> Rollout:
    """Return the rollout in use, and put the rollout that was sampled ahead back; see `save_rollouts`."""
    ahead.load(folder / f"next_rollout_{process}.json")
    return Rollout.load(folder / f"rollout_{process}.safetensors", device)


class Stateful(Protocol):
    """A part of a run that a checkpoint holds as JSON."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return the state."""

    def load_state_dict(self, state: Any) -> None:
        """Put back what `state_dict` returned."""


def restore(parts: Mapping[str, Stateful], state: Mapping[str, Any]) -> None:
    """Put the states that `read_state` returned back into the parts of the same names.

    Raises:
        KeyError: when the checkpoint lacks the state of a part.
    """
    for name, part in parts.items():
        part.load_state_dict(state[name])


def _upgraded(state: dict[str, Any]) -> dict[str, Any]:
    """Return a state in the present layout; earlier versions wrote some parts without a name of their own."""
    if "micro-batch" in state:
        gate = {**state.get("gate", {"taken": 1, "lost": 0}), "stopped": state["stopped"]}
        state |= {"run_log": dict(state), "gate": gate, "micro_batches": {"size": state["micro-batch"]}}
    state.setdefault("constraints", {})
    return state


def check_checkpoint(folder: Path, current: dict[str, Any], process: int) -> None:
    """Refuse a checkpoint that this process cannot go on from.

    Args:
        folder: The checkpoint.
        current: Values that must agree, by name. A name that an earlier version did not write is not compared.
        process: Index of this process.

    Raises:
        CheckpointError: when the checkpoint is not one of `PPOTrainer`, lacks a file, or differs; every difference is
            named.
    """
    saved = read_state(folder, process)["configuration"]
    different = [f"{k} (then {saved[k]}, now {v})" for k, v in current.items() if k in saved and saved[k] != v]
    if different:
        raise CheckpointError(
            f"{folder} is a checkpoint of another configuration: {', '.join(different)}; use the same settings, or "
            "another `output_dir` to start anew."
        )
    if not checkpoint.is_complete(folder):
        raise CheckpointError(f"{folder} is not a complete checkpoint; resume from another one.")
    if not (folder / "scheduler.pt").is_file():
        raise CheckpointError(
            f"{folder} has no state of the optimizer: it was saved with `save_only_model`, and a run cannot go on from "
            "it; give it as `model` to start from its weights."
        )
    random_state = f"rng_state_{process}.pth" if current.get("number of processes", 1) > 1 else "rng_state.pth"
    for name in (f"rollout_{process}.safetensors", random_state, "trainer_state.json"):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} has no '{name}'; resume from another checkpoint.")
    with loading(folder):
        json.loads((folder / "trainer_state.json").read_text())


# Settings that may change from one part of a run to the next; `own_optimizer_settings` warns of `learning_rate`.
_MAY_CHANGE = {
    *(field.name for part in (LossOptions, AdvantageOptions, CriticOptions, StepLimits) for field in fields(part)),
    *("kl_target", "kl_horizon", "kl_coef_end", "kl_schedule", "missing_eos_penalty", "reward_clip_range"),
    *("reward_constraints", "importance_sampling_correction", "importance_sampling_cap", "ptx_max_length"),
    *("prompt_column", "chat_template_kwargs", "critic_learning_rate"),
    *("critic_warmup_rollouts", "policy_ema_decay", "max_grad_norm", "lr_scheduler_type", "lr_scheduler_kwargs"),
    *("warmup_steps", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "bf16", "fp16"),
}


def warn_of_changes(folder: Path, rewards: dict[str, Any], settings: dict[str, Any]) -> None:
    """Warn of what differs from the checkpoint's and may; the run goes on with what is new.

    Args:
        folder: The checkpoint.
        rewards: Settings of the reward functions, by name.
        settings: Those of the configuration, as `PPOConfig.to_dict` returns them.
    """
    path = folder / "ppo_config.json"
    written = json.loads(path.read_text()) if path.is_file() else {}
    changed = [
        f"{name} (then {written[name]}, now {settings[name]})"
        for name in sorted(_MAY_CHANGE & written.keys() & settings.keys())
        if written[name] != settings[name]
    ]
    if changed:
        logger.warning(
            f"Settings are not those that {folder} was written with: {', '.join(changed)}. The run goes on with the "
            "new ones."
        )
    saved = read_state(folder, 0).get("reward settings", {})
    changed = [f"{k} (then {saved.get(k)}, now {v})" for k, v in rewards.items() if saved and saved.get(k) != v]
    if changed:
        logger.warning(
            f"The reward functions are not set as when {folder} was written: {', '.join(changed)}. The run goes on "
            "with the new settings; what it has learned so far followed the old ones."
        )


_NUMBERS = ("weight_decay", "betas", "eps", "momentum")  # of an optimizer, beside its learning rate


@contextmanager
def own_optimizer_settings(optimizer: torch.optim.Optimizer, scheduler: Any) -> Iterator[None]:
    """Keep this run's learning rates, weight decay, betas and epsilon over a block that loads optimizer and schedule.

    Both bring the checkpoint's along, so that a lower `learning_rate` would have no effect on a resumed run. The place
    in the schedule stays the checkpoint's.
    """
    ours = [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups]
    others = [{name: group[name] for name in _NUMBERS if name in group} for group in optimizer.param_groups]
    yield
    for group, own in zip(optimizer.param_groups, others, strict=True):
        group.update(own)
    saved = [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups]
    if saved == ours:
        return
    for group, new, old in zip(optimizer.param_groups, ours, saved, strict=True):
        group["lr"] = group["lr"] * new / old if old else new
        group["initial_lr"] = new
    state = scheduler.state_dict()
    if "base_lrs" in state:
        rates = [group["lr"] for group in optimizer.param_groups]
        scheduler.load_state_dict({**state, "base_lrs": ours, "_last_lr": rates})
    now, then = (", ".join(f"{rate:g}" for rate in dict.fromkeys(rates)) for rates in (ours, saved))
    logger.warning(
        f"The learning rate is {now}, and was {then} when the checkpoint was written; the run goes on with the new "
        "one, at the same place of the schedule."
    )


@contextmanager
def without_rotation(args: Any) -> Iterator[int | None]:
    """Keep the Trainer from deleting checkpoints in a block, and yield `save_total_limit`."""
    limit, args.save_total_limit = args.save_total_limit, None
    try:
        yield limit
    finally:
        args.save_total_limit = limit


def check_finite(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Refuse to save a model whose weights are not finite.

    Raises:
        RuntimeError: when a trained weight, or the optimizer's state of one, is NaN or infinite.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    names = {id(p): name for name, p in trained.items()}
    tensors: list[tuple[str, Tensor]] = list(trained.items())
    for parameter, kept in optimizer.state.items():
        name = f"the optimizer's state of {names.get(id(parameter), 'a weight')}"
        tensors += [(name, value) for value in kept.values() if isinstance(value, Tensor)]
    finite = [torch.isfinite(local(t).detach()).all() for _, t in tensors]
    if not finite or bool(torch.stack([f.to(finite[0].device) for f in finite]).all()):
        return
    bad = [name for (name, _), is_finite in zip(tensors, finite, strict=True) if not is_finite]
    raise RuntimeError(
        f"Step {step}: {len(bad)} of {len(tensors)} trained tensors are NaN or infinite, the first is {bad[0]}; no "
        "checkpoint is written. Resume from the newest one, with a lower `learning_rate` or `max_grad_norm`."
    )
