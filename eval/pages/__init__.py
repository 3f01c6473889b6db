# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Parts of the documentation that are made from the code: pictures, and tables between two markers of a page."""
