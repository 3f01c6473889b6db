# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The measurements for a GPU, run end to end in tiny sizes on the CPU."""

import json
import platform
from pathlib import Path

import pytest

from eval.performance import on_gpu
from eval.performance.gpu_table import summary, summary_tables
from trl_ext.planner.plan import GIB, load_config
from trl_ext.planner.setup import Setup

pytestmark = pytest.mark.skipif(platform.system() != "Linux", reason="reads /proc")


def here(job, arguments, path: Path) -> None:
    on_gpu.do(job, arguments, path)


def test_every_kind_of_job_runs_and_none_that_is_done_runs_again(tmp_path, capsys):
    arguments = on_gpu.parser().parse_args(["--tiny", "--device", "cpu", "--output", str(tmp_path)])
    jobs = on_gpu.tiny_jobs()
    assert {job.part for job in jobs} == set(on_gpu.PARTS)
    assert on_gpu.run_all(jobs, arguments, here) == {}
    assert {path.stem for path in tmp_path.iterdir()} == {job.name for job in jobs}
    made = summary(tmp_path)
    assert [len(made[part]) for part in ("memory", "phases", "engines")] == [1, 1, 3]
    (phases,) = made["phases"]
    assert set(phases["tokens_per_second"]) == {"generate", "evaluate", "learn"}
    assert 0 < phases["share_of_peak"] <= phases["share_with_recomputation"] < 1
    for engine in made["engines"]:
        assert engine["tokens_per_second"] > 0 and 0.9 < engine["metrics"]["importance_weight"] < 1.1
    assert len(summary_tables(made)) == 3

    def never(*_) -> str:
        raise AssertionError

    assert on_gpu.run_all(jobs, arguments, never) == {}
    (tmp_path / "peak.json").unlink()
    assert on_gpu.run_all(jobs, arguments, lambda *_: "out of memory") == {"peak": "out of memory"}
    assert "share_of_peak" not in summary(tmp_path)["phases"][0]


def test_the_jobs_are_those_that_the_issue_of_a_gpu_asks_for():
    jobs = on_gpu.jobs()
    assert len({job.name for job in jobs}) == len(jobs)
    shapes = {part: {job.shape for job in jobs if job.part == part} for part in on_gpu.PARTS}
    assert {"llama-3-8b", "qwen2.5-14b"} <= shapes["memory"]
    assert shapes["phases"] == {"qwen2.5-0.5b", "llama-3.2-3b", "llama-3-8b"}
    engines = {"generate", "static-cache", "continuous-batching", "vllm"}
    assert {job.engine for job in jobs if job.part == "engines"} == engines


def test_operations_of_learning_by_hand():
    config = load_config("llama-3-8b")
    config.num_hidden_layers, config.hidden_size, config.intermediate_size, config.vocab_size = 1, 64, 128, 10
    config.num_attention_heads = config.num_key_value_heads = 2
    config.head_dim = 32
    layers, head, tokens = 4 * 64 * 64 + 3 * 64 * 128, 10 * 64, 3 + 5
    lora = Setup(prompt=3, completion=5, rollout=2, critic="adapter", rank=4)
    needed = 2 * ((4 + 4) * layers * tokens + 4 * head * 5)
    assert on_gpu.learning_operations(config, lora) == (needed, needed + 2 * 2 * 2 * layers * tokens)
    full = Setup(prompt=3, completion=5, rollout=2, rank=0, quantization="none", gradient_checkpointing=False)
    needed = 2 * 6 * (layers * tokens + head * 5)
    assert on_gpu.learning_operations(config, full) == (needed, needed)


def test_limits_and_the_plan_are_judged(tmp_path):
    setup = {"quantization": "nf4", "rank": 16, "critic": "adapter", "prompt": 512, "completion": 512, "micro_batch": 2}
    phases = {"generate": {"allocated": 9 * GIB, "process": 10 * GIB, "planned": 8 * GIB}}
    phases["learn"] = {"allocated": 11 * GIB, "process": 14 * GIB, "planned": 9 * GIB}
    result = {"part": "memory", "shape": "llama-3-8b", "device": {"name": "card"}, "arguments": setup, "phases": phases}
    (tmp_path / "memory_a.json").write_text(json.dumps(result))
    (row,) = summary(tmp_path)["memory"]
    assert (
        row["within_limit"] and not row["planner_is_right"] and row["difference_percent"] == pytest.approx(-18.18, 1e-3)
    )
    phases["learn"] |= {"allocated": 12.5 * GIB, "planned": 12 * GIB}
    (tmp_path / "memory_a.json").write_text(json.dumps(result))
    (row,) = summary(tmp_path)["memory"]
    assert not row["within_limit"] and row["planner_is_right"]


def test_without_a_gpu_one_sentence(capsys):
    if on_gpu.torch.cuda.is_available():
        pytest.skip("a GPU is there")
    assert on_gpu.main([]) == 2 and "--tiny --device cpu" in capsys.readouterr().err
    assert on_gpu.main(["--device", "cpu"]) == 2 and "needs --tiny" in capsys.readouterr().err


def test_a_job_in_a_process_of_its_own_leaves_its_file(tmp_path):
    options = ["--tiny", "--device", "cpu", "--parts", "peak", "--output", str(tmp_path)]
    assert on_gpu.main(options) == 0
    assert json.loads((tmp_path / "peak.json").read_text())["operations_per_second"] > 1e6
    assert json.loads((tmp_path / "summary.json").read_text())["failed"] == {}
