# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""`evaluate.load("eval/quality/perplexity")` loads `trl_ext.evaluation.perplexity.ConditionalPerplexity`."""

from trl_ext.evaluation.perplexity import ConditionalPerplexity as ConditionalPerplexity
