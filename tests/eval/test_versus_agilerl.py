# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The benchmark against AgileRL's PPO, with a stand-in for AgileRL, which needs an environment of its own."""

import ast
import importlib
import json
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from transformers import GenerationConfig

from eval.performance import turns, versus_agilerl, versus_trl
from eval.performance.random_models import EOS_ID
from eval.performance.stopwatch import Stopwatch

INTERPRETER = """#!{python}
import json, os, sys
from pathlib import Path
if sys.argv[1] == "-c":
    print(json.dumps({{"agilerl": "2.58.0"}}))
    sys.exit()
flag, module, folder, measure, output = sys.argv[1:]
assert (flag, module) == ("-m", "eval.performance.agilerl_run")
assert Path(os.environ["PYTHONPATH"], "eval", "performance", "agilerl_run.py").is_file()
run = json.loads(Path(folder, "run.json").read_text())
for model in ("policy", "reward"):
    assert Path(folder, model, "model.safetensors").stat().st_size
assert {{len(row) for row in run["prompts"]}} == {{run["prompt"]}}
assert len(run["prompts"]) >= run["updates"] * run["batch"] and run["setting"] == "b"
with open({log!r}, "a") as log:
    log.write(json.dumps([measure, run["seed"], run["epochs"], run["sampling_batch"], run["eos_token_id"]]) + "\\n")
seconds = {{"generate": 8.0, "score": 0.25, "evaluate": 0.25, "learn": 1.5}}
timed = {{"updates": [seconds], "tokens": [run["batch"] * run["completion"] - {missing}]}}
Path(output).write_text(json.dumps(timed if measure == "time" else {{"process": 2**31, "allocated": 2**30}}))
"""


@pytest.fixture
def interpreter(tmp_path):
    def make(missing: int = 0) -> str:
        path = tmp_path / "python"
        path.write_text(INTERPRETER.format(python=sys.executable, log=str(tmp_path / "log"), missing=missing))
        path.chmod(0o755)
        return str(path)

    return make


@pytest.fixture
def ours_in_this_process(monkeypatch):
    def run(run, measure):
        return versus_trl.execute(run, measure) if measure == "time" else {"process": 2**30, "allocated": 2**29}

    monkeypatch.setattr(versus_trl, "in_own_process", run)


def test_both_run_by_turns_and_the_ratios_are_ours_over_agilerls(interpreter, ours_in_this_process, tmp_path, capsys):
    options = ["--clock", "cpu", "--rounds", "2", "--sampling_batch", "1", "--output", str(tmp_path / "out")]
    assert versus_agilerl.main(["--agilerl_python", interpreter(), "--quick", *options]) == 0
    [path] = (tmp_path / "out").glob("*.json")
    contents = json.loads(path.read_text())
    assert contents["device"]["agilerl"] == {"agilerl": "2.58.0"}
    assert [cell["run"]["lengths"] for cell in contents["cells"]] == ["fixed", "geometric"]
    for cell in contents["cells"]:
        ours = sum(cell["ours"]["seconds"].values())
        assert cell["speed"] == pytest.approx(10.0 / ours, rel=0.2)  # medians of phases and of their sum
        assert cell["speed_after_sampling"] == pytest.approx(2.0 / (ours - cell["ours"]["seconds"]["generate"]))
        assert cell["memory"] == 0.5 and cell["agilerl"]["samples_per_second"] == pytest.approx(0.4)
    fixed, geometric = contents["cells"]
    assert fixed["ours"]["completion_tokens"] == 32 > geometric["ours"]["completion_tokens"]
    told = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    for_each = [["time", 42, 1, 1], ["time", 43, 1, 1], ["memory", 42, 1, 1]]
    assert told == [[*one, eos] for eos in (None, EOS_ID) for one in for_each]
    assert "(0.50x)" in capsys.readouterr().out


def test_completions_that_are_too_short_are_no_comparison(interpreter, ours_in_this_process, tmp_path):
    options = ["--quick", "--lengths", "fixed", "--output", str(tmp_path / "out")]
    with pytest.raises(RuntimeError, match=r"tokens in AgileRL's run and in ours") as error:
        versus_agilerl.main(["--agilerl_python", interpreter(missing=1), *options])
    assert "completions of [31, 32] tokens" in str(error.value)


