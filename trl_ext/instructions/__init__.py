# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The parts of the instruction-following recipe: options, data, stages, comparison."""
