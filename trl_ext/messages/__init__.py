# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Parts of messages: printable values, hidden secrets, and advice on unknown names."""
