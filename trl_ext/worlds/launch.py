# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The embedded models in a launch of several processes."""

import os
import subprocess
import sys
from pathlib import Path

from transformers import TrainingArguments

from . import OfflineAssets, prepare

# The trainers of the embedded models would see this launch, and wait for processes that do not train them.
_LAUNCH = ("RANK", "WORLD_SIZE", "MASTER_", "LOCAL_", "ACCELERATE_", "TORCHELASTIC_")


def prepare_once(args: TrainingArguments, cache_dir: str | None) -> OfflineAssets:
    """Make the embedded models and prompts in the main process; the other processes wait and find them.

    Args:
        args: Settings of the run, which know the processes of the launch.
        cache_dir: As in `prepare`.
    """
    with args.main_process_first(local=False, desc="embedded models"):
        if args.world_size > 1 and args.process_index == 0:
            environment = {name: value for name, value in os.environ.items() if not name.startswith(_LAUNCH)}
            environment["PYTHONPATH"] = os.pathsep.join(sys.path)
            command = [sys.executable, "-m", str(__package__)]
            if cache_dir is not None:
                command += ["--cache_dir", str(Path(cache_dir).expanduser().resolve())]
            subprocess.run(command, env=environment, check=True)
        return prepare(cache_dir)
