# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The model at one place of a path, as a folder of its own."""

import shutil
from pathlib import Path

import torch

from trl_ext.actor_critic import ActorCritic
from trl_ext.actor_critic.interpolation import WeightPath
from trl_ext.actor_critic.names import record_base
from trl_ext.folders import whole_folder
from trl_ext.model_card import add_interpolated_card
from trl_ext.running.finished import CONFIG
from trl_ext.running.trained import Trained, load_trained

__all__ = ["check_output", "write_model"]


def check_output(output: Path) -> None:
    """Refuse a file, and a folder with content.

    Raises:
        ValueError: in one sentence.
    """
    if output.exists() and not output.is_dir():
        raise ValueError(f"`--output {output}` is a file; give a folder for the model.")
    if output.is_dir() and any(output.iterdir()):
        raise ValueError(f"`--output {output}` is a folder that is not empty; choose another.")


def write_model(found: Trained, eta: float, output: Path) -> None:
    """Write the model at `eta`, in the dtype of the trained one, with its tokenizer and its settings for sampling.

    The folder appears when it is complete.

    Raises:
        ValueError, FileNotFoundError: when weights cannot be read, or do not fit.
    """
    model = load_trained(found)
    WeightPath(model).move_to(eta)
    _round(model, found)
    with whole_folder(output) as unfinished:
        model.save_policy(unfinished)
        found.tokenizer.save_pretrained(unfinished)
        record_base(unfinished, found.source.base if found.source.adapter else found.start)
        settings = Path(found.name) / CONFIG
        if settings.is_file():
            shutil.copyfile(settings, unfinished / CONFIG)
        add_interpolated_card(found.name, unfinished, eta)


def _round(model: ActorCritic, found: Trained) -> None:
    """Give the weights of a whole model the dtype that the trained one is stored in."""
    dtype = found.source.config.dtype
    if found.source.adapter is None and isinstance(dtype, torch.dtype):
        model.causal_lm.to(dtype)
