# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""`trl_ext compare` from end to end on tiny models: measures, rewards, win rate, table, JSON and refusals."""

import io
import json
import statistics

import pytest
from peft import LoraConfig, get_peft_model
from rich.console import Console
from transformers import AutoModelForCausalLM

from tests.tiny_models import save_tiny, tiny_causal_lm, tiny_classifier, tiny_tokenizer
from trl_ext.commands.compare import main
from trl_ext.comparing.measuring import measure
from trl_ext.comparing.request import prepare
from trl_ext.comparing.showing import comparison_table
from trl_ext.messages.printable import printable

REWARDS = """
def letters(completions, **columns):
    return [float(len(text if isinstance(text, str) else text[0]["content"])) for text in completions]

def tokens(completion_ids, **columns):
    return [float(len(ids)) for ids in completion_ids]

def of_column(completions, bonus, **columns):
    return [float(value) if value else None for value in bonus]
"""
PROMPTS = [f"the cat {i}" for i in range(6)]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    save_tiny(folder / "a", tiny_causal_lm(eos_token_id=[2, *range(40, 70)]))
    save_tiny(folder / "b", tiny_causal_lm(seed=1))
    save_tiny(folder / "untemplated", tiny_causal_lm(), tiny_tokenizer(chat_template=False))
    save_tiny(folder / "judge", tiny_classifier())
    (folder / "scores.py").write_text(REWARDS)
    rows = [{"prompt": prompt, "bonus": i % 3} for i, prompt in enumerate(PROMPTS)]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    chats = [{"prompt": [{"role": "user", "content": prompt}]} for prompt in PROMPTS]
    (folder / "chats.jsonl").write_text("\n".join(map(json.dumps, chats)))
    return folder


def arguments(world, *more: object, prompts: str = "prompts.jsonl") -> list[str]:
    given = [world / "a", world / "b", "--prompts", world / prompts, "--max_completion_length", 5]
    return [str(value) for value in (*given, "--num_resamples", 50, *more)]


@pytest.mark.parametrize("prompts", ["prompts.jsonl", "chats.jsonl"])
def test_rewards_and_win_rate_are_those_of_the_samples(world, tmp_path, capsys, prompts):
    letters, output = f"{world / 'scores.py'}:letters", tmp_path / "new" / "out.json"
    options = ["--reward", letters, "--judge", letters, "--toxicity_model", world / "judge", "--show", 2]
    main(arguments(world, *options, "--output", output, prompts=prompts))
    results, out = json.loads(output.read_text()), capsys.readouterr().out
    rows, measures = results["samples"], results["measures"]
    lengths = {side: [len(row[side]) for row in rows] for side in ("model", "baseline")}
    for side in lengths:
        assert measures["rewards/letters"][side]["estimate"] == pytest.approx(statistics.fmean(lengths[side]))
        assert [row["scores"][side]["letters"] for row in rows] == lengths[side]
        assert 0 <= rows[0]["scores"][side]["toxicity"] <= 1
    pairs = list(zip(lengths["model"], lengths["baseline"], strict=True))
    assert [row["outcome"] for row in rows] == [(one > other) - (one < other) for one, other in pairs]
    rate = statistics.fmean((row["outcome"] + 1) / 2 for row in rows)
    assert results["win_rate"]["win_rate"]["estimate"] == pytest.approx(rate)
    assert results["win_rate"]["wins"] == [row["outcome"] for row in rows].count(1)
    assert f"Win rate by {letters}: {rate:.1%}" in out and "1. the cat 0" in out and "3. the cat 2" not in out
    assert "\x1b" not in out and out.endswith(f"{output}\n") and "perplexity" in out


def test_columns_reach_the_rewards_and_none_counts_nowhere(world, tmp_path):
    output = tmp_path / "out.json"
    main(arguments(world, "--reward", f"{world / 'scores.py'}:of_column", "--output", output))
    measures = json.loads(output.read_text())["measures"]
    assert measures["rewards/of_column"]["model"]["estimate"] == pytest.approx((1 + 2 + 1 + 2) / 4)
    assert measures["rewards/of_column"]["difference"]["estimate"] == 0


def test_a_judge_sees_the_tokens_as_a_reward_does(world, tmp_path):
    output = tmp_path / "out.json"
    main(arguments(world, "--judge", f"{world / 'scores.py'}:tokens", "--output", output))
    results = json.loads(output.read_text())
    assert results["win_rate"]["left_out"] == 0 and results["win_rate"]["losses"] >= 3, "a ends early"


