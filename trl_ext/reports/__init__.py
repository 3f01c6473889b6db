# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Pages and plots of a finished run."""

from .content import Report
from .report import write_report
from .runs import report_of, report_run

__all__ = ["Report", "report_of", "report_run", "write_report"]
