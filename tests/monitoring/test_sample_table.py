# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
import io
import math
import sys
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from transformers.integrations import TensorBoardCallback

from trl_ext.monitoring.samples import SampleTable, as_text, log_samples, shorten

CHAT = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Do you like my cake?"}]


def _table(num_rows: int | None = None, **changes: Any) -> SampleTable:
    samples: dict[str, Any] = {
        "prompts": ["The sky is", "The sun is", "The sea is"],
        "completions": [" blue.", " warm.", " deep."],
        "rewards": {"toxicity": [1.5, None, -2.0], "length": [0.0, 1.0, math.nan]},
        "advantages": [0.25, -0.5, 1.0],
        "step": 7,
    }
    table = SampleTable(num_rows)
    table.fill(**(samples | changes))
    return table


def _printed(table: SampleTable, width: int = 160) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    table.print(console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_print_shows_every_column_and_values():
    output = _printed(_table())
    for text in ("Step 7", "Prompt", "Completion", "toxicity", "length", "Advantage", "The sky is", "blue.", "1.50"):
        assert text in output
    second_row = next(line for line in output.splitlines() if "The sun is" in line)
    assert second_row.split() == [
        "│",
        "│",
        "The",
        "sun",
        "is",
        "│",
        "warm.",
        "│",
        "–",
        "│",
        "1.00",
        "│",
        "-0.50",
        "│",
        "│",
    ]
    assert "nan" in output


def test_first_rows_are_shown_and_the_rest_counted():
    table = _table(num_rows=2)
    output = _printed(table)
    assert "The sky is" in output and "The sun is" in output and "The sea is" not in output
    assert "1 more not shown" in output
    assert [row["prompt"] for row in table.to_rows()] == ["The sky is", "The sun is"]
    assert "more not shown" not in _printed(_table())


@pytest.mark.parametrize("text", ["[/b] no [bold]markup[/bold]", "[link=http://x]y[/link]", "[red", r"\[a]", ":smile:"])
def test_markup_is_shown_as_it_is(text: str):
    conversation = [{"role": text, "content": text}]
    table = _table(
        prompts=[text, "p", "p"],
        completions=[conversation, "c", "c"],
        rewards={text: [1.0, 2.0, 3.0]},
        advantages=None,
    )
    assert _printed(table).count(text) == 4


def test_control_characters_cannot_touch_the_terminal():
    table = _table(completions=["\x1b[2Jcleared", "bell\x07", "half an emoji \ud83d"])
    output = _printed(table)
    assert "\x1b" not in output and "\x07" not in output
    assert "[2J" not in output and "cleared" in output
    output.encode("utf-8")


def test_empty_completions_are_visible():
    assert _printed(_table(completions=["", "  ", []])).count("(empty)") == 3


def test_conversations_are_rendered_by_role():
    output = _printed(_table(prompts=[CHAT, CHAT, CHAT], num_rows=1))
    assert "system: Be kind." in output and "user: Do you like my cake?" in output
    assert "'role'" not in output


def test_long_texts_keep_both_ends():
    text = "start " + "x" * 5000 + " end?"
    output = " ".join(_printed(_table(prompts=[text, "p", "p"]), width=1000).split())
    assert "start x" in output and "x end?" in output and "4611 characters" in output
    assert output.count("x") < 500
    assert shorten("a" * 400) == "a" * 400


def test_empty_table_prints_nothing():
    assert _printed(SampleTable()) == ""


def test_print_uses_the_standard_output(capsys: pytest.CaptureFixture[str]):
    _table().print()
    assert "The sky is" in capsys.readouterr().out


def test_columns_of_different_length_are_refused():
    with pytest.raises(ValueError, match="'toxicity'.*1 entries for 3 prompts"):
        _table(rewards={"toxicity": [1.0]})


@pytest.mark.parametrize("num_rows", [0, -1])
def test_num_rows_below_one_is_refused(num_rows: int):
    with pytest.raises(ValueError, match=f"num_rows is {num_rows}"):
        SampleTable(num_rows)


def test_as_dict_has_all_samples_as_they_are():
    table = _table(num_rows=1, prompts=[CHAT] * 3)
    assert table.as_dict() == {
        "step": [7, 7, 7],
        "prompt": [CHAT] * 3,
        "completion": [" blue.", " warm.", " deep."],
        "toxicity": [1.5, None, -2.0],
        "length": [0.0, 1.0, pytest.approx(math.nan, nan_ok=True)],
        "advantage": [0.25, -0.5, 1.0],
    }


def test_a_reward_may_have_the_name_of_another_column():
    columns = _table(rewards={"prompt": [1.0, 2.0, 3.0]}).as_dict()
    assert columns["prompt"][0] == "The sky is"
    assert columns["rewards/prompt"] == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"role": "assistant", "content": [{"type": "image"}, {"type": "text", "text": "a cat"}]}, "[image]\na cat"),
        ({"role": "assistant", "reasoning_content": "hm", "content": "yes"}, "hm\nyes"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": "{}"}}]}, "add({})"),
        ({"role": "assistant", "content": None}, ""),
    ],
)
def test_as_text_of_other_messages(message: dict[str, Any], expected: str):
    assert as_text([message]) == f"assistant: {expected}"