def test_a_model_does_not_differ_from_itself_and_wins_half(world, tmp_path):
    letters, output = f"{world / 'scores.py'}:letters", tmp_path / "out.json"
    given = [world / "a", world / "a", "--prompts", world / "prompts.jsonl", "--judge", letters, "--output", output]
    main([str(value) for value in (*given, "--max_completion_length", 5, "--num_resamples", 50)])
    results = json.loads(output.read_text())
    assert results["win_rate"]["bootstrap"] == {"estimate": 0.5, "low": 0.5, "high": 0.5}
    for name, row in results["measures"].items():
        if row["difference"]["estimate"] is not None:
            assert set(row["difference"].values()) == {0.0}, name


def test_the_base_of_an_adapter_is_the_baseline_and_the_reference(world, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(world / "b")
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "run")
    prompts = str(world / "prompts.jsonl")
    options = {"sampling": {"max_completion_length": 5}, "num_resamples": 20}
    off = measure(prepare(str(tmp_path / "run"), None, prompts, **options))
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    tiny_tokenizer().save_pretrained(tmp_path / "merged")
    whole = measure(prepare(str(tmp_path / "merged"), str(world / "b"), prompts, **options))
    for one, other in zip(off.sides, whole.sides, strict=True):
        assert one.samples.completion_ids == other.samples.completion_ids
    assert off.measures["perplexity"]["model"].estimate == pytest.approx(
        whole.measures["perplexity"]["model"].estimate, rel=1e-4
    )


def test_the_settings_of_the_run_are_those_of_both(world, tmp_path):
    save_tiny(tmp_path / "run", tiny_causal_lm())
    (tmp_path / "run" / "ppo_config.json").write_text('{"temperature": 0.5, "max_completion_length": 3}')
    prompts = str(world / "prompts.jsonl")
    for given in (("run", "b"), ("b", "run")):
        names = [str(tmp_path / name if name == "run" else world / name) for name in given]
        sampling = prepare(*names, prompts).sampling
        assert (sampling.temperature, sampling.max_completion_length) == (0.5, 3)
    assert prepare(str(world / "a"), str(world / "b"), prompts).sampling.max_completion_length == 64


@pytest.mark.parametrize("width", [120, 80, 50])
def test_the_table_fits_the_terminal(world, width):
    options = {"sampling": {"max_completion_length": 5}, "num_resamples": 20}
    comparison = measure(prepare(str(world / "a"), str(world / "b"), str(world / "prompts.jsonl"), **options))
    console = Console(file=io.StringIO(), force_terminal=True, width=width)
    console.print(comparison_table(comparison, width))
    lines = [printable(line) for line in console.file.getvalue().splitlines()]
    assert max(map(len, lines)) <= width and any(line.startswith("perplexity") for line in lines)
    row = next(i for i, line in enumerate(lines) if line.startswith("mean"))
    assert "*" in "".join(lines[row : row + 2]), "a ends early"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num_prompts", "0"], "--num_prompts is 0"),
        (["--show", "-1"], "--show is -1"),
        (["--prompt_column", "question"], "no column 'question'"),
        (["--reference", "./nothing"], "`--reference` './nothing' is a folder that does not exist"),
        (["--toxicity_model", "./nothing"], "'./nothing' cannot be loaded"),
        (["--judge", "nothing.py:f"], "`--judge nothing.py:f`"),
        (["--judge_endpoint", "http://localhost:1/v1"], "`--judge_endpoint` and `--judge_model` belong together"),
        (["--margin", "-1", "--judge", "{scores}:letters"], "`margin` is -1.0"),
        (["--reward", "{scores}:letter"], "did you mean `letters`?"),
        (["--output", "{folder}"], "`--output {folder}` is a folder"),
    ],
)
def test_refusals_are_one_line_before_anything_is_loaded(world, capsys, monkeypatch, options, message):
    places = {"scores": world / "scores.py", "folder": world}
    monkeypatch.setattr("trl_ext.comparing.measuring.load_pair", lambda pair: pytest.fail("loaded"))
    with pytest.raises(SystemExit) as end:
        main(arguments(world, *(option.format(**places) for option in options)))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert end.value.code == 2 and len(lines) == 1 and message.format(**places) in lines[0]


def test_a_second_model_is_asked_for_where_none_is_recorded(world, capsys):
    with pytest.raises(SystemExit):
        main([str(world / "a"), "--prompts", str(world / "prompts.jsonl")])
    assert "does not record which model its training began from" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(world / "untemplated"), str(world / "b"), "--prompts", str(world / "chats.jsonl")])
    assert "has no chat template; give texts." in capsys.readouterr().err


def test_a_star_is_explained_only_where_there_is_one(world):
    options = {"sampling": {"max_completion_length": 5}, "num_resamples": 20}
    for names, has_star in ((("a", "a"), False), (("a", "b"), True)):
        pair = [str(world / name) for name in names]
        table = comparison_table(measure(prepare(*pair, str(world / "prompts.jsonl"), **options)), 120)
        assert (table.caption is not None) == has_star
