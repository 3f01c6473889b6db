# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The documentation against the code: blocks that run, links that lead somewhere, pages that say what is."""
