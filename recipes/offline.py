# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""`python -m recipes.offline`: a former name of `trl_ext worlds`."""

from trl_ext.commands.worlds import main

if __name__ == "__main__":
    main()
