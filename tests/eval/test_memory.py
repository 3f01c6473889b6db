# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Measuring memory: random models, the readings themselves, a whole run on a tiny shape, and the table of what fits."""

import argparse
import json
import platform
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from transformers import AutoModelForCausalLM

from eval.performance import memory, table
from eval.performance.peaks import ProcessMemory
from eval.performance.progress import PhasePeaks
from eval.performance.random_models import prompts, quantization_config, random_model, word_tokenizer
from tests.tiny_models import tiny_causal_lm
from trl_ext.actor_critic.reward_adapter import AdapterRewardModel
from trl_ext.planner.plan import Setup, load_config
from trl_ext.planner.weights import base_bytes, meta_model

on_linux = pytest.mark.skipif(platform.system() != "Linux", reason="reads /proc")
TINY = ["--shape", "llama-3-8b", "--layers", "2", "--hidden", "128", "--intermediate", "256", "--vocab_size", "128"]
TINY += ["--prompt", "5", "--completion", "7", "--rollout", "4", "--micro_batch", "2", "--rank", "4", "--device", "cpu"]


def config(arch: str = "llama", layers: int = 2):
    return tiny_causal_lm(arch, hidden_size=64, layers=layers).config


def layout(model) -> dict:
    return {name: (type(p).__name__, p.dtype, p.shape) for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    ("arch", "quantization"), [("llama", "nf4"), ("gpt2", "nf4"), ("phi", "int8"), ("llama", "none")]
)
def test_a_random_model_is_made_as_from_pretrained_makes_one(tmp_path, arch, quantization):
    tiny_causal_lm(arch, hidden_size=64).save_pretrained(tmp_path)
    settings = quantization_config(quantization, torch.float32)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=settings, dtype=torch.float32)
    made = random_model(config(arch), quantization=quantization, dtype=torch.float32)
    assert layout(made) == layout(loaded)
    kinds = [[type(m) for m in model.modules()] for model in (made, loaded)]
    assert kinds[0] == kinds[1]
    assert any(kind in (Linear4bit, Linear8bitLt) for kind in kinds[0]) == (quantization != "none")
    for mark in ("is_quantized", "is_loaded_in_4bit", "is_loaded_in_8bit", "quantization_method"):
        assert getattr(made, mark, False) == getattr(loaded, mark, False)


def test_a_random_model_computes_and_keeps_its_tied_weights():
    tied = config("gpt2")
    assert tied.tie_word_embeddings
    model = random_model(tied, quantization="none", dtype=torch.float32)
    assert model.lm_head.weight is model.transformer.wte.weight
    logits = random_model(config(), quantization="int8", dtype=torch.float32)(torch.tensor([[3, 4, 5]])).logits
    assert torch.isfinite(logits).all() and logits.std() > 0


