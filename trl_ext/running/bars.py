# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Progress bars of libraries, where nobody sees them move."""

from datasets import disable_progress_bars
from transformers.utils import logging

__all__ = ["without_bars"]


def without_bars() -> None:
    """Switch off the bars of transformers and of datasets, which would leave fragments in a file."""
    disable_progress_bars()
    logging.disable_progress_bar()
