# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Types, limits and combinations of settings, checked before any model is loaded."""
