# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The policy of a trainer, for measurements."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from trl_ext.checks.deepspeed import zero_stage
from trl_ext.checks.training_arguments import asks_for_fsdp, mapping
from trl_ext.config import PPOConfig
from trl_ext.evaluation.sampling import Policy
from trl_ext.evaluation.scored import Scored, score_again, score_policy
from trl_ext.monitoring.progress import PhaseProgress
from trl_ext.processes import together
from trl_ext.rewards.base import keeps_statistics
from trl_ext.sharding import whole
from trl_ext.trainer import PPOTrainer

__all__ = ["of_average", "policy_of", "refuse_fsdp", "scored", "scored_after"]

Measured = TypeVar("Measured")


def refuse_fsdp(args: PPOConfig, command: str) -> None:
    """Refuse FSDP and ZeRO-3 in a command whose main process measures and changes weights alone.

    Raises:
        ValueError: when the settings or the launcher ask for one of them.
    """
    if zero_stage(args) == 3:
        raise ValueError(f"`{command}` does not work with ZeRO-3; use `trl_ext ppo`, or set `zero_stage` 2.")
    if asks_for_fsdp(args):
        raise ValueError(f"`{command}` does not work with FSDP; use `trl_ext ppo`, or leave FSDP out.")


def policy_of(trainer: PPOTrainer) -> Policy:
    """Return the policy of `trainer` as it is now, sampled from as in training."""
    args = trainer.args
    return Policy(
        trainer.accelerator.unwrap_model(trainer.model),
        trainer.processing_class,
        trainer.generation_engine,
        temperature=args.temperature,
        batch_size=args.scoring_batch_size,
        chunk_size=args.logits_chunk_size,
        chat_template_kwargs=mapping(args.chat_template_kwargs),
    )


def of_average(trainer: PPOTrainer, measure: Callable[[str], Measured]) -> Measured | None:
    """Return what `measure("ema")` returns while the policy's weights are their average (`policy_ema_decay`).

    Before an interpolation: afterwards a LoRA policy has other parameters than those that were averaged.

    Args:
        trainer: The trainer, after training; its policy has its own weights again afterwards.
        measure: Measures the policy as it is; its argument names the measurement.

    Returns:
        Its result; None where the run has no average.
    """
    if not trainer.policy_average.is_on:
        return None
    with trainer.policy_average.in_place():
        return measure("ema")


def scored(trainer: PPOTrainer, progress: PhaseProgress, time: str) -> Scored | None:
    """Sample from the policy as it is now on the evaluation prompts, and score the completions; every process calls it.

    Args:
        trainer: The trainer, with an evaluation dataset.
        progress: Shows the phase `evaluate_<time>`.
        time: "before" or "after" training, or "ema" for the average of the policy.

    Returns:
        Completions, rewards and judges' scores in the main process; None in the others.
    """
    result, args = None, trainer.args
    with whole(trainer.model), together(f"The evaluation '{time}'"):
        if trainer.is_world_process_zero():
            with progress.phase(f"evaluate_{time}", len(trainer.eval_dataset)) as advance:
                result = score_policy(
                    policy_of(trainer),
                    trainer.rewards,
                    trainer.eval_dataset[:],
                    trainer.judging.judges,
                    on_progress=advance,
                    seed=args.seed,
                    missing_eos_penalty=args.missing_eos_penalty,
                    prompt_column=args.prompt_column,
                )
    return result


def scored_after(trainer: PPOTrainer, progress: PhaseProgress, before: Scored | None) -> dict[str, Any]:
    """Return `before`, `after`, and `average` where there is one, as `scored` measures and `report_run` takes them.

    A reward with running statistics has learned its unit in training: the completions before it are scored again.
    """
    average = of_average(trainer, partial(scored, trainer, progress))
    after = scored(trainer, progress, "after")
    if any(map(keeps_statistics, trainer.rewards.reward_funcs)):
        args = trainer.args
        options = {"missing_eos_penalty": args.missing_eos_penalty, "prompt_column": args.prompt_column}
        with whole(trainer.model), together("Scoring the completions before training"):
            if before is not None:
                before = score_again(before, trainer.rewards, trainer.eval_dataset[:], **options)
    return {"before": before, "after": after, "average": average}
