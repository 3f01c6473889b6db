# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The server of `vllm serve` on a CPU, with weights that can be changed: its engine runs in a fork of this process."""

import runpy

from trl_ext._compat import keep_vllm_weights_plain

if __name__ == "__main__":
    keep_vllm_weights_plain()
    # The command `vllm` itself does not start where vLLM's package has another name, as its build for CPUs has.
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)
