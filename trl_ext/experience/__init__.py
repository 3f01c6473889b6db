# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""How a rollout comes about: prompts, engines, the collector, advantages, supervised texts."""
