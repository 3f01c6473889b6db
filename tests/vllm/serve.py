# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""`vllm serve` on a CPU whose weights can be changed; arguments as there. The process of the engine is a fork."""

import sys

from vllm.entrypoints.cli.main import main

from trl_ext._compat import keep_vllm_weights_plain

if __name__ == "__main__":
    keep_vllm_weights_plain()
    sys.argv[0] = "vllm"
    main()
