# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""What a training run needs in memory."""
