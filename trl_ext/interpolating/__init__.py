# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The command that interpolates a trained policy with its reference: a model, or a frontier from one run."""
