# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""How much memory and time a PPO run takes: measured on random weights, next to what the planner says."""
