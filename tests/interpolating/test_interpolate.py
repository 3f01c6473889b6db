# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""`trl_ext interpolate` from its command line: the model at one eta, a measured path, and refusals."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from transformers import AutoModelForCausalLM

from tests import tiny_models
from tests.actor_critic.makes import batch, learn, reference, scramble
from trl_ext.actor_critic import ActorCritic, build_actor_critic
from trl_ext.commands import main
from trl_ext.evaluation.path import choose, least_kl, split_rows
from trl_ext.interpolating import start
from trl_ext.interpolating.showing import print_points
from trl_ext.running.trained import find_trained, load_trained

REWARD = """
def brevity(completions, **columns):
    return [-len(text) / 10 for text in completions]

def at_times(prompts, completions, **columns):
    odd = [int(prompt.split()[0]) % 2 for prompt in prompts]
    return [-2.0 - (len(text) > 9) if applies else None for applies, text in zip(odd, completions)]
"""
MEASURED = ["--max_completion_length", "6", "--num_prompts", "6", "--frontier_prompts", "4", "--frontier_samples", "6"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in bfloat16, a whole model and a LoRA adapter that were trained from it, prompts and a reward."""
    root = tmp_path_factory.mktemp("world")
    tiny_models.save_tiny(root / "base", tiny_models.tiny_causal_lm().bfloat16())
    whole = ActorCritic(str(root / "base"))
    with torch.no_grad():
        for i, (_, parameter) in enumerate(whole.actor_parameters()):
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
    whole.save_pretrained(root / "whole")
    lora = build_actor_critic(str(root / "base"), peft_config=LoraConfig(r=4, target_modules="all-linear"))
    scramble(lora.policy, scale=0.1)
    lora.save_pretrained(root / "lora")
    for name in ("whole", "lora"):
        tiny_models.tiny_tokenizer(pad_is_eos=True).save_pretrained(root / name)
    tiny_models.prompt_dataset(8).to_json(root / "prompts.jsonl")
    (root / "my_reward.py").write_text(REWARD)
    return root


@pytest.fixture(autouse=True)
def elsewhere(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A current folder, a cache of data sets and an import path of the test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(sys, "path", list(sys.path))


def with_prompts(world: Path) -> list[str]:
    return ["--prompts", str(world / "prompts.jsonl"), "--reward", f"{world / 'my_reward.py'}:brevity", *MEASURED]


@pytest.mark.parametrize("name", ["whole", "lora"])
def test_a_measured_path(name: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    judge = ["--judge", f"{world / 'my_reward.py'}:brevity"]
    path = tmp_path / "measured.json"
    main(["interpolate", str(world / name), "--eta", "1", "0.5", *with_prompts(world), *judge, "--json", str(path)])
    shown = capsys.readouterr().out
    assert shown.splitlines()[-1] == str(path) and "KL / least" in shown
    content = json.loads(path.read_text())
    points = content["points"]
    assert [point["eta"] for point in points] == [0, 0.5, 1]
    assert points[0]["kl"] == 0 and points[0]["kl_at_optimum"] == 0
    assert 0 < abs(points[1]["kl"]) < abs(points[2]["kl"])
    assert {"reward", "judge", "perplexity", "mean_length", "empty_fraction"} <= points[2].keys()
    assert not (world / name / "interpolation.json").exists(), "`--json` leaves the run's folder alone"


def test_completions_without_a_reward_do_not_count(world: Path, tmp_path: Path) -> None:
    """The reward is -2 or -3 on every other prompt; 0 for the others would be the best of all."""
    path = tmp_path / "measured.json"
    given = ["--prompts", str(world / "prompts.jsonl"), "--reward", f"{world / 'my_reward.py'}:at_times", *MEASURED]
    main(["interpolate", str(world / "lora"), "--eta", "1", *given, "--json", str(path)])
    content = json.loads(path.read_text())
    assert all(-3 <= point["reward"] <= -2 for point in content["points"])
    assert content["points"][0]["kl_at_optimum"] == 0
    assert all(-3 <= round(reward, 6) <= -2 for _, reward in content["optimum"])
    assert choose([{"reward": None, "kl": 0.1}, {"reward": -1.0, "kl": 0.2}], None)["kl"] == 0.2


def test_a_least_kl_that_few_samples_tell_is_a_lower_bound() -> None:
    """The optimum for a mean close to the best of eight samples rests on that one sample."""
    drawn = torch.arange(8.0, dtype=torch.float64).repeat(3, 1)
    with pytest.warns(UserWarning, match="effective samples per prompt .* lower bound"):
        assert 0 < least_kl(drawn, torch.full((3, 2), 6.9, dtype=torch.float64)) < math.log(8)
    assert least_kl(drawn, torch.full((3, 2), 8.0, dtype=torch.float64)) is None


def test_the_model_at_one_eta(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["interpolate", str(world / "whole"), "--eta", "0.5", "--output", "half"])
    assert capsys.readouterr().out == "half\n"
    base, whole, half = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
        for folder in (world / "base", world / "whole", "half")
    )
    for key, value in half.items():
        torch.testing.assert_close(value, (base[key] + whole[key]) / 2, rtol=1e-6, atol=1e-7)
    # Stored as the trained model is, and known for what it is to `trl_ext compare`.
    stored = json.loads((tmp_path / "half" / "config.json").read_text())["dtype"]
    assert stored == json.loads((world / "whole" / "config.json").read_text())["dtype"]
    assert json.loads((tmp_path / "half" / "base_model.json").read_text())["base_model"] == str(world / "base")
    assert (tmp_path / "half" / "tokenizer.json").is_file()


def test_an_adapter_that_training_began_from_is_the_reference_of_the_loaded_policy(world: Path) -> None:
    policy = get_peft_model(
        AutoModelForCausalLM.from_pretrained(world / "base"), LoraConfig(r=4, target_modules="all-linear")
    )
    scramble(policy, seed=2, scale=0.1)
    model, data = ActorCritic(policy), batch()
    learn(model, data)
    model.save_pretrained("staged")
    tiny_models.tiny_tokenizer().save_pretrained("staged")
    loaded = load_trained(find_trained("staged", device="cpu"))
    assert torch.equal(reference(loaded, data), reference(model.eval(), data))
    assert torch.equal(loaded(*data).logps, model(*data).logps)
    assert not torch.equal(loaded(*data).logps, reference(loaded, data))


def test_a_model_in_bfloat16_stays_in_bfloat16(world: Path, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(world / "whole").bfloat16().save_pretrained("small")
    tiny_models.tiny_tokenizer().save_pretrained("small")
    main(["interpolate", "small", "--reference", str(world / "base"), "--eta", "1", "--output", "copy"])
    expected = AutoModelForCausalLM.from_pretrained("small").state_dict()
    found = AutoModelForCausalLM.from_pretrained("copy").state_dict()
    assert all(found[key].dtype == torch.bfloat16 and torch.equal(found[key], expected[key]) for key in expected)


REFUSALS = {
    "several etas": (["{whole}", "--output", "x"], "takes the model at one eta; give one, such as `--eta 0.75`"),
    "negative": (["{whole}", "--eta", "-0.5"], "`--eta` is -0.5; give 0"),
    "nan": (["{whole}", "--eta", "nan"], "`--eta` is nan; give 0"),
    "no number": (["{whole}", "--eta", "half"], "--eta"),
    "no folder": (["nowhere"], "'nowhere' is not a folder"),
    "no record": (["{whole}"], "has no record of the run's own prompts and rewards; give `--prompts` and `--reward`"),
    "no model": (["{world}", "--eta", "1", "--output", "x"], "is a folder without `config.json`"),
    "full folder": (["{whole}", "--eta", "1", "--output", "{whole}"], "is a folder that is not empty"),
    "a file": (["{whole}", "--eta", "1", "--output", "{prompts}"], "is a file; give a folder"),
    "output and prompts": (["{whole}", "--eta", "1", "--output", "x", "--prompts", "{prompts}"], "measures nothing"),
    "no reference": (["{base}", "--eta", "1", "--output", "x"], "name it with `--reference`"),
    "itself": (["{whole}", "--eta", "1", "--output", "x", "--reference", "{whole}"], "is the trained model itself"),
    "an adapter's": (["{lora}", "--eta", "1", "--output", "x", "--reference", "{base}"], "is for whole models"),
    "greedy": (["{whole}", *["--prompts", "{prompts}", "--temperature", "0"]], "`--temperature 0` has no KL"),
    "few samples": (["{whole}", *["--prompts", "{prompts}", "--frontier_samples", "1"]], "must be at least 2"),
    "two judges": (["{whole}", *["--prompts", "{prompts}", "--judge", "a", "--toxicity_model", "b"]], "`--judge"),
}


@pytest.mark.parametrize(("given", "message"), REFUSALS.values(), ids=REFUSALS)
def test_refusals(given: list[str], message: str, world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = {name: world / name for name in ("whole", "lora", "base")} | {"prompts": world / "prompts.jsonl"}
    with pytest.raises(SystemExit) as stop:
        main(["interpolate", *(part.format(world=world, **names) for part in given)])
    assert stop.value.code == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0]


def test_another_vocabulary_is_refused(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = AutoModelForCausalLM.from_pretrained(world / "whole")
    model.resize_token_embeddings(170)
    model.save_pretrained("grown")
    tiny_models.tiny_tokenizer().save_pretrained("grown")
    with pytest.raises(SystemExit):
        main(["interpolate", "grown", "--reference", str(world / "base"), "--eta", "0.5", "--output", "x"])
    assert "has `vocab_size` 170 and its reference" in capsys.readouterr().err


def test_after_ctrl_c_the_points_so_far_are_kept(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measure = start.measure_path

    def interrupted(path, etas, task, on_point):
        def stop(result):
            on_point(result)
            if len(result.points) == 2:
                raise KeyboardInterrupt

        return measure(path, etas, task, on_point=stop)

    monkeypatch.setattr(start, "measure_path", interrupted)
    with pytest.raises(SystemExit) as stop:
        main(["interpolate", str(world / "lora"), *with_prompts(world), "--json", "kept.json"])
    assert stop.value.code == 130
    assert [point["eta"] for point in json.loads((tmp_path / "kept.json").read_text())["points"]] == [0, 0.25]
    assert "0.25" in capsys.readouterr().out


def test_the_choice_keeps_to_the_budget() -> None:
    points = [{"eta": eta, "reward": eta, "kl": 2 * eta} for eta in (0.25, 0.5, 1.0)]
    assert choose(points, None)["eta"] == 1.0
    assert choose(points, 1.0)["eta"] == 0.5
    assert choose(points, 0.1)["eta"] == 0.25, "nothing is within it: the least KL"


@pytest.mark.parametrize("count", [2, 3, 256])
def test_the_halves_are_disjoint(count: int) -> None:
    chosen, reported = split_rows(count)
    assert chosen and reported and not set(chosen) & set(reported)
    assert sorted(chosen + reported) == list(range(count))


def test_the_table_has_the_interval_of_the_reward_and_shares_in_percent(capsys):
    point = {"eta": 0.5, "reward": -0.25, "reward_ci95": [-0.75, 0.25], "kl": 0.5, "empty_fraction": 0.1}
    print_points([{**point, "terminated_fraction": 0.9}], Console(), title="out: 300 prompts")
    heading, columns, row = capsys.readouterr().out.splitlines()
    assert heading.strip() == "out: 300 prompts" and columns.split() == ["eta", "reward", "KL", "empty", "ended"]
    assert "-0.25 [-0.75 to 0.25]" in row and "10.0%" in row and "90.0%" in row
