# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""What fits on a card: `python -m trl_ext.planner.plan --model NAME --quantization nf4 --critic adapter`."""

import argparse
import dataclasses
import json
import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from trl_ext.actor_critic.trunk import text_trunk
from trl_ext.messages.printable import one_line

from .footprint import DryRun, Parts
from .shapes import SHAPES
from .weights import (
    OPTIMIZERS,
    QUANTIZATIONS,
    base_bytes,
    count,
    lora_parameters,
    meta_model,
    optimizer_bytes,
    states_width,
    step_bytes,
    trained_parameters,
)

DESCRIPTION = """Plan the memory of a PPO run from a model's configuration, without its weights: by role and by phase,
the largest micro-batch for every card, and what to change where it does not fit. Without --model: the largest model."""

GIB = 2**30
CUDA_CONTEXT = GIB // 2  # CUDA's own context and kernels, which torch does not count as allocated
USABLE_FRACTION = 0.95  # of a card; the rest goes to gaps between torch's blocks
CARDS = (8.0, 12.0, 16.0, 24.0)  # GiB
CHOICES = {"quantization": QUANTIZATIONS, "critic": ("head", "adapter", "copy"), "optimizer": OPTIMIZERS}
CHOICES["dtype"] = ("bfloat16", "float32")


def _option(default: Any, help: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Setup:
    """What decides how much memory a run takes, besides the model.

    Raises:
        ValueError: for what does not exist or cannot be trained.
    """

    quantization: str = _option("nf4", "how the base is held; nf4 with double quantization")
    critic: str = _option("head", "as in PPOConfig")
    prompt: int = _option(512, "tokens of the longest prompt")
    completion: int = _option(512, "tokens of the longest completion")
    micro_batch: int = _option(1, "samples in a forward and backward pass (per_device_train_batch_size)")
    rank: int = _option(16, "of the policy's LoRA on every linear layer but the head; 0 trains the model itself")
    critic_rank: int | None = _option(None, "of the critic's adapter; default: the same")
    reward_adapters: int = _option(0, "reward models that are adapters on the base, of the policy's rank")
    reference_adapter: bool = _option(
        False, "training starts from an adapter, a frozen clone of which is the reference"
    )
    rollout: int = _option(64, "completions sampled per rollout")
    generation_batch: int | None = _option(
        None, "sequences sampled at a time; default: as many as take no more than learning does"
    )
    reward_batch: int | None = _option(
        None, "texts that a reward adapter scores at a time; default: as many as are sampled"
    )
    optimizer: str = _option("adamw_torch_fused", "called optim in PPOConfig")
    logits_chunk_size: int = _option(512, "as in PPOConfig")
    gradient_checkpointing: bool = _option(True, "as in PPOConfig")
    dtype: str = _option("bfloat16", "what is computed in, and kept of frozen weights that are not quantized")

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` must be one of {', '.join(allowed)}, got {getattr(self, name)!r}.")
        smallest = dict.fromkeys(("prompt", "completion", "micro_batch", "rollout", "logits_chunk_size"), 1)
        smallest |= dict.fromkeys(("critic_rank", "generation_batch", "reward_batch"), 1)
        smallest |= dict.fromkeys(("rank", "reward_adapters"), 0)
        for name, least in smallest.items():
            if not isinstance(getattr(self, name), int | None):
                raise ValueError(f"`{name}` must be a whole number, got {getattr(self, name)!r}.")
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise ValueError(f"`{name}` must be at least {least}, got {getattr(self, name)}.")
        if self.rank == 0 and self.quantization != "none":
            raise ValueError(f"`rank` 0 trains the model itself, which {self.quantization} weights do not allow.")
        if self.rank == 0 and (self.critic == "adapter" or self.reward_adapters or self.reference_adapter):
            raise ValueError("`rank` 0 trains without adapters, so critic, reward and reference cannot be any.")
        if self.rank > 0 and self.critic == "copy":
            raise ValueError(
                "`critic` 'copy' copies a whole model; with adapters use 'adapter' or 'head', or `rank` 0."
            )


@dataclass(frozen=True)
class Footprint:
    """Memory of a run in bytes, as `torch.cuda.max_memory_allocated` counts them.

    Attributes:
        resident: What every phase holds: weights by role, optimizer state.
        phases: What each phase adds at its peak, by part.
        generation_batch, reward_batch: Sequences sampled, and texts scored, at a time.
    """

    resident: Parts
    phases: dict[str, Parts]
    generation_batch: int
    reward_batch: int

    def phase_peak(self, phase: str) -> int:
        """Bytes at the peak of one phase."""
        return sum(self.resident.values()) + sum(self.phases[phase].values())

    @property
    def peak(self) -> int:
        """Bytes at the peak of the run."""
        return max(map(self.phase_peak, self.phases))

    def fits(self, card: float) -> bool:
        """Whether a card of so many GiB takes it, CUDA's context and gaps between blocks included."""
        return self.peak + CUDA_CONTEXT <= card * GIB * USABLE_FRACTION


def plan(config: PretrainedConfig, setup: Setup) -> Footprint:
    """The memory of a PPO run.

    Args:
        config: Configuration of the policy.
        setup: Everything else.

    Raises:
        ValueError: when the model is no causal LM, or one whose layers need values to run and not only sizes.
    """
    return next(iter(_plans(config, setup, [setup.micro_batch])))


def largest_micro_batch(config: PretrainedConfig, setup: Setup, cards: Iterable[float]) -> dict[float, int | None]:
    """For every card (GiB), the largest power of two up to the rollout that fits as micro-batch; None: not even 1."""
    largest: dict[float, int | None] = dict.fromkeys(cards)
    sizes = [2**i for i in range(setup.rollout.bit_length())]
    for size, footprint in zip(sizes, _plans(config, setup, sizes), strict=False):
        fitting = [card for card in largest if footprint.fits(card)]
        largest.update(dict.fromkeys(fitting, size))
        if not fitting:
            break
    return largest


def largest_model(setup: Setup, cards: Iterable[float]) -> dict[float, str | None]:
    """For every card (GiB), the largest of `SHAPES` that fits; None: not even the smallest."""
    largest: dict[float, str | None] = dict.fromkeys(cards)
    for name in SHAPES:
        footprint = plan(load_config(name), setup)
        largest.update({card: name for card in largest if footprint.fits(card)})
    return largest


def _plans(config: PretrainedConfig, setup: Setup, micro_batches: list[int]) -> Iterable[Footprint]:
    """A plan for every micro-batch, made when it is asked for."""
    dtype = getattr(torch, setup.dtype)
    model = meta_model(config, dtype)
    resident, trained = _resident(model, setup)
    names = ("quantization", "critic", "prompt", "completion", "rank", "logits_chunk_size", "gradient_checkpointing")
    options = {name: getattr(setup, name) for name in names}
    dry_run = DryRun(config, critic_rank=setup.critic_rank or setup.rank, dtype=dtype, **options)
    gradients = {"gradients": sum(n * itemsize for n, itemsize in trained)}
    # Autocast keeps what it has taken down to `dtype` of every trained matrix while it is on, and the
    # backward pass keeps it on.
    held = sum(n for n, _ in trained[1:]) * dtype.itemsize if dtype.itemsize < 4 else 0
    copies = {"autocast copies": held}
    step = {"optimizer step": sum(step_bytes(n, itemsize, setup.optimizer) for n, itemsize in trained)}
    for micro_batch in micro_batches:
        try:
            learn = gradients | copies | _largest([*dry_run.learn(micro_batch).values(), step])
            evaluate = _largest(dry_run.evaluate(micro_batch).values())
            free = max(sum(learn.values()), sum(evaluate.values()) + held) - held
            most = min(setup.rollout, 64)
            if setup.reward_adapters and setup.reward_batch is None:
                most = _affordable(lambda batch: _forward(dry_run, batch), None, most, free)[0]
            generation_batch, generate = _affordable(dry_run.generate, setup.generation_batch, most, free)
            reward_batch = setup.reward_batch or generation_batch
            score = {"score": _forward(dry_run, reward_batch)["forward"]} if setup.reward_adapters else {}
            phases = {"generate": copies | generate, **score, "evaluate": copies | evaluate, "learn": learn}
        except RuntimeError as error:
            reason = str(error).splitlines()[0][:120]
            raise ValueError(f"A model of type {config.model_type!r} cannot be planned ({reason}).") from error
        yield Footprint(resident, phases, generation_batch, reward_batch)


def _forward(dry_run: DryRun, batch: int) -> dict[str, Parts]:
    """What a reward adapter takes to score a batch."""
    return {"forward": dry_run.evaluate(batch)["forward"]}


def _largest(moments: Iterable[Parts]) -> Parts:
    return max(moments, key=lambda parts: sum(parts.values()))


def _affordable(phase: Any, batch: int | None, most: int, free: int) -> tuple[int, Parts]:
    """A phase with the batch asked for, or with the largest one up to `most` that takes no more than `free` bytes."""
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
    """What is always there, by role; and number and bytes of the parameters that are trained.

    Whatever is trained is float32, with its gradients and moments; autocast computes in `setup.dtype`.
    """
    head, width = states_width(model) + 1, torch.float32.itemsize
    trained = [(head, width)]
    parts: Parts = {"base": base_bytes(model, setup.quantization), "value head": head * width}
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
            trained.append((lora_parameters(model, setup.critic_rank or setup.rank), width))
            parts["critic adapter"] = trained[-1][0] * width
        if setup.reference_adapter:
            parts["reference adapter"] = actor * width
        if setup.reward_adapters:
            parts["reward adapters"] = setup.reward_adapters * (actor + head) * width
    parts["optimizer"] = sum(optimizer_bytes(n, itemsize, setup.optimizer) for n, itemsize in trained)
    return parts, trained


def advise(config: PretrainedConfig, setup: Setup, peak: int) -> list[tuple[str, int]]:
    """What to change, and the bytes that each change saves at the peak, the most first."""
    changes: list[dict[str, Any]] = [{"quantization": q} for q in ("nf4", "int8")] if setup.rank else []
    changes += [{"rank": 16, "critic": "adapter" if setup.critic == "copy" else "head"}] if setup.rank == 0 else []
    changes += [{"critic": "head"}, {"gradient_checkpointing": True}, {"optimizer": "paged_adamw_8bit"}]
    changes += [{name: max(1, getattr(setup, name) // 2)} for name in ("micro_batch", "completion", "prompt")]
    changes += [{"logits_chunk_size": size} for size in (128,) if size < setup.logits_chunk_size]
    changes += [{"rank": 8}] if setup.rank > 8 else []
    changes += [{name: None} for name in ("generation_batch", "reward_batch") if getattr(setup, name)]
    saved = {}
    for change in changes:
        changed = dataclasses.replace(setup, **change)
        text = ", ".join(f"{k}={v!r} instead of {getattr(setup, k)!r}" for k, v in change.items())
        if changed != setup:
            saved[text] = peak - plan(config, changed).peak
    return sorted(((text, n) for text, n in saved.items() if n >= GIB // 1000), key=lambda pair: -pair[1])


# ---- the command line ----


def load_config(name: str) -> PretrainedConfig:
    """A configuration by name in `SHAPES`, file, folder or hub name; raises ValueError where there is none."""
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


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def setup_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """A parser with an option for every field of [`Setup`]; wrong input ends in one line and status 2."""
    parser = _Parser(prog=prog, description=description)
    for field in dataclasses.fields(Setup):
        help = field.metadata["help"]
        if field.name == "gradient_checkpointing":
            parser.add_argument("--no_gradient_checkpointing", action="store_false", dest=field.name, help=help)
        elif field.default is False:
            parser.add_argument(f"--{field.name}", action="store_true", help=help)
        else:
            kind = str if field.name in CHOICES else int
            choices = f"{', '.join(CHOICES[field.name])}; " if field.name in CHOICES else ""
            default = "" if field.default is None else f" ({field.default})"
            parser.add_argument(f"--{field.name}", type=kind, default=field.default, help=f"{choices}{help}{default}")
    return parser


def setup_from(arguments: argparse.Namespace) -> Setup:
    """A [`Setup`] from the options that `setup_parser` adds; raises ValueError for a value that will not do."""
    return Setup(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(Setup)})


def footprint_table(title: str, footprint: Footprint) -> Table:
    """Memory by role and part (rows) and phase (columns), in GiB."""
    table = Table(title=title, caption="GiB, as torch.cuda.max_memory_allocated counts")
    for column in ("", *footprint.phases):
        table.add_column(column, justify="right" if column else "left")
    parts = list(dict.fromkeys(part for added in footprint.phases.values() for part in added))
    rows = {role: [size] * len(footprint.phases) for role, size in footprint.resident.items()}
    rows |= {part: [added.get(part, 0) for added in footprint.phases.values()] for part in parts}
    rows["peak"] = [footprint.phase_peak(phase) for phase in footprint.phases]
    for name, sizes in rows.items():
        table.add_row(name, *(f"{size / GIB:.2f}" if size else "" for size in sizes), style="bold" * (name == "peak"))
    return table


def _by_card(what: str, values: dict[float, Any]) -> str:
    rule = f"within {USABLE_FRACTION:.0%} of a card less {CUDA_CONTEXT / GIB} GB for CUDA's context"
    return f"{what} ({rule}): " + ", ".join(f"{card:g} GB: {value or 'none'}" for card, value in values.items())


def _print_model(arguments: argparse.Namespace, setup: Setup, cards: tuple[float, ...]) -> None:
    """The plan for one model, as tables or as JSON."""
    config = load_config(arguments.model)
    footprint = plan(config, setup)
    too_small = [card for card in cards if not footprint.fits(card)]
    micro_batches = largest_micro_batch(config, setup, cards)
    advice = advise(config, setup, footprint.peak) if too_small else []
    if arguments.json:
        results = dataclasses.asdict(footprint) | {
            "phase_peaks": {p: footprint.phase_peak(p) for p in footprint.phases}
        }
        results |= {"peak": footprint.peak, "cuda_context": CUDA_CONTEXT, "usable_fraction": USABLE_FRACTION}
        results |= {"largest_micro_batch": micro_batches, "too_small": too_small, "advice": dict(advice)}
        print(json.dumps(results, indent=2))
        return
    Console().print(footprint_table(f"{arguments.model}, micro-batch {setup.micro_batch}", footprint))
    scored = f", scored by reward adapters {footprint.reward_batch} at a time" if setup.reward_adapters else ""
    print(f"Sampled {footprint.generation_batch} at a time (local_rollout_forward_batch_size){scored}.")
    print(_by_card("Largest micro-batch", micro_batches))
    if too_small:
        names = ", ".join(f"{card:g}" for card in too_small)
        print(f"This does not fit into {names} GB. What to change, by what each saves at the peak:")
        for text, saved in advice:
            print(f"  {text} saves {saved / GIB:.2f} GiB")


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = setup_parser("python -m trl_ext.planner.plan", DESCRIPTION)
    parser.add_argument("--model", help=f"config.json, folder, hub name, or one of {', '.join(SHAPES)}")
    parser.add_argument("--card", type=float, help="memory of one card in GB (8, 12, 16 and 24)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    cards = CARDS if arguments.card is None else (arguments.card,)
    try:
        if arguments.card is not None and not arguments.card > 0:
            raise ValueError(f"`card` must be more than 0, got {arguments.card}.")
        setup = setup_from(arguments)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # one of transformers, at a call of peft's
            if arguments.model:
                _print_model(arguments, setup, cards)
            else:
                models = largest_model(setup, cards)
                print(json.dumps({"largest_model": models}) if arguments.json else _by_card("Largest model", models))
    except ValueError as error:
        print(f"error: {one_line(error, 4000)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
