# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The policy of a trainer, for measurements."""

from trl_ext.assembly import mapping
from trl_ext.evaluation.sampling import Policy
from trl_ext.trainer import PPOTrainer

__all__ = ["policy_of"]


def policy_of(trainer: PPOTrainer) -> Policy:
    """Return the policy of `trainer` as it is now, sampled from as in training."""
    args = trainer.args
    return Policy(
        trainer.accelerator.unwrap_model(trainer.model),
        trainer.processing_class,
        trainer.generation_engine,
        temperature=args.temperature,
        batch_size=args.local_rollout_forward_batch_size,
        chunk_size=args.logits_chunk_size,
        chat_template_kwargs=mapping(args.chat_template_kwargs),
    )
