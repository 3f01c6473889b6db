# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""What a command tells its user beside its result: lines on the standard error output."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .printable import one_line

__all__ = ["plain_warnings", "quiet_libraries", "tell", "telling_warnings"]


def tell(message: object) -> None:
    """Write one line."""
    print(one_line(message, 1000), file=sys.stderr, flush=True)


@contextmanager
def telling_warnings() -> Iterator[None]:
    """Tell each warning for users once, in one line and without a place in the code, at the end of the block."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        try:
            yield
        finally:
            for message in dict.fromkeys(str(w.message) for w in caught if w.category is UserWarning):
                tell(f"warning: {message}")


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Write each warning of the block once, as one line without a place in the code, and no warning for programmers."""
    seen: set[str] = set()

    def plain(message: Warning | str, *place: Any, **more: Any) -> str:
        text = one_line(message, 1000)
        if text in seen:
            return ""
        seen.add(text)
        return f"warning: {text}\n"

    with warnings.catch_warnings():
        # PEFT reads the property in every run with LoRA.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        before, warnings.formatwarning = warnings.formatwarning, plain
        try:
            yield
        finally:
            warnings.formatwarning = before


def quiet_libraries() -> None:
    """Keep libraries from logging what asks nothing of a user, or what an error of this package says better."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # an optional kernel for CPUs is not installed
    logging.getLogger("datasets.packaged_modules").setLevel(logging.CRITICAL)  # the error names file, row and fault
    logging.getLogger("transformers.tokenization_utils_base").addFilter(_is_no_length)


def _is_no_length(record: logging.LogRecord) -> bool:
    """Return False for a text longer than the tokenizer's maximum: it is cut, left out or refused afterwards."""
    return not str(record.msg).startswith("Token indices sequence length is longer")