class FakeLogger(SimpleNamespace):
    """Stands in for wandb and trackio: the functions of theirs that TRL calls."""

    def __init__(self, name: str, run: object) -> None:
        super().__init__(__name__=name, run=run, logged=[], Table=lambda dataframe: dataframe)

    def log(self, entry: dict[str, Any]) -> None:
        if self.run is None:
            raise RuntimeError("call init() first")
        self.logged.append(entry)


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_table_goes_to_configured_loggers_only(monkeypatch: pytest.MonkeyPatch, name: str):
    loggers = {key: FakeLogger(key, run=object()) for key in ("wandb", "trackio")}
    for key, logger in loggers.items():
        monkeypatch.setitem(sys.modules, key, logger)
    log_samples(_table(num_rows=2, prompts=[CHAT] * 3), [name, "codecarbon"], step=7)
    (entry,) = loggers.pop(name).logged
    assert entry["train/global_step"] == 7
    assert list(entry["completions"].columns) == ["step", "prompt", "completion", "toxicity", "length", "advantage"]
    assert list(entry["completions"]["prompt"]) == ["system: Be kind.\nuser: Do you like my cake?"] * 2
    assert [logger.logged for logger in loggers.values()] == [[]]


def test_loggers_without_a_run_are_passed_over(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "wandb", FakeLogger("wandb", run=None))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log_samples(_table(), ["wandb"], step=7)
    monkeypatch.setitem(sys.modules, "trackio", FakeLogger("trackio", run=None))
    with pytest.warns(UserWarning, match="not logged to trackio: call init"):
        log_samples(_table(), ["trackio"], step=7)


def test_loggers_that_are_not_installed_are_passed_over(monkeypatch: pytest.MonkeyPatch):
    names = ["wandb", "trackio", "comet_ml", "mlflow", "tensorboard"]
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)
    log_samples(_table(), names, step=7)


def test_comet_and_mlflow_get_a_file(monkeypatch: pytest.MonkeyPatch):
    calls: list[dict[str, Any]] = []
    experiment = SimpleNamespace(log_table=lambda **call: calls.append(call))
    comet = SimpleNamespace(get_running_experiment=lambda: experiment)
    mlflow = SimpleNamespace(active_run=lambda: None, log_table=lambda **call: calls.append(call))
    monkeypatch.setitem(sys.modules, "comet_ml", comet)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    log_samples(_table(), ["comet_ml", "mlflow"], step=7)
    mlflow.active_run = lambda: object()
    log_samples(_table(), ["mlflow"], step=8)
    assert [call.get("filename", call.get("artifact_file")) for call in calls] == [
        "completions_00007.csv",
        "completions/completions_00008.json",
    ]
    assert [len(call[key]) for call, key in zip(calls, ("tabular_data", "data"), strict=True)] == [3, 3]


def test_tensorboard_gets_escaped_markdown():
    written: list[tuple[Any, ...]] = []

    class Callback(TensorBoardCallback):
        def __init__(self) -> None:
            self.tb_writer = SimpleNamespace(add_text=lambda *call: written.append(call))

    table = _table(completions=["a|b\n<script>", "*c*", "d"])
    log_samples(table, ["tensorboard"], step=7, callbacks=[object(), Callback()])
    ((tag, text, step),) = written
    assert (tag, step) == ("completions", 7)
    lines = text.splitlines()
    assert len(lines) == 5
    assert lines[0] == "| step | prompt | completion | toxicity | length | advantage |"
    assert lines[2] == r"| 7 | The sky is | a\|b<br>&lt;script&gt; | 1\.50 | 0\.00 | 0\.25 |"
    assert r"\*c\*" in lines[3] and "| – |" in lines[3]


def test_extra_columns_are_shown_beside_the_texts():
    table = SampleTable()
    extra = {"verdict": ["good [bold]", None], "length": ["short", "long"]}
    table.fill(["a", "b"], ["c", "d"], {"length": [1.0, 2.0]}, [0.5, 0.5], 3, extra)
    assert table.to_rows()[0] == {
        "step": 3,
        "prompt": "a",
        "completion": "c",
        "length": 1.0,
        "verdict": "good [bold]",
        "extra/length": "short",
        "advantage": 0.5,
    }
    console = Console(file=io.StringIO(), width=120)
    table.print(console)
    printed = console.file.getvalue()
    assert "verdict" in printed and "good [bold]" in printed and "extra/length" in printed
    with pytest.raises(ValueError, match="'verdict' of the sample table has 1 entries for 2 prompts"):
        table.fill(["a", "b"], ["c", "d"], {}, extra={"verdict": ["good"]})
