# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""`evaluate.load("eval/quality/toxicity")` loads `trl_ext.evaluation.toxicity.Toxicity`."""

from trl_ext.evaluation.toxicity import Toxicity as Toxicity
