# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""What a command tells its user beside its result: lines on the standard error output."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from .printable import one_line

__all__ = ["quiet_imports", "tell", "telling_warnings"]


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


def quiet_imports() -> None:
    """Keep bitsandbytes, which PEFT imports, from telling that an optional kernel for CPUs is not installed."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