@pytest.fixture(scope="module")
def fresh_process():
    """Runs a function in a process of its own: in this one, what earlier tests freed is still the heap's."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        yield lambda function: pool.submit(function).result()


def readings_of_building() -> tuple[int, int, int]:
    """Bytes that building a quantized model takes at its peak, and those of the model quantized and in full."""
    shape = tiny_causal_lm(hidden_size=512, layers=1).config
    random_model(shape, quantization="nf4", dtype=torch.float32)  # what is loaded on the way is loaded now
    shape.num_hidden_layers = 12
    quantized, in_full = (base_bytes(meta_model(shape, torch.float32), q) for q in ("nf4", "none"))
    reader = ProcessMemory()
    model = random_model(shape, quantization="nf4", dtype=torch.float32)
    taken = reader.read()["allocated"]
    assert sum(1 for m in model.modules() if isinstance(m, Linear4bit)) == 12 * 7
    return taken, quantized, in_full


@on_linux
def test_building_takes_one_layer_in_full_at_a_time(fresh_process):
    taken, quantized, in_full = fresh_process(readings_of_building)
    assert quantized / 2 < taken < 0.7 * in_full  # one model in full and its quantized copy would take 1.1


def test_prompts_have_the_length_and_completions_keep_theirs_as_text():
    tokenizer = word_tokenizer(50)
    texts = prompts(6, 9, 50)["prompt"]
    assert [len(tokenizer(text).input_ids) for text in texts] == [9] * 6 and len(set(texts)) == 6
    completion = [49, 3, 17]
    assert tokenizer(texts[0] + tokenizer.decode(completion)).input_ids[9:] == completion


class Scripted:
    """Memory that reads what the test says."""

    def __init__(self):
        self.peak = 0

    def reset(self) -> None:
        self.peak = 0

    def read(self) -> dict[str, int]:
        return {"allocated": self.peak}

    def synchronize(self) -> None:
        pass


def test_what_happens_after_a_phase_counts_for_it():
    readings = Scripted()
    peaks = PhasePeaks(readings)
    for generate, learn, step in ((5, 10, 3), (7, 9, 30)):
        with peaks.phase("generate"):
            readings.peak = generate
        with peaks.phase("learn"):
            readings.peak = learn
        readings.peak = max(readings.peak, step)  # the optimizer's step
    peaks.start(None)
    assert peaks.peaks == {"generate": {"allocated": 7}, "learn": {"allocated": 30}}
    assert set(peaks.total_seconds) == {"generate", "learn"}
    readings.peak = 99
    peaks.start(None)
    assert peaks.peaks["learn"] == {"allocated": 30}


def readings_of_64_mib() -> tuple[dict[str, int], dict[str, int]]:
    """The peaks while 64 MiB are held, and those after they were freed."""
    reader = ProcessMemory()
    big = torch.ones(64 * 2**20 // 4)
    del big
    held = reader.read()
    reader.reset()
    return held, reader.read()


@on_linux
def test_peaks_of_the_process_come_and_go(fresh_process):
    held, forgotten = fresh_process(readings_of_64_mib)
    assert 63 <= held["allocated"] / 2**20 < 80
    assert forgotten["allocated"] < 10 * 2**20
    assert held["process"] > held["allocated"]


def run(tmp_path, *options: str) -> dict:
    assert memory.main([*TINY, *options, "--output", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("*.json")
    return json.loads(path.read_text())


@on_linux
def test_a_run_measures_every_phase_of_the_real_trainer(tmp_path, monkeypatch, capsys):
    completions: list[list[int]] = []
    shapes: list[torch.Size] = []
    phases: list[str] = []

    def reward(prompts, completions, completion_ids, rows=completions, **columns):
        rows.extend(completion_ids)
        return [0.0] * len(completion_ids)

    def phase(self, name, *args, original=PhasePeaks.phase, **options):
        phases.append(name)
        return original(self, name, *args, **options)

    def forward(self, input_ids, *args, original=AdapterRewardModel.forward, **options):
        shapes.append(input_ids.shape)
        return original(self, input_ids, *args, **options)

    monkeypatch.setattr(PhasePeaks, "phase", phase)
    monkeypatch.setattr(AdapterRewardModel, "forward", forward)
    monkeypatch.setattr(memory, "constant_reward", reward)
    adapters = ["--critic", "adapter", "--critic_rank", "2", "--reward_adapters", "2", "--reward_batch", "3"]
    results = run(tmp_path, "--quantization", "nf4", *adapters)
    assert [len(ids) for ids in completions] == [7] * 8
    # Two adapters score two rollouts of prompts, completions and an end, three at a time, after a short trial of each.
    assert sorted(shape for shape in shapes if shape[1] > 2) == sorted(4 * [(3, 5 + 7 + 1), (1, 5 + 7 + 1)])
    assert phases.count("learn") == 4  # two micro-batches in each of two rollouts
    assert list(results["phases"]) == ["generate", "score", "evaluate", "learn"]
    for figures in results["phases"].values():
        assert 0 < figures["allocated"] < figures["process"] and figures["planned"] > 0
        assert figures["tokens_per_second"] == pytest.approx(2 * 4 * 7 / figures["seconds"])
        difference = 100 * (figures["planned"] / figures["allocated"] - 1)
        assert figures["difference_percent"] == pytest.approx(difference)
    assert results["device"]["type"] == "cpu" and results["versions"]["torch"] == torch.__version__
    assert results["arguments"]["quantization"] == "nf4" and results["arguments"]["dtype"] == "float32"
    out = capsys.readouterr().out
    assert "tokens/s" in out and ".json" in out
    # Every weight is where the planner says, to the byte.
    weights, planned = results["weights"], results["planner"]["resident"]
    weights["reward adapters"] = weights.pop("reward adapter") + weights.pop("reward")
    assert weights == {role: size for role, size in planned.items() if role != "optimizer"}


@on_linux
def test_four_models_are_four_models(tmp_path):
    results = run(tmp_path, "--quantization", "nf4", "--critic", "adapter", "--arrangement", "four-models")
    shape = memory.scaled(
        load_config("llama-3-8b"), argparse.Namespace(layers=2, hidden=128, intermediate=256, vocab_size=128)
    )
    base, head = base_bytes(meta_model(shape, torch.float32), "nf4"), 128 * 128 * 4
    weights = results["weights"]
    # Critic and reward model have no head over the vocabulary, the reward model one over a single label.
    assert weights["base"] == base and weights["reference"] == base
    assert weights["critic"] == base - head and weights["reward"] == base - head + 128 * 4
    assert weights["critic adapter"] == weights["actor adapter"] > 0
    assert "planner" not in results and "planned" not in results["phases"]["learn"]


@on_linux
def test_comparison_runs_both_arrangements(tmp_path, monkeypatch, capsys):
    class Finished:
        returncode = 0

    commands = []

    def in_this_process(command, check):
        commands.append(command)
        assert memory.main(command[3:]) == 0
        return Finished

    monkeypatch.setattr(memory.subprocess, "run", in_this_process)
    assert memory.main([*TINY, "--quantization", "none", "--compare", "--output", str(tmp_path)]) == 0
    assert ["--compare" in command for command in commands] == [False, False]
    results = {r["arrangement"]: r for r in (json.loads(path.read_text()) for path in tmp_path.glob("*.json"))}
    one, four = (results[name]["phases"]["learn"]["process"] for name in memory.ARRANGEMENTS)
    assert f"ratio {one / four:.3f}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--device", "tpu"], "--device is cuda or cpu"),
        (["--arrangement", "three"], "one-base or four-models"),
        (["--micro_batch", "3"], "does not divide"),
        (["--shape", "no-such"], "'no-such' is no config.json"),
        (["--quantization", "fp4"], "nf4, int8, none"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(tmp_path, capsys, options, said):
    assert memory.main([*TINY, *options, "--output", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert said in captured.err and captured.err.count("\n") == 1


def stored(folder, name: str, device: dict | None, peak: int, **changes) -> None:
    phases = {p: {"planned": peak, "allocated": peak} for p in ("generate", "evaluate", "learn")}
    if device is None:
        phases = {p: {"planned": peak} for p in phases}
    setup = {"quantization": "nf4", "critic": "adapter", "reward_adapters": 1, "prompt": 512, "completion": 256}
    setup |= {"micro_batch": 2, "layers": None, "hidden": None} | changes
    results = {"shape": name, "arrangement": "one-base", "device": device, "arguments": setup, "phases": phases}
    path = folder / f"{name}-{device['name'] if device else 'planned'}-{len(list(folder.iterdir()))}.json"
    path.write_text(json.dumps(results | {"generation_batch": 8}))


GPU, CPU = {"type": "cuda", "name": "NVIDIA X"}, {"type": "cpu", "name": "x86_64"}


def test_the_table_says_what_was_measured_and_what_was_planned(tmp_path):
    stored(tmp_path, "large", None, 10 * 2**30)
    stored(tmp_path, "small", None, 3 * 2**30)
    stored(tmp_path, "small", GPU, 4 * 2**30)
    stored(tmp_path, "on-a-cpu", CPU, 2**30)
    stored(tmp_path, "cut", GPU, 2**30, layers=2)
    lines = table.render(tmp_path).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert [row[:2] + row[-3:] for row in cells] == [
        ["6 GB", "small", "4.0 GiB", "4.0 GiB", "measured, NVIDIA X"],
        ["12 GB", "large", "10.0 GiB", "10.0 GiB", "planned"],
    ]
    assert cells[0][5:8] == ["512 + 256", "2", "8 a time"]


def test_the_table_goes_between_its_markers(tmp_path, capsys):
    stored(tmp_path, "small", GPU, 4 * 2**30)
    begin, end = "<!-- what fits: begin -->", "<!-- what fits: end -->"
    page = tmp_path / "memory.md"
    page.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    for _ in range(2):  # the second time changes nothing
        assert table.main(["--results", str(tmp_path), "--write", str(page)]) == 0
        assert page.read_text() == f"before\n{begin}\n{table.render(tmp_path)}\n{end}\nafter\n"
    page.write_text("no place")
    assert table.main(["--results", str(tmp_path), "--write", str(page)]) == 2
    assert begin in capsys.readouterr().err
    assert table.main(["--results", str(tmp_path / "none")]) == 2


def test_stored_plans_are_what_the_planner_says_now():
    smallest = table.read_results(memory.RESULTS)[:2]
    assert len(smallest) == 2
    for results in smallest:
        arguments = {k: v for k, v in results["arguments"].items() if k not in ("layers", "hidden")}
        footprint = memory.plan(load_config(results["shape"]), Setup(**arguments))
        planned = {phase: figures["planned"] for phase, figures in results["phases"].items()}
        assert planned == {phase: pytest.approx(footprint.phase_peak(phase), rel=0.05) for phase in footprint.phases}


def test_readme_and_documentation_have_the_table_of_the_stored_results():
    root = Path(__file__).parents[2]
    for file, columns, option in (("README.md", table.SHORT, "--short "), ("docs/memory.md", table.COLUMNS, "")):
        text = (root / file).read_text(encoding="utf-8")
        assert table.render(columns=columns) in text, f"run `python -m eval.performance.table {option}--write {file}`"
