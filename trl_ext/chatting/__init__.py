# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""A chat with a model in the terminal: answers beside those of a baseline, with the rewards of each."""
