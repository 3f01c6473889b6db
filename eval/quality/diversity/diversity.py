# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""`evaluate.load("eval/quality/diversity")` loads `trl_ext.evaluation.diversity.Diversity`."""

from trl_ext.evaluation.diversity import Diversity as Diversity
