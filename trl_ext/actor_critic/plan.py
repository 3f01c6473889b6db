# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""`python -m trl_ext.actor_critic.plan`: the former name of `python -m trl_ext.planner.plan`."""

if __name__ == "__main__":
    from trl_ext.planner.plan import main

    raise SystemExit(main())
