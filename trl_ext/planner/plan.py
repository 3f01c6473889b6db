# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Plan the memory of a PPO run from a model's configuration, without its weights: by role and by phase."""

import dataclasses
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from trl_ext.actor_critic.trunk import text_trunk

from .footprint import DryRun, Parts
from .setup import Setup
from .shapes import SHAPES
from .weights import (
    base_bytes,
    count,
    lora_parameters,
    merged_copies,
    meta_model,
    optimizer_bytes,
    states_width,
    step_bytes,
    trained_parameters,
)

GIB = 2**30
CUDA_CONTEXT = GIB // 2  # CUDA's own context and kernels, which torch does not count as allocated
USABLE_FRACTION = 0.95  # of a card; the rest goes to gaps between torch's blocks


@dataclass(frozen=True)
class Footprint:
    """Memory of a run in bytes, as `torch.cuda.max_memory_allocated` counts them.

    Attributes:
        resident: Bytes that every phase holds: weights by role, optimizer state.
        phases: Bytes that each phase adds at its peak, by part.
        generation_batch, reward_batch: Sequences sampled, and texts scored, at a time.
        vllm_share: Share of the card that vLLM takes beside.
    """

    resident: Parts
    phases: dict[str, Parts]
    generation_batch: int
    reward_batch: int
    vllm_share: float = 0.0

    def phase_peak(self, phase: str) -> int:
        """Return the bytes at the peak of one phase."""
        return sum(self.resident.values()) + sum(self.phases[phase].values())

    @property
    def peak(self) -> int:
        """Bytes at the peak of the run."""
        return max(map(self.phase_peak, self.phases))

    def fits(self, card: float) -> bool:
        """Return whether a card of so many GiB holds the run, CUDA's context and gaps between blocks included."""
        return self.peak + CUDA_CONTEXT <= card * GIB * (USABLE_FRACTION - self.vllm_share)


def plan(config: PretrainedConfig, setup: Setup) -> Footprint:
    """Plan the memory of a PPO run.

    Args:
        config: Configuration of the policy.
        setup: Settings of the run.

    Raises:
        ValueError: when the model is no causal LM, or one whose layers need values to run and not only sizes.
    """
    return next(iter(_plans(config, setup, [setup.micro_batch])))


def sampling_batch(config: PretrainedConfig, setup: Setup, card: float) -> int:
    """Return how many completions of a rollout a card of so many GiB has room to sample at a time.

    Returns:
        A power of two, at most the completions of a rollout and at least 1, whether that fits or not.

    Raises:
        ValueError: when the model cannot be planned.
    """
    resident, _, held, dry_run = _prepared(config, setup)
    usable = card * GIB * (USABLE_FRACTION - setup.vllm_gpu_memory_utilization)
    free = int(usable) - CUDA_CONTEXT - sum(resident.values()) - held - sum(_merged(config, setup).values())
    with _planning(config):
        return _affordable(dry_run.generate, None, setup.rollout, free)[0]


def largest_micro_batch(config: PretrainedConfig, setup: Setup, cards: Iterable[float]) -> dict[float, int | None]:
    """Return for every card (GiB) the largest power of two that fits as micro-batch; None: not even 1."""
    largest: dict[float, int | None] = dict.fromkeys(cards)
    sizes = [2**i for i in range(setup.rollout.bit_length())]
    for size, footprint in zip(sizes, _plans(config, setup, sizes), strict=False):
        fitting = [card for card in largest if footprint.fits(card)]
        largest.update(dict.fromkeys(fitting, size))
        if not fitting:
            break
    return largest


def fewest_checkpoints(config: PretrainedConfig, setup: Setup, cards: Iterable[float]) -> dict[float, int | None]:
    """Return for every card (GiB) how few layers have to be checkpointed for the run to fit.

    Returns:
        The largest `every_n_layers` that fits, of 1, 2, 4 and 8; 0: none has to be; None: all of them are not enough.
    """
    fewest: dict[float, int | None] = dict.fromkeys(cards)
    for every in (0, 8, 4, 2, 1):
        if open_cards := [card for card, found in fewest.items() if found is None]:
            changed = dataclasses.replace(setup, gradient_checkpointing=every > 0, every_n_layers=max(1, every))
            footprint = plan(config, changed)
            fewest.update({card: every for card in open_cards if footprint.fits(card)})
    return fewest


def largest_model(setup: Setup, cards: Iterable[float]) -> dict[float, str | None]:
    """Return for every card (GiB) the largest of `SHAPES` that fits; None: not even the smallest."""
    largest: dict[float, str | None] = dict.fromkeys(cards)
    for name in SHAPES:
        footprint = plan(load_config(name), setup)
        largest.update({card: name for card in largest if footprint.fits(card)})
    return largest


