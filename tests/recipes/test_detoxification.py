# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The detoxification recipe from its command line to its summary, on tiny random models."""

import json
import os
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from recipes import detoxification
from recipes.detoxification import CONFIGS, make_parser, resolve_names
from tests import tiny_models
from tests.docs.pages import quoted, table
from tests.launching import python_path
from trl_ext.commands import main as interpolate
from trl_ext.config import PPOConfig
from trl_ext.folders import commit
from trl_ext.reports import runs as reports_runs
from trl_ext.running import best_eta
from trl_ext.running.cli import check_output_dir, newest_checkpoint, run
from trl_ext.running.config_files import LAYERS


@pytest.fixture(autouse=True)
def own_caches(tmp_path_factory, monkeypatch):
    """Parsed files are cached by the datasets library; keep that out of the user's home."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


@pytest.fixture(scope="module")
def assets(tmp_path_factory):
    """A language model, a reward, a judge and prompts, all tiny and random."""
    folder = tmp_path_factory.mktemp("assets")
    tiny_models.save_tiny(folder / "lm", tiny_models.tiny_causal_lm())
    tiny_models.save_tiny(folder / "reward", tiny_models.tiny_classifier(seed=1))
    tiny_models.save_tiny(folder / "judge", tiny_models.tiny_classifier(seed=2))
    tiny_models.prompt_dataset(24).to_json(folder / "train.jsonl")
    tiny_models.prompt_dataset(6).to_json(folder / "eval.jsonl")
    return folder


def flags(assets, **changes):
    """Command line of a run on the tiny models; `name=None` leaves an option out."""
    values = {
        "model_name_or_path": assets / "lm",
        "dataset_name": assets / "train.jsonl",
        "eval_dataset_name": assets / "eval.jsonl",
        "toxicity_model": assets / "reward",
        "judge_model": assets / "judge",
        **changes,
    }
    return [part for name, value in values.items() if value is not None for part in (f"--{name}", str(value))]


def error_of(capsys, argv, main=detoxification.main):
    """The one line on stderr with which a run ends."""
    with pytest.raises(SystemExit) as exit_:
        run(lambda: main(argv))
    assert exit_.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


# ---- the command line ----


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_yaml_file_parses(path, tmp_path):
    parsed = make_parser().parse_recipe(["--config", str(path), "--output_dir", str(tmp_path)])
    prompts, recipe, args, model_args = parsed
    assert args.output_dir == str(tmp_path)
    if path.stem == "pretrained_critic":
        assert args.critic == "copy" and args.critic_pretraining_episodes and args.critic_epochs
    elif path.stem == "reading_critic":
        assert args.critic == "head" and args.critic_reads_reward_every == 1 and args.lam < 0.95
    elif path.stem not in LAYERS:
        assert None not in (model_args.model_name_or_path, prompts.dataset_name, recipe.toxicity_model)
        assert recipe.judge_model not in (None, recipe.toxicity_model)
        assert "Not run by this project" in path.read_text()


def test_guide_configuration_is_the_guides():
    prompts, recipe, _, model_args = make_parser().parse_recipe(["--config", str(CONFIGS / "gpt_neo_125m.yaml")])
    assert model_args.model_name_or_path == "EleutherAI/gpt-neo-125m"
    assert (recipe.min_prompt_toxicity, recipe.prompt_min_tokens, recipe.prompt_max_tokens) == (0.3, 10, 15)
    assert recipe.toxicity_model == "facebook/roberta-hate-speech-dynabench-r4-target"
    assert prompts.eval_dataset_name == "OxAISH-AL-LLM/wiki_toxic"


def test_the_embedded_example_has_its_own_target_until_a_model_is_named(tmp_path):
    config = tmp_path / "named.yaml"
    config.write_text("model_name_or_path: some/model\n")
    given = [], ["--model_name_or_path", "some/model"], ["--config", str(config)], ["--kl_target", "2"], ["--use_peft"]
    targets = [make_parser().parse_recipe(arguments)[-2].kl_target for arguments in given]
    assert targets == [0.9, 1.3, 1.3, 2.0, 0.9]


def test_whole_models_and_trained_critics_learn_slowly(tmp_path):
    saved = tmp_path / "run" / "critic"
    saved.mkdir(parents=True)

    def rate(*arguments):
        return make_parser().parse_recipe(list(arguments))[-2].critic_learning_rate

    assert rate() == rate("--critic", "head") == rate("--use_peft", "--critic", "adapter") == 5e-3
    for critic in ("copy", "some/model"):
        assert rate("--critic", critic) == 3e-4
    for kind, expected in {"head": 5e-3, "adapter": 3e-4, "model": 3e-4}.items():
        (saved / "critic_config.json").write_text(json.dumps({"critic": kind}))
        assert rate("--critic", str(saved.parent)) == expected
    config = tmp_path / "mine.yaml"
    config.write_text("critic: copy\ncritic_learning_rate: 1e-5\n")
    assert rate("--config", str(config)) == 1e-5
    assert rate("--config", str(config), "--critic_learning_rate", "0.1") == 0.1


def test_command_line_beats_yaml_beats_defaults(tmp_path):
    config = tmp_path / "mine.yaml"
    config.write_text("learning_rate: 1e-3\nkl_coef: 0.25\nmin_length: 7\n")
    argv = [f"--config={config}", "--kl_coef", "0.5", "--lora_r", "3"]
    _, recipe, args, model_args = make_parser().parse_recipe(argv)
    assert (args.learning_rate, args.kl_coef, recipe.min_length, model_args.lora_r) == (1e-3, 0.5, 7, 3)
    untouched = make_parser().parse_recipe([])[-2]
    assert args.max_completion_length == untouched.max_completion_length == 20
    assert PPOConfig(output_dir=str(tmp_path)).max_completion_length != 20  # so it came from default.yaml


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("learning_rat: 1.0e-3\n", "Unknown key `learning_rat`: did you mean `learning_rate`.*mine.yaml"),
        ("qqqqqq: 1\n", "Unknown key `qqqqqq`: `--help` lists all of them"),
        ("- learning_rate\n", "must contain a YAML mapping"),
        ("a: [1\n", "is not valid YAML"),
        ("kl_coef: -1\n", "`kl_coef` must be 0 or more, got -1"),
        ("num_mini_batches: 5\n", "`num_mini_batches` 5 does not divide"),
        ("num_eval_prompts: 0\n", "`num_eval_prompts` must be at least 1"),
    ],
)
def test_bad_yaml_is_one_line(content, message, tmp_path, capsys):
    config = tmp_path / "mine.yaml"
    config.write_text(content)
    assert re.search(message, error_of(capsys, ["--config", str(config)]))


def test_bad_options_are_one_line(capsys):
    assert "did you mean `--dataset_name`" in error_of(capsys, ["--datasetname", "x"])
    assert "gone.yaml" in error_of(capsys, ["--config", "gone.yaml"])
    assert "needs the path of a YAML file" in error_of(capsys, ["--config"])


# ---- names ----


def test_the_judge_is_never_the_reward(assets, tmp_path, capsys):
    (tmp_path / "alias").symlink_to(assets / "reward")
    for name in (assets / "reward", f"{assets}/lm/../reward", tmp_path / "alias"):
        argv = flags(assets, judge_model=name, output_dir=tmp_path / "out")
        assert "is also the reward" in error_of(capsys, argv)


def test_missing_and_wrong_names(assets, tmp_path, capsys):
    out = {"output_dir": tmp_path / "out"}
    line = error_of(capsys, flags(assets, judge_model=None, dataset_name=None, **out))
    assert "`--dataset_name` and `--judge_model`" in line
    line = error_of(capsys, flags(assets, model_name_or_path=tmp_path / "gone", **out))
    assert "--model_name_or_path" in line and "does not exist" in line
    assert "gone.jsonl' does not exist" in error_of(capsys, flags(assets, dataset_name="gone.jsonl", **out))
    assert "no column 'question'" in error_of(capsys, flags(assets, prompt_column="question", **out))
    line = error_of(capsys, flags(assets, model_name_or_path=assets / "reward", **out))
    assert "not a causal language model" in line


def test_unwritable_output_is_found_before_anything_is_loaded(assets, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(detoxification, "resolve_names", lambda *_: pytest.fail("too late"))
    (tmp_path / "file").write_text("")
    line = error_of(capsys, flags(assets, output_dir=tmp_path / "file" / "out"))
    assert "cannot be written" in line and "--output_dir" in line
    assert check_output_dir(str(tmp_path / "new" / "out")).is_dir()
    assert list((tmp_path / "new" / "out").iterdir()) == []


def test_processes_that_do_not_know_of_each_other(assets, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(PPOConfig, "world_size", 1)
    line = error_of(capsys, flags(assets, output_dir=tmp_path))
    assert "2 processes were launched, but the Trainer sees 1; without GPUs add `--use_cpu`" in line


def test_without_a_model_the_embedded_ones_fill_the_gaps(assets, monkeypatch):
    names = ("model", "toxicity_model", "judge_model", "train_prompts", "eval_prompts")
    folders = ("lm", "reward", "judge", "train.jsonl", "eval.jsonl")
    embedded = SimpleNamespace(**{n: str(assets / f) for n, f in zip(names, folders, strict=True)})
    monkeypatch.setattr(detoxification, "prepare_once", lambda args, cache_dir: embedded)
    prompts, recipe, args, model_args = make_parser().parse_recipe([])
    resolve_names(prompts, recipe, args, model_args)
    assert model_args.model_name_or_path == embedded.model
    assert (prompts.dataset_name, prompts.eval_dataset_name) == (embedded.train_prompts, embedded.eval_prompts)
    assert (recipe.toxicity_model, recipe.judge_model) == (embedded.toxicity_model, embedded.judge_model)
    prompts, recipe, args, model_args = make_parser().parse_recipe(["--dataset_name", "mine.jsonl"])
    resolve_names(prompts, recipe, args, model_args)
    # one's own prompts are not evaluated on the embedded ones
    assert (prompts.dataset_name, prompts.eval_dataset_name) == ("mine.jsonl", None)


def test_resume_names(tmp_path):
    assert newest_checkpoint(None, tmp_path) is None
    assert newest_checkpoint("false", tmp_path) is None
    with pytest.raises(ValueError, match="There is no whole checkpoint"):
        newest_checkpoint("true", tmp_path)
    with pytest.raises(ValueError, match="gone` does not exist"):
        newest_checkpoint("gone", tmp_path)
    for step in (4, 8):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "weights").touch()
    commit(tmp_path / "checkpoint-4")
    assert newest_checkpoint("True", tmp_path) == str(tmp_path / "checkpoint-4"), "the newest one is not whole"
    assert newest_checkpoint(str(tmp_path / "checkpoint-4"), tmp_path) == str(tmp_path / "checkpoint-4")


def test_bugs_keep_their_traceback():
    def bug():
        json.loads("{")  # a ValueError that does not come from this project

    with pytest.raises(json.JSONDecodeError):
        run(bug)


# ---- end to end ----

ISSUE_KEYS = {
    *(f"{name}_{time}" for name in ("toxicity", "perplexity", "distinct_2") for time in ("before", "after")),
    *(f"{name}_{time}" for name in ("mean_length", "empty_fraction") for time in ("before", "after")),
    *("kl", "kl_coef", "episodes", "seconds", "kl_at_optimum"),
}
SMALL = {
    "max_completion_length": 8,
    "per_device_train_batch_size": 8,
    "total_episodes": 16,
    "num_ppo_epochs": 1,
    "num_mini_batches": 2,
    "learning_rate": 1e-2,
    "gradient_accumulation_steps": 1,
    "frontier_prompts": 4,
    "frontier_samples": 8,
    "logging_steps": 1,
    "save_strategy": "no",
    "use_cpu": True,
    "disable_tqdm": True,
}


def in_full(names: list[str]) -> list[str]:
    """Return the names of a row, of which the later may be endings: "toxicity_before", "_after"."""
    return [names[0].removesuffix("_before") + name if name.startswith("_") else name for name in names]


def test_a_run_leaves_model_summary_and_report(assets, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"the {i} cat", "topic": ("odd", "even")[i % 2]} for i in range(12)]
    (tmp_path / "topics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    more = {"eval_strategy": "steps", "eval_steps": 2, "category_column": "topic", "num_eval_prompts": 6}
    more |= {"policy_ema_decay": 0.9}
    detoxification.main(flags(assets, output_dir="out", **(SMALL | more | {"eval_dataset_name": "topics.jsonl"})))
    path = tmp_path / "out" / "summary.json"
    out = capsys.readouterr().out
    assert out.strip().splitlines()[-1] == str(path) and "judge non_toxic" in out
    summary = json.loads(path.read_text())
    assert [row["n"] for row in summary["best_of_n"]] == [1, 2, 4, 8]
    assert summary["best_of_n"][0]["reward"] == pytest.approx(summary["reward_before"])
    rewards = [row["reward"] for row in summary["best_of_n"]]
    assert rewards == sorted(rewards) and all(0 <= row["toxicity"] <= 1 for row in summary["best_of_n"])
    assert set(summary["by_category"]["toxicity"]) == {"odd", "even"}
    assert "By category: the toxicity got worse" in summary["verdict"]
    assert set(summary) >= ISSUE_KEYS
    documented = [name for cell, _ in table("detox summary") for name in in_full(quoted(cell))]
    assert [key for key in summary if not any(fnmatch(key, name) for name in documented)] == []
    written = {*summary, *best_eta.KEPT}
    assert [name for name in documented if not any(fnmatch(key, name) for key in written)] == []
    modes = {(tmp_path / "out" / name).stat().st_mode for name in ("model.safetensors", "config.json")}
    assert len(modes) == 1, "who may read the settings may read the weights"
    assert summary["episodes"] == 16
    assert summary["num_eval_prompts"] == 6
    assert summary["kl"] != 0 and summary["seconds"] > 0
    assert 0 < abs(summary["kl_ema"]) < abs(summary["kl"]), "the average lags behind"
    assert "┃ average" in out and summary["toxicity_ci95_ema"][0] <= summary["toxicity_ema"]
    *_, end, average = json.loads((tmp_path / "out" / "report_data.json").read_text())["measured"]
    # Reward, KL and the least KL for the reward are of the same completions, which are not those of all prompts.
    assert (summary["kl"], summary["reward_after"]) == (end["kl"], end["reward"])
    assert average["apart"] and average["name"] == "policy average"
    assert (summary["kl_ema"], summary["reward_ema"]) == (average["kl"], average["reward"])
    report = (tmp_path / "out" / "report.html").read_text()
    assert "Samples" in report and "Mean length" in report and "<th>policy average</th>" in report
    before = AutoModelForCausalLM.from_pretrained(assets / "lm").state_dict()
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_a_run_is_measured_again_with_its_own_settings(assets, tmp_path, monkeypatch, capsys):
    """At 0 and at 1 the rewards are those of the summary, bit by bit: same prompts, rewards and random numbers."""
    out = tmp_path / "out"
    detoxification.main(flags(assets, output_dir=out, **SMALL))
    monkeypatch.chdir(tmp_path)
    interpolate(["interpolate", "out", "--eta", "0.5", "1", "--frontier_prompts", "4", "--frontier_samples", "8"])
    assert capsys.readouterr().out.splitlines()[-1] == "out/interpolation.json"
    summary = json.loads((out / "summary.json").read_text())
    start, _, end = json.loads((out / "interpolation.json").read_text())["points"]
    assert (start["reward"], end["reward"]) == (summary["reward_before"], summary["reward_after"])
    assert (start["toxicity"], end["toxicity"]) == (summary["toxicity_before"], summary["toxicity_after"])
    assert end["perplexity"] == pytest.approx(summary["perplexity_after"])
    assert "plot-interpolation" in (out / "report.html").read_text()
    (out / "report.html").unlink()
    interpolate(["report", "out"])
    assert "plot-interpolation" in (out / "report.html").read_text()


def test_the_best_eta_is_chosen_on_prompts_that_are_not_reported(assets, tmp_path, monkeypatch, capsys):
    chosen_on = []
    measured = best_eta.measure_path

    def watched(path, etas, task, **options):
        chosen_on.extend(task.columns["prompt"])
        return measured(path, etas, task, **options)

    monkeypatch.setattr(best_eta, "measure_path", watched)
    out = tmp_path / "out"
    detoxification.main([*flags(assets, output_dir=out, kl_budget=1e-9, **SMALL), "--keep_best_eta", "0.25", "1"])
    summary = json.loads((out / "summary.json").read_text())
    report = json.loads((out / "report_data.json").read_text())
    reported = {sample["prompt"] for sample in report["samples"]}
    assert len(chosen_on) == len(reported) == summary["num_eval_prompts"] == summary["num_choice_prompts"] == 3
    assert not reported & set(chosen_on)
    choices = {point["eta"]: point["kl"] for point in summary["eta_choices"]}
    assert list(choices) == [0.25, 1] and summary["eta"] == min(choices, key=choices.get), "none is within the budget"
    assert f"Kept eta {summary['eta']:g}, chosen on 3 other prompts." in capsys.readouterr().out
    before, trained, kept = (
        load_file(folder / "model.safetensors") for folder in (assets / "lm", out / "unscaled", out)
    )
    for name, value in kept.items():
        expected = before[name].double() + summary["eta"] * (trained[name].double() - before[name].double())
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-7)
    assert any(not torch.equal(kept[name], trained[name]) for name in kept) or summary["eta"] == 1


def test_a_budget_without_etas_is_refused(assets, tmp_path, capsys):
    assert "`--kl_budget` 1 needs `--keep_best_eta`" in error_of(
        capsys, flags(assets, output_dir=tmp_path, kl_budget=1)
    )


@pytest.fixture
def no_report(monkeypatch):
    """Drawing the report takes longer than these runs; one test reads it."""
    monkeypatch.setattr(reports_runs, "write_page", lambda *args, **kwargs: None)


def test_a_policy_that_did_not_move_measures_the_same_twice(assets, tmp_path, no_report):
    still = {"learning_rate": 0, "num_report_samples": 2, "policy_ema_decay": 0.5}
    detoxification.main(flags(assets, output_dir=tmp_path, **(SMALL | still)))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["kl"] == summary["kl_ema"] == 0
    for name in ("toxicity", "perplexity", "distinct_2", "mean_length", "empty_fraction", "toxicity_ci95"):
        assert summary[f"{name}_before"] == summary[f"{name}_after"] == summary[f"{name}_ema"]


def test_lora_leaves_an_adapter(assets, tmp_path, no_report):
    changes = {
        "use_peft": True,
        "critic": "adapter",
        "lora_r": 2,
        "lora_target_modules": "all-linear",
        "frontier_prompts": 0,
    }
    detoxification.main(flags(assets, output_dir=tmp_path, **(SMALL | changes)))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["kl_at_optimum"] is None and summary["kl"] != 0
    saved = AutoPeftModelForCausalLM.from_pretrained(tmp_path)
    assert any(float(p.abs().max()) > 0 for name, p in saved.named_parameters() if "lora_B" in name)
    assert Path(tmp_path / "critic" / "adapter_model.safetensors").is_file()


INTERRUPTED = """
import sys
from transformers import Trainer
from recipes import detoxification
from trl_ext.reports import runs as reports_runs
from trl_ext.running.cli import run
from tests.recipes.killed_recipe import InterruptAt

