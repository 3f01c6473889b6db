# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Messages of libraries that a user of a command cannot act on."""

import logging

__all__ = ["quiet_imports"]


def quiet_imports() -> None:
    """Keep bitsandbytes, which PEFT imports, from telling that an optional kernel for CPUs is not installed."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