def _prepared(config: PretrainedConfig, setup: Setup) -> tuple[Parts, list[tuple[int, int]], int, DryRun]:
    """Return what `_resident` does, the bytes of autocast's copies, and the dry run."""
    dtype = getattr(torch, setup.dtype)
    model = meta_model(config, dtype)
    resident, trained = _resident(model, setup)
    names = (
        "quantization",
        "critic",
        "num_critics",
        "prompt",
        "completion",
        "rank",
        "logits_chunk_size",
        "gradient_checkpointing",
        "every_n_layers",
        "cache_implementation",
    )
    options = {name: getattr(setup, name) for name in names} | {"exact_kl": setup.kl_estimator == "exact"}
    dry_run = DryRun(config, critic_rank=setup.critic_rank or setup.rank, dtype=dtype, **options)
    # Autocast keeps the copies in `dtype` of every trained matrix while it is on, and the backward pass keeps it on.
    held = sum(n for n, _ in trained[1:]) * dtype.itemsize if dtype.itemsize < 4 else 0
    return resident, trained, held, dry_run


@contextmanager
def _planning(config: PretrainedConfig) -> Iterator[None]:
    """Refuse a model whose layers do not run without values, in a block."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).splitlines()[0][:120]
        raise ValueError(f"A model of type {config.model_type!r} cannot be planned ({reason}).") from error


def _plans(config: PretrainedConfig, setup: Setup, micro_batches: list[int]) -> Iterable[Footprint]:
    """Yield a plan for every micro-batch."""
    resident, trained, held, dry_run = _prepared(config, setup)
    gradients = {"gradients": sum(n * itemsize for n, itemsize in trained)}
    copies, merged = {"autocast copies": held}, _merged(config, setup)
    states: Parts = {}
    if setup.kl_estimator == "exact":
        width = states_width(meta_model(config)) * getattr(torch, setup.dtype).itemsize
        states = {"reference's states": setup.rollout * setup.completion * width}
    step = {"optimizer step": sum(step_bytes(n, itemsize, setup.optimizer) for n, itemsize in trained)}
    for micro_batch in micro_batches:
        with _planning(config):
            learn = gradients | copies | states | _largest([*dry_run.learn(micro_batch).values(), step])
            evaluate = states | _largest(dry_run.evaluate(micro_batch).values())
            free = max(sum(learn.values()), sum(evaluate.values()) + held) - held
            most = min(setup.rollout, 64)
            if setup.reward_adapters and setup.reward_batch is None:
                most = _affordable(lambda batch: _forward(dry_run, batch), None, most, free)[0]
            room = free - sum(merged.values())
            generation_batch, generate = _affordable(dry_run.generate, setup.generation_batch, most, room)
            generate = {} if setup.vllm_gpu_memory_utilization else merged | generate  # in vLLM's own memory
            reward_batch = setup.reward_batch or generation_batch
            score = {"score": _forward(dry_run, reward_batch)["forward"]} if setup.reward_adapters else {}
            phases = {"generate": copies | generate, **score, "evaluate": copies | evaluate, "learn": learn}
        yield Footprint(resident, phases, generation_batch, reward_batch, setup.vllm_gpu_memory_utilization)


def _merged(config: PretrainedConfig, setup: Setup) -> Parts:
    """Return the memory of the weights that the policy's adapter is merged into while it samples."""
    if not setup.merge_adapters_while_sampling:
        return {}
    return {"merged weights": merged_copies(meta_model(config, getattr(torch, setup.dtype)))}


def _forward(dry_run: DryRun, batch: int) -> dict[str, Parts]:
    """Return the memory in which a reward adapter scores a batch."""
    return {"forward": dry_run.evaluate(batch)["forward"]}


def _largest(moments: Iterable[Parts]) -> Parts:
    return max(moments, key=lambda parts: sum(parts.values()))


def _affordable(phase: Any, batch: int | None, most: int, free: int) -> tuple[int, Parts]:
    """Plan a phase with `batch`, or with the largest batch up to `most` that takes no more than `free` bytes."""
    if batch is not None:
        return batch, _largest(phase(batch).values())
    sizes = {1: _largest(phase(1).values())}
    low, high = 0, most.bit_length()  # as powers of two: `low` is taken, `high` is too large
    while high - low > 1:
        middle = (low + high) // 2
        sizes[2**middle] = _largest(phase(2**middle).values())
        low, high = (middle, high) if sum(sizes[2**middle].values()) <= free else (low, middle)
    return 2**low, sizes[2**low]


