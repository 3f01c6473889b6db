# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Measures of a policy: samples, likelihoods, toxicity, diversity, win rates, the optimal frontier."""
