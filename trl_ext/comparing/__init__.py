# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Two models compared on the same prompts: quality with intervals, rewards and win rates."""
