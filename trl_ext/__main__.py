# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""`python -m trl_ext`: the command line."""

from trl_ext.commands import main

if __name__ == "__main__":
    main()
