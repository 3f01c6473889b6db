# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Pages and plots of a finished run."""

from .report import write_report
from .runs import report_run

__all__ = ["report_run", "write_report"]