train = Trainer.train

def interrupted(self, *args, **kwargs):
    self.add_callback(InterruptAt(1))
    return train(self, *args, **kwargs)

Trainer.train = interrupted
run(lambda: detoxification.main(sys.argv[1:]))
"""


def test_interrupted_it_writes_a_checkpoint_and_goes_on_from_it(assets, tmp_path, no_report):
    changes = SMALL | {"total_episodes": 32, "frontier_prompts": 0}
    detoxification.main(flags(assets, output_dir=tmp_path / "whole", **changes))
    argv = flags(assets, output_dir=tmp_path / "stopped", **changes)
    environment = os.environ | {"PYTHONPATH": python_path()}
    script = tmp_path / "interrupted.py"
    script.write_text(INTERRUPTED)
    command = [sys.executable, script, *argv]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 130 and "Traceback" not in done.stderr, done.stderr[-2000:]
    line = done.stderr.splitlines()[-1]
    assert line.startswith("interrupted at step 2 of 8; a checkpoint of this step is written. To go on: python")
    assert line.endswith(" --resume_from_checkpoint true")
    detoxification.main([*argv, "--resume_from_checkpoint", "true"])
    whole, stopped = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)


def test_a_run_that_starts_anew_keeps_the_earlier_one(assets, tmp_path, capsys, no_report):
    for seed in (1, 2):
        detoxification.main(flags(assets, output_dir=tmp_path, **(SMALL | {"seed": seed, "frontier_prompts": 0})))
    assert f"The earlier run in '{tmp_path}' is now in '{tmp_path / 'earlier-run-1'}'" in capsys.readouterr().out
    earlier, later = (load_file(path / "model.safetensors") for path in (tmp_path / "earlier-run-1", tmp_path))
    assert any(not torch.equal(earlier[name], later[name]) for name in later)
    assert (tmp_path / "earlier-run-1" / "summary.json").is_file()
