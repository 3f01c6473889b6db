# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Parts of scripts around a trainer: options, names, data, folders, interrupts."""
