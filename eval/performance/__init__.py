# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Memory and time of a PPO run, measured on random weights, beside the planner's figures."""