@pytest.mark.parametrize("python", ["/nowhere/python", sys.executable])
def test_an_interpreter_without_agilerl_is_refused_in_one_line(python, capsys):
    if importlib.util.find_spec("agilerl") is not None:
        pytest.skip("AgileRL is installed")
    assert versus_agilerl.main(["--agilerl_python", python, "--quick"]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: --agilerl_python {python} has no AgileRL: ") and message.count("\n") == 1


def test_agilerls_interpreter_needs_nothing_of_ours():
    for name in ("agilerl_run", "peaks", "stopwatch"):
        tree = ast.parse(Path(versus_agilerl.__file__).with_name(f"{name}.py").read_text())
        names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        roots = {str(module).split(".")[0] for module in names}
        allowed = {"agilerl", "torch", "transformers", "peft", "peaks", "stopwatch"}
        assert roots - allowed <= sys.stdlib_module_names, name


class Agent:
    """AgileRL's PPO as far as the script uses it: fixed completions and no training."""

    gradient, steps_a_pass = 1.0, 1

    def __init__(self, **settings):
        self.settings = settings
        self.state = {"step": 0}
        self.optimizer = SimpleNamespace(optimizer=SimpleNamespace(state={0: self.state}))

    def get_action(self, prompts):
        ids = [torch.nn.functional.pad(prompt["input_ids"], (0, 3), value=3) for prompt in prompts]
        masks = [torch.arange(block.shape[1] - 1).expand(len(block), -1) >= block.shape[1] - 4 for block in ids]
        return ids, masks, None

    def learn(self, experiences):
        ids, masks, rewards = experiences
        assert sum(len(block) for block in ids) == sum(len(mask) for mask in masks) == len(rewards)
        start = time.perf_counter()
        torch.ones(256, 256) @ torch.ones(256, 256)
        seconds = time.perf_counter() - start
        self.state["step"] += self.steps_a_pass * self.settings["update_epochs"]
        norms = {"grad_norm_pre": 1.0, "critic_grad_norm_pre": self.gradient}
        return norms | {"learn_phase_no_grad_forward_s": seconds}


@pytest.fixture
def script(monkeypatch):
    """`agilerl_run` with stand-ins for AgileRL and the models."""
    for name, content in {
        "agilerl": {},
        "agilerl.algorithms": {},
        "agilerl.algorithms.core": {"base": SimpleNamespace(HAS_LIGER_KERNEL=True)},
        "agilerl.algorithms.ppo_llm": {"PPO": Agent},
        "agilerl.utils": {},
        "agilerl.utils.ppo_value_head": {"AutoModelForCausalLMWithValueHead": lambda policy: policy},
    }.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    module = importlib.import_module("eval.performance.agilerl_run")
    policy = SimpleNamespace(generation_config=GenerationConfig(eos_token_id=1))
    monkeypatch.setattr(module.AutoModelForCausalLM, "from_pretrained", lambda *args, **options: policy)
    reward_model = versus_trl.model(versus_trl.Run(**versus_trl.QUICK, vocab_size=16, completion=3), reward=True)
    monkeypatch.setattr(module.AutoModelForSequenceClassification, "from_pretrained", lambda *a, **o: reward_model)
    yield module
    sys.modules.pop("eval.performance.agilerl_run")


RUN = {"seed": 0, "updates": 2, "epochs": 3, "batch": 4, "micro_batch": 2, "prompt": 5, "completion": 3}
RUN |= {"pad_token_id": 0, "eos_token_id": None, "learning_rate": 1e-5, "sampling_batch": 2}
RUN |= {"fuse_actor_critic_pass": True, "prompts": [[3, 4, 5, 6, 7]] * 8}


def test_the_script_counts_tokens_and_times_every_phase(script, tmp_path):
    stopwatch = Stopwatch("cpu", steps=1)
    assert len(script.train(RUN, tmp_path, stopwatch)) == 2
    assert stopwatch.tokens == [12, 12]
    for update in stopwatch.updates:
        assert min(update.values()) > 0


def test_a_completion_ends_with_its_eos_token(script):
    block = torch.tensor([[8, 9, 5, 2, 0, 0], [8, 2, 5, 6, 7, 2], [8, 9, 5, 0, 7, 6]])
    mask = script.completion_mask(block, RUN | {"prompt": 2, "eos_token_id": 2})
    assert mask.int().tolist() == [[0, 1, 1, 0, 0], [0, 1, 1, 1, 1], [0, 1, 1, 1, 1]]
    assert script.completion_mask(block, RUN | {"prompt": 2})[:, 1:].all(), "nothing ends a completion"


def test_the_script_asks_for_one_minibatch_and_the_whole_distribution(script, tmp_path):
    settings = script.ppo(RUN, tmp_path).settings
    assert settings["mini_batch_size"] == 4 and settings["micro_batch_size_per_gpu"] == 2 and settings["top_k"] == 0
    assert not script.base.HAS_LIGER_KERNEL
    assert settings["lora_config"].r == 16 and settings["max_model_len"] == 8
    assert settings["actor_network"].generation_config.eos_token_id is None, "nothing ends a completion"


@pytest.mark.parametrize(
    ("attribute", "value", "error"),
    [("gradient", 0.0, "actor or critic was 0"), ("steps_a_pass", 2, r"made \{12\} optimizer steps in 2 updates")],
)
def test_the_script_refuses_a_run_that_did_other_work(script, tmp_path, monkeypatch, attribute, value, error):
    monkeypatch.setattr(Agent, attribute, value)
    with pytest.raises(RuntimeError, match=error):
        script.train(RUN, tmp_path, Stopwatch("cpu", steps=1))


def test_ratios_of_runs_by_turns():
    seen = []

    def measured(trainer, measure, number):
        seen.append((trainer, measure, number))
        if measure == "memory":
            return {"process": {"theirs": 4, "ours": 3}[trainer]}
        whole = {"theirs": [8.0, 4.0], "ours": [2.0, 2.0]}[trainer][number]
        return {"updates": [{"generate": whole, "score": 0.0, "evaluate": 0.0, "learn": 0.0}], "tokens": [0]}

    result = turns.by_turns(("theirs", "ours"), 2, 16, measured)
    assert seen[:4] == [(trainer, "time", number) for number in (0, 1) for trainer in ("theirs", "ours")]
    assert (result["speed"], result["speed_by_round"], result["memory"]) == (3.0, [4.0, 2.0], 0.75)
    assert result["ours"]["samples_per_second"] == 8.0 and "completion_tokens" not in result["ours"]
