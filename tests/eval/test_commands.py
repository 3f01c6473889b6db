# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The three metrics loaded by path, and the two command lines from end to end, on tiny models and offline."""

import json
import math
from pathlib import Path

import evaluate
import pytest
import torch

from eval.quality import frontier
from eval.quality.__main__ import main
from tests.tiny_models import VOCAB_SIZE, save_tiny, tiny_causal_lm, tiny_classifier, tiny_tokenizer
from trl_ext.evaluation.diversity import Diversity
from trl_ext.evaluation.toxicity import Toxicity

QUALITY = Path(__file__).parents[2] / "eval" / "quality"
EARLY_ENDS = [2, *range(40, 70)]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two language models, one of them uniform, a judge that calls everything toxic, and prompts."""
    folder = tmp_path_factory.mktemp("world")
    uniform = tiny_causal_lm()
    for parameter in uniform.parameters():
        torch.nn.init.zeros_(parameter)
    judge = tiny_classifier(("toxic", "neutral"))
    torch.nn.init.zeros_(judge.classifier.weight)
    judge.classifier.bias.data = torch.tensor([math.log(3.0), 0.0])
    save_tiny(folder / "lm", tiny_causal_lm(eos_token_id=EARLY_ENDS))
    save_tiny(folder / "uniform", uniform)
    save_tiny(folder / "judge", judge)
    save_tiny(folder / "classifier", tiny_classifier(seed=1))
    rows = [{"prompt": {"text": f"the cat {i}"}} for i in range(6)]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_diversity_by_path():
    metric = evaluate.load(str(QUALITY / "diversity"))
    result = metric.compute(predictions=["a b a b", "a b", "", ""], max_n=3)
    assert result["distinct_1"] == pytest.approx(2 / 6)
    assert result["distinct_2"] == pytest.approx(2 / 4)
    assert result["distinct_3"] == pytest.approx(1.0)
    assert result["empty_fraction"] == 0.5
    characters = metric.compute(predictions=["今天", "今"], tokenization="characters")
    assert characters["distinct_1"] == pytest.approx(2 / 3)


def test_the_modules_are_the_classes_of_the_package(world):
    predictions, judge = ["a b", "a c", ""], str(world / "judge")
    loaded = evaluate.load(str(QUALITY / "diversity")).compute(predictions=predictions)
    assert Diversity().compute(predictions=predictions) == loaded
    loaded = evaluate.load(str(QUALITY / "toxicity")).compute(predictions=predictions, model=judge)
    assert Toxicity().compute(predictions=predictions, model=judge) == loaded


def test_perplexity_by_path(world):
    metric = evaluate.load(str(QUALITY / "perplexity"))
    result = metric.compute(
        predictions=[" sat on", "", " ran"], prompts=["the cat", "a", "a dog"], model=str(world / "uniform")
    )
    assert result["perplexity"] == pytest.approx(VOCAB_SIZE)
    assert result["num_tokens"][1] == 0 and result["empty_fraction"] == pytest.approx(1 / 3)
    loaded = metric.compute(predictions=[" sat"], prompts=["the"], model=tiny_causal_lm(), tokenizer=tiny_tokenizer())
    assert loaded["perplexities"] == pytest.approx([loaded["perplexity"]])
    with pytest.raises(ValueError, match="`tokenizer`"):
        metric.compute(predictions=[" sat"], prompts=["the"], model=tiny_causal_lm())


def test_toxicity_by_path(world):
    metric = evaluate.load(str(QUALITY / "toxicity"))
    result = metric.compute(predictions=["a", "", "b c"], model=str(world / "judge"), batch_size=2)
    assert result["scores"] == pytest.approx([0.75] * 3, abs=1e-5)
    assert result["mean_probability"] == pytest.approx(0.75, abs=1e-5)
    assert result["toxicity"] == 1.0
    other = metric.compute(predictions=["a"], model=str(world / "judge"), toxic_label="neutral")
    assert (other["toxicity"], other["mean_probability"]) == pytest.approx((0.0, 0.25), abs=1e-5)


def arguments(world, tmp_path, **options):
    given = {
        "model": world / "lm",
        "baseline": world / "uniform",
        "prompts": world / "prompts.jsonl",
        "judge_model": world / "judge",
        "max_new_tokens": 5,
        "num_resamples": 50,
        "output": tmp_path / "out",
    } | options
    return [text for name, value in given.items() for text in (f"--{name}", str(value))]


def test_comparison_from_end_to_end(world, tmp_path, capsys):
    assert main(arguments(world, tmp_path)) == 0
    out = capsys.readouterr().out
    assert "perplexity" in out and "quality.json" in out
    results = json.loads((tmp_path / "out" / "quality.json").read_text())
    measures = results["measures"]
    assert results["settings"]["num_prompts"] == 6
    assert set(measures) == {
        *("toxicity", "toxicity_probability", "perplexity", "distinct_1", "distinct_2"),
        *("self_bleu", "mean_length", "empty_fraction", "terminated_fraction"),
    }
    # The uniform baseline is the reference: its perplexity is the vocabulary's size for any text.
    assert measures["perplexity"]["model"]["estimate"] == pytest.approx(VOCAB_SIZE, rel=1e-4)
    assert measures["perplexity"]["ratio"]["high"] == pytest.approx(1.0, rel=1e-4)
    wilson = 6 / (6 + 1.959964**2)  # the lower end for 6 of 6
    assert measures["toxicity"]["model"] == {"estimate": 1.0, "low": pytest.approx(wilson), "high": 1.0}
    difference = measures["mean_length"]["difference"]
    assert difference["low"] <= difference["estimate"] <= difference["high"] < 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "completions.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == [f"the cat {i}" for i in range(6)]


def test_a_model_does_not_differ_from_itself(world, tmp_path):
    assert main(arguments(world, tmp_path, baseline=world / "lm", reference=world / "lm")) == 0
    for name, row in json.loads((tmp_path / "out" / "quality.json").read_text())["measures"].items():
        if row["difference"]["estimate"] is not None:
            assert set(row["difference"].values()) == {0.0}, name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": "./nothing.jsonl"}, "'./nothing.jsonl' does not exist"),
        ({"prompt_column": "question"}, "no column 'question'"),
        ({"num_prompts": 0}, "--num_prompts is 0"),
        ({"model": "./nothing"}, "`model` './nothing' is a folder that does not exist"),
        ({"judge_model": "./nothing"}, "'./nothing' cannot be loaded"),
    ],
)
def test_errors_are_one_line(world, tmp_path, capsys, options, message):
    assert main(arguments(world, tmp_path, **options)) == 2
    (line,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("error: ")]
    assert message in line


def test_output_that_cannot_be_written(world, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(arguments(world, tmp_path, output=tmp_path / "file" / "out")) == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("command", [main, frontier.main])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        command(["--help"])
    assert stop.value.code == 0 and "--judge_model" in capsys.readouterr().out


def frontier_arguments(world, tmp_path, *more):
    options = ["--model", world / "lm", "--prompts", world / "prompts.jsonl", "--max_new_tokens", 4, "--samples", 16]
    options += ["--toxicity_model", world / "classifier", "--output", tmp_path / "out" / "frontier.json", *more]
    return [str(option) for option in options]


def test_frontier_from_end_to_end(world, tmp_path, capsys):
    plot = tmp_path / "out" / "frontier.png"
    more = ["--judge_model", world / "judge", "--plot", plot, "--betas", 1e6, 1.0, 1e-6]
    assert frontier.main(frontier_arguments(world, tmp_path, *more)) == 0
    results = json.loads((tmp_path / "out" / "frontier.json").read_text())
    flat, middle, sharp = results["points"]
    # A huge beta leaves the reference as it is; a tiny one picks each prompt's best of 16.
    assert flat["kl"] == pytest.approx(0.0, abs=1e-6) and flat["ess"] == pytest.approx(16.0)
    for name, value in results["reference"].items():
        assert flat[name] == pytest.approx(value, rel=1e-4)
    assert flat["reward"] < middle["reward"] < sharp["reward"]
    assert 0 < sharp["kl"] <= math.log(16) + 1e-9
    assert flat["toxicity"] == 1.0 and flat["toxicity_probability"] == pytest.approx(0.75, abs=1e-5)
    assert plot.read_bytes().startswith(b"\x89PNG")
    best = results["best_of_n"]
    assert [row["n"] for row in best] == [1, 2, 4, 8, 16]
    assert best[0]["reward"] == pytest.approx(results["reference"]["reward"])
    assert best[-1]["reward"] == pytest.approx(sharp["reward"], rel=1e-3)  # the best of all 16
    out = capsys.readouterr().out
    assert "Optimal reward over KL" in out and "Best of n by the reward" in out


def test_frontier_errors_are_one_line(world, tmp_path, capsys):
    assert frontier.main(frontier_arguments(world, tmp_path, "--betas", 0)) == 2
    assert "error: `beta` is 0.0" in capsys.readouterr().err
    assert frontier.main(frontier_arguments(world, tmp_path, "--samples", 0)) == 2
    assert "--samples is 0" in capsys.readouterr().err
