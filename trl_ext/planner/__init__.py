# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Memory of a training run, planned from a model's configuration."""
