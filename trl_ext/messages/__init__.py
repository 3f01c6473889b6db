# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""What a message may show: printable values, no secrets, and the answers to names that are unknown."""
