# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""`python -m trl_ext.worlds`: a former name of `trl_ext worlds`."""

if __name__ == "__main__":
    from trl_ext.commands.worlds import main

    main()
