# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Tests of the engine of vLLM with vLLM itself on the CPU, in an environment of its own (`make test-vllm`)."""
