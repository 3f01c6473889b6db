# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""`python -m trl_ext.actor_critic.plan`: a former name of `trl_ext plan`."""

if __name__ == "__main__":
    from trl_ext.commands.plan import main

    main()