def _resident(model: PreTrainedModel, setup: Setup) -> tuple[Parts, list[tuple[int, int]]]:
    """Return resident memory by role, and number and bytes of the parameters that are trained.

    Whatever is trained is float32, with its gradients and moments; autocast computes in `setup.dtype`.
    """
    head, width = states_width(model) + 1, torch.float32.itemsize
    trained = [(head * setup.num_critics, width)]
    parts: Parts = {"base": base_bytes(model, setup.quantization), "value head": head * setup.num_critics * width}
    if setup.rank == 0:
        whole = trained_parameters(model)
        trained.append((whole, width))
        parts["base"] = count(model) * width
        parts["reference"] = whole * width  # shares what is not trained
        if setup.critic == "copy":
            trained.append((count(text_trunk(model)), width))
            parts["critic"] = trained[-1][0] * width
    else:
        actor = lora_parameters(model, setup.rank)
        trained.append((actor, width))
        parts["actor adapter"] = actor * width
        if setup.critic == "adapter":
            trained.append((setup.num_critics * lora_parameters(model, setup.critic_rank or setup.rank), width))
            parts["critic adapter"] = trained[-1][0] * width
        if setup.reference_adapter:
            parts["reference adapter"] = actor * width
        if setup.reward_adapters:
            parts["reward adapters"] = setup.reward_adapters * (actor + head) * width
    if setup.policy_ema:
        parts["policy average"] = parts["actor adapter"] if setup.rank else whole * width
    parts["optimizer"] = sum(optimizer_bytes(n, itemsize, setup.optimizer) for n, itemsize in trained)
    return parts, trained


def advise(config: PretrainedConfig, setup: Setup, peak: int) -> list[tuple[str, int]]:
    """Return changes and the bytes that each saves at the peak, the most first."""
    changes: list[dict[str, Any]] = [{"quantization": q} for q in ("nf4", "int8")] if setup.rank else []
    changes += [{"rank": 16, "critic": "adapter" if setup.critic == "copy" else "head"}] if setup.rank == 0 else []
    changes += [
        {"merge_adapters_while_sampling": False},
        {"cache_implementation": None},
        {"num_critics": 1},
        {"critic": "head", "num_critics": 1},
        {"gradient_checkpointing": True},
        {"every_n_layers": 1},
        {"optimizer": "paged_adamw_8bit"},
    ]
    changes += [{name: max(1, getattr(setup, name) // 2)} for name in ("micro_batch", "completion", "prompt")]
    changes += [{"logits_chunk_size": size} for size in (128,) if size < setup.logits_chunk_size]
    changes += [{"rank": 8}] if setup.rank > 8 else []
    changes += [{name: None} for name in ("generation_batch", "reward_batch") if getattr(setup, name)]
    saved = {}
    for change in changes:
        changed = dataclasses.replace(setup, **change)
        now = {name: getattr(setup, name) for name in change}
        text = ", ".join(f"{k}={v!r} instead of {now[k]!r}" for k, v in change.items() if v != now[k])
        if changed != setup:
            saved[text] = peak - plan(config, changed).peak
    return sorted(((text, n) for text, n in saved.items() if n >= GIB // 1000), key=lambda pair: -pair[1])


def load_config(name: str) -> PretrainedConfig:
    """Load a configuration by name in `SHAPES`, file, folder or hub name."""
    if name in SHAPES:
        shape = dict(SHAPES[name])
        return AutoConfig.for_model(shape.pop("model_type"), **shape)
    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{name!r} is no config.json, no folder with one, no model that can be reached on the hub, and none "
            f"of {', '.join(SHAPES)}."
        ) from error


def check_context(config: PretrainedConfig, setup: Setup) -> None:
    """Refuse completions that leave no room for a prompt in the model's context, as the trainer does.

    Warn of prompts that the context has no room for: the trainer refuses longer ones, and needs less memory then.

    Raises:
        ValueError: when the context holds no more than the completion.
    """
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    if context is None:
        return
    room = context - setup.completion
    if room < 1:
        raise ValueError(
            f"`completion` {setup.completion} leaves no room for a prompt in the model's context of {context} tokens; "
            "lower it."
        )
    if setup.prompt > room:
        warnings.warn(
            f"`prompt` {setup.prompt} and `completion` {setup.completion} are more than the model's context of "
            f"{context} tokens; a run takes prompts of at most {room} tokens, so lower `prompt` to that.",
            stacklevel=2,
        )


if __name__ == "__main__":
    from trl_ext.commands.plan import main

    main()
