# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Prompts and completions: rows of a dataset, texts and token ids."""
