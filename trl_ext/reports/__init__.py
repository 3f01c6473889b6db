# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Pages and plots of a run.

Names are imported when they are first used: drawing a report again needs no trainer.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .content import Report
    from .report import write_report
    from .runs import report_of, report_run
    from .saved import load_run
    from .summary import print_before_after

_HOMES = {
    "Report": "content",
    "load_run": "saved",
    "print_before_after": "summary",
    "report_of": "runs",
    "report_run": "runs",
    "write_report": "report",
}
__all__ = ["Report", "load_run", "print_before_after", "report_of", "report_run", "write_report"]

if not TYPE_CHECKING:  # a type checker then reports a name that is misspelt

    def __getattr__(name: str) -> Any:
        if name in _HOMES:
            return getattr(import_module(f".{_HOMES[name]}", __name__), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
