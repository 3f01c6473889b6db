# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""`python -m recipes.offline`: the former name of `python -m trl_ext.worlds`."""

from trl_ext.worlds.__main__ import main

if __name__ == "__main__":
    main()
