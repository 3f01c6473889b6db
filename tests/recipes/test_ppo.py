# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The recipe `ppo`: prompts and rewards of a user's own, from the command line alone."""

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from transformers import Trainer

from recipes import ppo
from tests import tiny_models
from tests.bad_inputs.case import Case, check, table
from tests.launching import run_command
from tests.recipes.killed_recipe import InterruptAt
from trl_ext.config import PPOConfig
from trl_ext.rewards import reward_by_name
from trl_ext.rewards.by_name import FORMS
from trl_ext.running.cli import run

REWARDS = """
import asyncio

def brevity(completions, **kwargs):
    return [-len(text) / 20 for text in completions]

async def right(prompts, completions, answer):
    await asyncio.sleep(0)
    return [float(a in c) if a else None for a, c in zip(answer, completions)]

def short_list(completions):
    return [1.0]

def needs_column(completions, solution):
    return [1.0 for _ in completions]

def has_a_typo(completions):
    return [legnth(text) for text in completions]

def parses(completions):
    return [float(text) for text in completions]

class Broken:
    def __init__(self):
        raise OSError("no such file")
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy, a classifier, a reward model and prompts, all tiny and random."""
    root = tmp_path_factory.mktemp("world")
    tiny_models.save_tiny(root / "lm", tiny_models.tiny_causal_lm())
    tiny_models.save_tiny(root / "toxicity", tiny_models.tiny_classifier(seed=1))
    tiny_models.save_tiny(root / "preference", tiny_models.tiny_classifier(("reward",), seed=2))
    rows = [{"question": f"the {i}", "answer": "a" if i % 2 else ""} for i in range(24)]
    (root / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (root / "my_rewards.py").write_text(REWARDS)
    return root


@pytest.fixture
def folder(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder of a user."""
    for path in world.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_rewards", raising=False)  # another test's
    yield tmp_path
    sys.modules.pop("my_rewards", None)


SMALL = {
    "model_name_or_path": "lm", "dataset_name": "prompts.jsonl", "prompt_column": "question", "output_dir": "out",
    "max_completion_length": 8, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1,
    "total_episodes": 16, "num_mini_batches": 2, "learning_rate": 1e-2, "num_eval_prompts": 6, "logging_steps": 1,
    "save_strategy": "no", "use_cpu": True, "disable_tqdm": True,
}  # fmt: skip


def flags(*rewards: str, **changes: object) -> list[str]:
    """Command line of a small run; `name=None` leaves an option out."""
    values = {name: value for name, value in (SMALL | changes).items() if value is not None}
    given = [part for reward in rewards for part in ("--reward", reward)]
    return given + [part for name, value in values.items() for part in (f"--{name}", *str(value).split())]


def test_rewards_of_a_file_and_of_models(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rewards = ("my_rewards.py:brevity", "my_rewards.py:right", "toxicity:toxicity", "preference:preference")
    ppo.main(flags(*rewards, reward_weights="1 2 0.5 0.25"))
    out = folder / "out"
    assert capsys.readouterr().out.splitlines()[-1] == str(out / "summary.json")
    summary = json.loads((out / "summary.json").read_text())
    parts = [summary[f"rewards/{name}_after"] for name in ("brevity", "right", "non_toxicity", "preference")]
    assert None not in parts and summary["num_eval_prompts"] == 6 and summary["episodes"] == 16
    assert summary["kl"] != 0 and "reward_before" in summary
    assert "rewards/brevity" in (out / "report.html").read_text() or "brevity" in (out / "report.html").read_text()
    before, after = (load_file(path / "model.safetensors") for path in (Path("lm"), out))
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_judges_are_measured_beside_the_reward_and_categories_that_lose_are_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judged = ("my_rewards.py:right", "preference:preference")
    evaluating = {"eval_strategy": "steps", "eval_steps": 2, "num_eval_prompts": 12}
    argv = [part for judge in judged for part in ("--eval_reward", judge)]
    ppo.main(flags("my_rewards.py:brevity", category_column="answer", **evaluating) + argv)
    out = capsys.readouterr().out
    summary = json.loads((folder / "out" / "summary.json").read_text())
    assert {"judge/right_before", "judge/right_after", "judge/preference_after"} <= summary.keys()
    assert "judge right" in out and "judge preference" in out  # in the line of the evaluation, and in the table
    categories = summary["by_category"]
    assert list(categories) == ["reward", "judge/right", "judge/preference"] and len(categories["reward"]) == 2
    assert sum(row["prompts"] for row in categories["reward"].values()) == summary["num_eval_prompts"]
    sentence = "By category: the judge preference got worse"
    card, page = ((folder / "out" / name).read_text() for name in ("README.md", "report.html"))
    for text in (" ".join(out.split()), summary["verdict"], card, page):
        assert sentence in text
    assert "Judges at evaluation, never trained on" in page and "judge preference by category" in page


def test_a_yaml_file_with_lora_and_a_service(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bodies: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"rewards": [len(text) for text in bodies[-1]["completions"]]}).encode())

        def log_message(self, *args: object) -> None:
            pass

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    Path("mine.yaml").write_text(
        f"reward: http://me:passw@127.0.0.1:{server.server_port}/score?api_key=k3y\nuse_peft: true\nlora_r: 2\n"
        "lora_target_modules: all-linear\n"
    )
    ppo.main(["--config", "mine.yaml", *flags(num_report_samples=0)])
    server.shutdown()
    server.server_close()
    # a trial of two samples, the measurement before, two rollouts, the measurement after
    assert [len(body["prompts"]) for body in bodies] == [2, 6, 8, 8, 6]
    assert bodies[0].keys() == {"prompts", "completions", "completion_ids", "answer", "question"}
    assert bodies[0]["prompts"][0].startswith("the ")
    written = [path for path in Path("out").rglob("*") if path.suffix in (".json", ".html", ".md", ".jsonl", ".txt")]
    assert written and not [path for path in written if "k3y" in path.read_text() or "passw" in path.read_text()]
    saved = AutoPeftModelForCausalLM.from_pretrained("out")
    assert any(float(p.abs().max()) > 0 for name, p in saved.named_parameters() if "lora_B" in name)


def test_after_ctrl_c_it_goes_on_to_the_same_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"total_episodes": 32, "num_eval_prompts": 2, "num_report_samples": 0}
    ppo.main(flags("my_rewards.py:brevity", **(changes | {"output_dir": "whole"})))
    train = Trainer.train

    def interrupted(self: Trainer, *args: object, **kwargs: object) -> object:
        self.add_callback(InterruptAt(1))
        return train(self, *args, **kwargs)

    with monkeypatch.context() as patched, pytest.raises(SystemExit) as end:
        patched.setattr(Trainer, "train", interrupted)
        run(lambda: ppo.main(flags("my_rewards.py:brevity", **changes)))
    assert end.value.code == 130
    assert "interrupted at step 2 of 8; a checkpoint of this step is written" in capsys.readouterr().err
    ppo.main(flags("my_rewards.py:brevity", resume_from_checkpoint=True, **changes))
    whole, stopped = (load_file(Path(name) / "model.safetensors") for name in ("whole", "out"))
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)


def test_two_processes_by_accelerate(folder: Path) -> None:
    config = Path(ppo.__file__).parent / "configs" / "accelerate" / "ddp.yaml"
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(config), "--main_process_port", "0"]
    changes = {"per_device_train_batch_size": 4, "num_report_samples": 0}
    done = run_command([*launch, "-m", "trl_ext", "ppo", *flags("my_rewards.py:right", "preference", **changes)])
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Model and report:") == 1
    summary = json.loads(Path("out/summary.json").read_text())
    assert summary["episodes"] == 16 and "rewards/right_after" in summary


def test_values_of_a_repeated_list(folder: Path) -> None:
    parse = ppo.make_parser().parse
    Path("mine.yaml").write_text("reward: [a, b]\n")
    for words, rewards in {
        "": None,
        "--reward x": ["x"],
        "--reward x --kl_coef 1 --reward y": ["x", "y"],
        "--reward x y": ["x", "y"],
        "--reward=x --reward y": ["x", "y"],
        "--config mine.yaml": ["a", "b"],
        "--config mine.yaml --reward x --reward y": ["x", "y"],
    }.items():
        assert parse(words.split())[0].reward == rewards, words
    weights = ["--reward_weights", "-1", "--reward", "y", "--reward_weights", "0.5"]
    args: PPOConfig = parse(["--reward", "x", *weights, "--use_cpu"])[-2]
    assert args.reward_weights == [-1.0, 0.5] and args.use_cpu


def row(message: str, *rewards: str, kind: type[Exception] = ValueError, **changes: object) -> Case:
    argv = flags(*rewards, **changes)
    name = " ".join([*rewards, *(f"{key}={value}" for key, value in changes.items())]) or "nothing"
    return Case(name, lambda: ppo.main(argv), kind, message)


F = "my_rewards.py:brevity"
CASES = [
    row("With `--model_name_or_path` you must also give `--reward`; see `--help`."),
    row("With `--model_name_or_path` you must also give `--dataset_name`; see `--help`.", F, dataset_name=None),
    row(
        "`--reward my_rewards.py:brevety`: there is no function `brevety` in 'my_rewards.py'; did you mean `brevity`?",
        "my_rewards.py:brevety",
    ),
    row(f"`--reward brevity` is no model that can be loaded; give {FORMS}.", "brevity"),
    row(f"`--reward {F}` is given twice; give it once, with a `--reward_weights`.", F, F),
    row(
        "`--reward_weights` has 2 values and there are 1 rewards; give one weight for each `--reward`, in their order.",
        F, reward_weights="1 2",
    ),
    row(
        "The dataset 'prompts.jsonl' has no column 'prompt' (columns: question, answer); name the one that holds the "
        "prompts with `--prompt_column`.",
        F, prompt_column=None,
    ),
    row(
        "Reward function 'needs_column' asks for ['solution'], but there is only ['answer', 'completion_ids', "
        "'completions', 'log_extra', 'log_metric', 'on_progress', 'prompts', 'question', 'trainer_state']: add "
        "the column to the dataset or give the parameter a default.",
        "my_rewards.py:needs_column",
    ),
    row(
        "Reward function 'short_list' returned 1 rewards for 2 completions: return exactly one per completion.",
        "my_rewards.py:short_list",
    ),
    row(
        "Reward function 'has_a_typo' fails on a trial: line 18 of 'my_rewards.py' raises NameError: name 'legnth' is "
        "not defined.",
        "my_rewards.py:has_a_typo",
    ),
    row(
        "`--reward my_rewards.py:Broken` is called without arguments: line 25 of 'my_rewards.py' raises OSError: no "
        "such file.",
        "my_rewards.py:Broken",
    ),
    row(f"`--eval_reward {F}` is also a `--reward`, and a reward judges nothing; give another.", F, eval_reward=F),
    row(
        f"`--eval_reward ./{F}` is also a `--reward`, and a reward judges nothing; give another.", F,
        eval_reward=f"./{F}",
    ),
    row("`--eval_reward x` is given twice; give it once.", F, eval_reward="x x"),
    row(f"`--eval_reward brevity` is no model that can be loaded; give {FORMS}.", F, eval_reward="brevity"),
    row(
        "Judge 'short_list' returned 1 rewards for 2 completions: return exactly one per completion.",
        F, eval_reward="my_rewards.py:short_list",
    ),
    row(
        "`--category_column topic`: the prompts to evaluate on have no such column (columns: answer, prompt).",
        F, category_column="topic",
    ),
    row(
        "`--output_dir` is also `--model_name_or_path lm`, which would be overwritten; choose another.",
        F, output_dir="lm",
    ),
    row(
        "There is no whole checkpoint in 'FOLDER/out'; leave `--resume_from_checkpoint` out to start anew.",
        F, resume_from_checkpoint=True,
    ),
]  # fmt: skip


@table(CASES)
def test_what_cannot_work_is_refused_before_the_policy_is_loaded(
    case: Case, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ppo, "PPOTrainer", lambda **options: pytest.fail("too late"))
    check(case._replace(message=case.message.replace("FOLDER", str(folder))))


def test_a_reward_that_fails_on_made_up_text_is_a_warning(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Reached(Exception):
        pass

    def reached(**options: object) -> None:
        raise Reached

    monkeypatch.setattr(ppo, "PPOTrainer", reached)
    with pytest.raises(Reached), pytest.warns(UserWarning, match=r"'parses' fails on made-up completions \(line 21 of"):
        ppo.main(flags("my_rewards.py:parses"))


def test_the_files_parse_and_the_examples_are_of_this_command(tmp_path: Path) -> None:
    for path in sorted(Path(ppo.__file__).parent.glob("configs/ppo/*.yaml")):
        args = ppo.make_parser().parse_recipe(["--config", str(path), "--output_dir", str(tmp_path)])[-2]
        assert args.output_dir == str(tmp_path)
    assert len(Path(ppo.__file__).read_text().splitlines()) <= 150  # a script that reads top to bottom


def test_the_rewards_to_copy() -> None:
    file = Path(ppo.__file__).parent / "example_rewards.py"
    brevity, enough_words, correct = (
        reward_by_name(f"{file}:{name}") for name in ("brevity", "enough_words", "correct")
    )
    assert brevity(["ab"]) == [-0.02] and enough_words(["a b", "a " * 9]) == [-1.875, 0.0]
    assert correct(["4 is", "5", "x"], answer=["4", "4", ""]) == [1.0, 0.0, None]
