# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""A vLLM server that is given the weights of every step, and one that dies."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from peft import get_peft_model

from tests import scripted
from tests.tiny_models import tiny_tokenizer

from . import made
from .sampling import PROMPTS, check, engine, gap, move

pytestmark = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed: run `make test-vllm`")

ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_WORKER_MULTIPROCESSING_METHOD": "fork",
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
}


@pytest.fixture(params=["full", "lora"])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, str, subprocess.Popen]]:
    """The kind of the policy, the address of a server for it, and its process."""
    made.model().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--enable-lora", "--max-lora-rank", "8"] if request.param == "lora" else []
    command = [
        sys.executable,
        "-m",
        "tests.vllm.serve",
        "--model",
        str(tmp_path),
        "--port",
        str(port),
        "--dtype",
        "float32",
    ]
    command += ["--logprobs-mode", "processed_logprobs", "--generation-config", "vllm", "--enforce-eager", *options]
    log = (tmp_path / "log").open("w")
    process = subprocess.Popen(
        command, env=os.environ | ENVIRONMENT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 240
    try:
        while True:
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()[-3000:]
                time.sleep(1)
        yield request.param, url, process
    finally:
        _kill(process)
        log.close()


def _kill(process: subprocess.Popen) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.timeout(600)
def test_a_server_has_the_weights_of_the_step_until_it_dies(
    served: tuple[str, str, subprocess.Popen], tmp_path: Path
) -> None:
    kind, url, process = served
    model: Any = made.model()
    if kind == "lora":
        model = get_peft_model(model, made.lora()).get_base_model()
    sampler = engine(model, mode="server", server_base_url=url)
    check(sampler, model)
    for _ in range(2):
        move([p for name, p in model.named_parameters() if kind == "full" or "lora_" in name], 0.1)
        assert gap(model, sampler(model, PROMPTS)) > 0.05, "before the server is told"
        sampler.weights_changed()
        check(sampler, model)
    _train_ahead(kind, url, folder=tmp_path / "run")
    _kill(process)
    with pytest.raises(
        ConnectionError, match=rf"^The vLLM server does not answer at {url}/v1/completions \(.*\); start it"
    ):
        sampler(model, PROMPTS)


def _train_ahead(kind: str, url: str, *, folder: Path) -> None:
    """Four rollouts, each sampled while the one before is learned from, with an evaluation in between."""
    made_so = {"peft_config": made.lora()} if kind == "lora" else {}
    run = made.trainer(
        folder,
        async_rollouts=True,
        vllm_mode="server",
        vllm_server_base_url=url,
        num_ppo_epochs=2,
        max_engine_gap=1.0,  # the learning rate is high
        eval_strategy="steps",
        eval_steps=3,
        eval_dataset=scripted.prompts(4),
        **made_so,
    )
    run.train()
    lines = scripted.logs(run)
    assert [line["engine/staleness"] for line in lines] == [0, 0, *[2] * 6]
    assert lines[0]["engine/logp_gap"] < 1e-5 < lines[-1]["engine/logp_gap"]
    evaluated = [line["eval_engine/logp_gap"] for line in run.state.log_history if "eval_engine/logp_gap" in line]
    assert len(evaluated) >= 2 and max(evaluated) < 1e-5, "from the weights of that moment"
    assert (folder / "checkpoint-2" / "next_rollout_0.json").is_file()
