# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""A rollout, from prompts to advantages: prompts, engines, the collector, advantages, supervised texts."""
