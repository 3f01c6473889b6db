# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The instruction-following recipe: its data, its stages, and whole runs on tiny models."""

import json
import math
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from recipes import instruction_following
from recipes.instruction_following import CONFIGS, make_parser
from tests.recipes.killed_recipe import SMALL, TINY
from tests.tiny_models import save_tiny, tiny_causal_lm
from trl_ext.instructions import names, training
from trl_ext.instructions.comparison import Measured, gold_by_category
from trl_ext.instructions.rewards import AskedOnce
from trl_ext.instructions.stages import read_record, run_stage
from trl_ext.running.cli import run
from trl_ext.running.config_files import LAYERS
from trl_ext.worlds.instructions_models import prepare_instructions

CARDS = CONFIGS.parent / "cards"


@pytest.fixture(autouse=True)
def own_caches(tmp_path_factory, monkeypatch):
    """Parsed files are cached by the datasets library; keep that out of the user's home."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return tmp_path_factory.mktemp("world")


@pytest.fixture
def recipe(world, monkeypatch):
    """Calls the recipe with small sizes on a tiny embedded world."""
    monkeypatch.setattr(names, "prepare_instructions", lambda cache: prepare_instructions(world, settings=TINY))

    def call(output_dir, *flags, **changes):
        values = SMALL | {"output_dir": output_dir} | changes
        argv = [part for name, value in values.items() for part in (f"--{name}", str(value))]
        instruction_following.main([*argv, *flags])

    return call


def error_of(capsys, call):
    """The one line on stderr with which a run ends."""
    with pytest.raises(SystemExit) as exit_:
        run(call)
    assert exit_.value.code == 2
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")][-1]


# ---- the command line ----


@pytest.mark.parametrize("path", sorted([*CONFIGS.glob("*.yaml"), *CARDS.glob("*.yaml")]), ids=lambda path: path.stem)
def test_every_yaml_file_parses(path, tmp_path):
    flags = ["--config", str(path), "--output_dir", str(tmp_path), "--use_cpu"]
    run_options, _, pairs, reward, ppo, args, model_args = make_parser().parse_recipe(flags)
    assert args.output_dir == str(tmp_path)
    if path.parent == CONFIGS and path.stem in (*LAYERS, "over_optimized", "defended"):
        assert model_args.model_name_or_path is None  # the embedded example
    elif path.parent == CONFIGS:
        assert pairs.preference_dataset and "sft" not in run_options.stages
        assert ppo.judge_model not in (None, reward.reward_model) and "Not run by this project" in path.read_text()


def test_every_option_is_used_somewhere():
    files = [Path(instruction_following.__file__), *Path(names.__file__).parent.glob("*.py")]
    code = "".join(file.read_text() for file in files)
    for options in instruction_following.OPTIONS.values():
        for field in fields(options):
            assert f".{field.name}" in code, f"{field.name} is read and never used"


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        ("--stages sft dance", "dance"),
        ("--label_noise 0.5", "`--label_noise`"),
        ("--ppo_folder sft", "`--ppo_folder`"),
        ("--reward_model x --num_reward_models 2", "`--num_reward_models`"),
        ("--reward_modl x", "`--reward_model`"),
    ],
)
def test_bad_options_are_refused(flags, part, tmp_path, capsys):
    command = [*flags.split(), "--output_dir", str(tmp_path)]
    assert part in error_of(capsys, lambda: instruction_following.main(command))


# ---- numbers ----


def test_win_rate_counts_ties_half():
    before, after = (
        Measured(None, 0.0, [], gold, by_prompt)
        for gold, by_prompt in (([0, 1, 0], [0.5, 1, 0]), ([1, 1, 0], [1.0, 1, 0.5]))
    )
    row = gold_by_category(["a", "b", "a"], before, after)["a"]
    assert row == {
        "before": 0.25, "after": 0.75, "change_ci95": None, "lost": False, "prompts": 2, "win_rate": 0.75
    }  # fmt: skip


def test_the_reward_head_is_drawn_as_in_lm_human_preferences(tmp_path):
    folder = save_tiny(tmp_path, tiny_causal_lm(hidden_size=64))
    torch.manual_seed(0)
    weights = torch.cat([training.load_reward_model(folder, {}).score.weight.flatten() for _ in range(30)])
    assert weights.std().item() == pytest.approx(1 / math.sqrt(65), rel=0.05)


# ---- stages ----


def test_a_stage_runs_once_for_each_configuration(tmp_path, capsys):
    calls = []

    def work(folder):
        calls.append(folder)
        (folder / "mine").touch()
        return {"n": len(calls)}

    folder = tmp_path / "stage"
    first = run_stage("sft", folder, {"a": 1}, ["up"], work)
    assert run_stage("sft", folder, {"a": 1}, ["up"], work) == first and len(calls) == 1
    assert "skipped" in capsys.readouterr().out
    assert run_stage("sft", folder, {"a": 2}, ["up"], work).result == {"n": 2}
    assert run_stage("sft", folder, {"a": 2}, ["other"], work).result == {"n": 3}


def test_an_interrupted_stage_goes_on_and_another_configuration_does_not_inherit_from_it(tmp_path):
    def fail(folder):
        (folder / "half").touch()
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run_stage("sft", tmp_path / "s", {"a": 1}, (), fail)
        assert read_record(tmp_path / "s") is None
    run_stage("sft", tmp_path / "s", {"a": 1}, (), lambda f: {"kept": (f / "half").exists()})
    assert read_record(tmp_path / "s").result == {"kept": True}
    with pytest.raises(KeyboardInterrupt):
        run_stage("sft", tmp_path / "t", {"a": 1}, (), fail)
    assert run_stage("sft", tmp_path / "t", {"a": 2}, (), lambda f: {"kept": (f / "half").exists()}).result == {
        "kept": False
    }


def test_a_folder_of_somebody_else_is_not_emptied(tmp_path):
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(ValueError, match="was not made by stage"):
        run_stage("sft", tmp_path, {}, (), lambda folder: {})
    assert (tmp_path / "thesis.txt").exists()


# ---- whole runs ----


def test_all_stages_then_skipped_then_stopped_and_continued(recipe, tmp_path, capsys, monkeypatch):
    recipe(tmp_path / "whole")
    out = capsys.readouterr().out
    assert out.strip().splitlines()[-1] == str(tmp_path / "whole" / "summary.json")
    summary = json.loads((tmp_path / "whole" / "summary.json").read_text())
    assert summary["gold_win_rate_low"] <= summary["gold_win_rate"] <= summary["gold_win_rate_high"]
    assert set(summary["seconds"]) == {"sft", "reward", "ppo", "eval"} and len(summary["by_category"]["gold"]) == 17
    assert summary["reward_model"]["pairs"] > 0 and summary["reward_model_accuracy"] is not None
    assert "Calibration of the reward model" in (tmp_path / "whole" / "report.html").read_text()

    recipe(tmp_path / "whole")
    assert capsys.readouterr().out.count("; skipped.") == 3
    again = json.loads((tmp_path / "whole" / "summary.json").read_text())
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in summary.items() if k != "seconds"}

    # The same run, killed before its third PPO step: the stages before are skipped, PPO goes on from a checkpoint.
    step = instruction_following.PPOTrainer.training_step

    def dies(self, *args, **kwargs):
        if self.state.global_step == 2:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(instruction_following.PPOTrainer, "training_step", dies)
        recipe(tmp_path / "killed")
    capsys.readouterr()
    recipe(tmp_path / "killed")
    out = capsys.readouterr().out
    assert out.count("; skipped.") == 2 and "Stage ppo: goes on where it stopped" in out
    one, other = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name / "ppo" / "model").state_dict()
        for name in ("whole", "killed")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)

    # Another setting of PPO does PPO again and nothing else; a setting of the first stage does not fit the others.
    recipe(tmp_path / "whole", "--stages", "ppo", "eval", kl_coef=0.5)
    assert "Stage ppo: the configuration has changed" in capsys.readouterr().out
    wrong = error_of(capsys, lambda: recipe(tmp_path / "whole", "--stages", "ppo", seed=1))
    assert "needs stage `sft`, which was done" in wrong and "other settings" in wrong
    early = error_of(capsys, lambda: recipe(tmp_path / "new", "--stages", "eval"))
    assert "needs stage `reward`" in early


@pytest.mark.parametrize(
    "changes",
    [
        {"use_peft": "true", "num_reward_models": 2, "aggregation": "min", "shaping": "par", "length_debias": "true"},
        {"load_in_4bit": "true", "num_reward_models": 2, "aggregation": "warm", "shaping": "log_sigmoid"},
        {"num_reward_models": 2, "aggregation": "mean_minus_std", "ptx_coef": 0.1},
    ],
    ids=["lora", "4bit", "full"],
)
def test_lora_four_bits_ensembles_shaping_and_the_reward_as_critic_at_every_stage(recipe, changes, tmp_path):
    recipe(tmp_path, total_episodes=32, critic="reward", **changes)
    critic = json.loads((tmp_path / "ppo" / "model" / "critic" / "critic_config.json").read_text())["critic"]
    assert critic == ("model" if "ptx_coef" in changes else "adapter")
    adapters = [file.parent.name for file in tmp_path.rglob("adapter_config.json")]
    assert ("model-0" in adapters and "model" in adapters) == (
        "num_reward_models" in changes and "ptx_coef" not in changes
    )
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert math.isfinite(summary["kl"]) and math.isfinite(summary["proxy_after"])
    assert len(summary["reward_model"]["member_accuracies"]) == 2


def test_real_pairs_in_the_format_of_hh(recipe, tmp_path, capsys):
    folder = save_tiny(tmp_path / "lm", tiny_causal_lm())
    pairs = [
        {
            side: f"\n\nHuman: {i} is?\n\nAssistant: {word}"
            for side, word in (("chosen", "cat"), ("rejected", "dog mat"))
        }
        for i in range(40)
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    options = {"model_name_or_path": folder, "preference_dataset": tmp_path / "pairs.jsonl", "learning_rate": 1e-3}
    recipe(tmp_path / "out", "--stages", "reward", reward_learning_rate=1e-2, reward_epochs=4, **options)
    assert "Reward model: accuracy 1.000" in capsys.readouterr().out
    # A model that exists is tested instead of trained, and without a judge there is no gold.
    recipe(
        tmp_path / "named", "--stages", "reward", "ppo", "eval",
        reward_model=tmp_path / "out" / "reward" / "model-0", total_episodes=16, **options,
    )  # fmt: skip
    summary = json.loads((tmp_path / "named" / "summary.json").read_text())
    assert summary["gold_win_rate"] is None and summary["reward_model_accuracy"] == 1.0
    assert not (tmp_path / "named" / "reward" / "model-0").exists()


def test_a_stage_without_data_is_refused(recipe, tmp_path, capsys):
    folder = save_tiny(tmp_path / "lm", tiny_causal_lm())
    assert "give `--preference_dataset`" in error_of(
        capsys, lambda: recipe(tmp_path / "out", model_name_or_path=folder)
    )


def test_the_best_eta_is_kept_and_the_average_is_a_second_point(recipe, tmp_path, capsys):
    out = tmp_path / "out"
    recipe(out, "--keep_best_eta", "0.25", "1", kl_budget=1e-9, policy_ema_decay=0.5)
    said, summary = capsys.readouterr().out, json.loads((out / "summary.json").read_text())
    assert (summary["num_eval_prompts"], summary["num_choice_prompts"]) == (9, 8), "two halves of 17"
    assert [point["eta"] for point in summary["eta_choices"]] == [0.25, 1]
    eta = min(summary["eta_choices"], key=lambda point: point["kl"])["eta"]
    assert summary["eta"] == eta and f"Kept eta {eta:g}, chosen on 8 other prompts." in said
    assert "The policy average: gold reward" in said and {"gold_ema", "proxy_ema", "kl_ema"} <= summary.keys()
    names = {"before": "sft/model", "trained": "ppo/model/unscaled", "kept": "ppo/model"}
    found = {key: AutoModelForCausalLM.from_pretrained(out / name).state_dict() for key, name in names.items()}
    for name, value in found["kept"].items():
        expected = torch.lerp(found["before"][name].double(), found["trained"][name].double(), eta)
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-7)
    # Again, the stage is skipped, and the policy that is compared is the one that was kept.
    recipe(out, "--keep_best_eta", "0.25", "1", kl_budget=1e-9, policy_ema_decay=0.5)
    again = json.loads((out / "summary.json").read_text())
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in summary.items() if k != "seconds"}
    assert capsys.readouterr().out.count("; skipped.") == 3
    message = error_of(capsys, lambda: recipe(tmp_path / "bad", kl_budget=1))
    assert "`--kl_budget` 1 needs `--keep_best_eta`" in message


def test_the_judge_is_asked_once_about_a_batch():
    calls = []

    def gold(completions, key, **columns):
        calls.append(list(completions))
        if "boom" in completions:
            raise RuntimeError("no answer")
        return [float(text == right) for text, right in zip(completions, key, strict=True)]

    once = AskedOnce(gold)
    batch = {"prompts": ["a", "b"], "completions": ["x", "y"], "completion_ids": [[1], [2]], "key": ["x", "x"]}
    first = once(**batch, trainer_state=1)
    first.append(7.0)  # a caller's list is its own
    assert once(**batch, trainer_state=2) == [1.0, 0.0] and len(calls) == 1 and once.__name__ == "gold"
    assert once(**batch | {"key": ["y", "y"]}) == [0.0, 1.0] and len(calls) == 2, "another column, another batch"
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no answer"):
            once(**batch | {"completions": ["boom", "y"]})
    assert len(calls) == 4, "a failure is no mark"


def test_stages_are_found_again_where_the_output_was_moved(recipe, tmp_path, capsys):
    recipe(tmp_path / "out")
    (tmp_path / "new").mkdir()
    (tmp_path / "out").rename(tmp_path / "new" / "out")
    capsys.readouterr()
    recipe(tmp_path / "new" / "out")
    assert capsys.readouterr().out.count("; skipped.") == 3
    assert str(tmp_path / "out") not in (tmp_path / "new" / "out" / "ppo" / "stage.json").read_text()
