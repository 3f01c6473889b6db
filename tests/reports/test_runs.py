# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The report of a run of `PPOTrainer`: written in one call, drawn again from its folder, compared with another."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from tests import scripted, tiny_models
from trl_ext import PPOTrainer
from trl_ext.commands import main
from trl_ext.evaluation.scored import score_policy
from trl_ext.reports import Report, load_run, report_run, write_report
from trl_ext.reports.content import DATA
from trl_ext.running.policy import policy_of


def brevity(completions: list[str], **kwargs: Any) -> list[float]:
    return [-len(text) / 10 for text in completions]


def sometimes(completions: list[str], word: list[str], **kwargs: Any) -> list[float | None]:
    return [None if len(text) % 3 == 0 else float(w in text) for text, w in zip(completions, word, strict=True)]


def _rows(n: int) -> Dataset:
    return scripted.prompts(n).add_column("word", ["a", "e"] * (n // 2))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PPOTrainer, dict[str, Any]]:
    """A run of two reward functions with evaluations and a checkpoint, and its summary."""
    folder = tmp_path_factory.mktemp("machine")
    model = tiny_models.save_tiny(folder / "tiny-lm", tiny_models.tiny_causal_lm())
    trainer = scripted.trainer(
        folder / "run",
        scripted=False,
        model=model,
        reward_funcs=[brevity, sometimes],
        reward_weights=[1.0, 2.0],
        train_dataset=_rows(16),
        eval_dataset=_rows(8),
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        kl_target=0.5,
    )
    columns = trainer.eval_dataset[:]
    before = score_policy(policy_of(trainer), trainer.rewards, columns, seed=1)
    trainer.train()
    after = score_policy(policy_of(trainer), trainer.rewards, columns, seed=1)
    summary = report_run(trainer, before, after, title="My run", seconds={"train": 2.0, "measure": 1.0})
    return folder / "run", trainer, summary


def test_scores_are_those_of_training(run: tuple[Path, PPOTrainer, dict[str, Any]]) -> None:
    _, trainer, _ = run
    scored = score_policy(policy_of(trainer), trainer.rewards, trainer.eval_dataset[:], seed=2, missing_eos_penalty=4.0)
    words = trainer.eval_dataset["word"][:]
    assert scored.rewards["brevity"] == pytest.approx(brevity(scored.samples.completions))
    assert scored.rewards["sometimes"] == sometimes(scored.samples.completions, words)
    for i, total in enumerate(scored.totals):
        extra = scored.rewards["sometimes"][i]
        penalty = 0.0 if scored.samples.terminated[i] else 4.0
        assert total == pytest.approx(scored.rewards["brevity"][i] + 2 * (extra or 0.0) - penalty, abs=1e-5)  # type: ignore[operator]
    again = score_policy(policy_of(trainer), trainer.rewards, trainer.eval_dataset[:], seed=2)
    assert again.samples == scored.samples


def test_summary_and_page_of_a_run(run: tuple[Path, PPOTrainer, dict[str, Any]]) -> None:
    folder, trainer, summary = run
    assert json.loads((folder / "summary.json").read_text()) == json.loads(json.dumps(summary))
    assert summary["episodes"] == 16 and summary["seconds"] == 3.0 and summary["train_seconds"] == 2.0
    assert (
        summary["verdict"].startswith("Reward ")
        and "`tiny-lm` learned from `brevity` and `sometimes`" in summary["verdict"]
    )
    for name in ("reward", "rewards/brevity", "rewards/sometimes", "mean_length"):
        for time in ("before", "after"):
            low, high = summary[f"{name}_ci95_{time}"]
            assert low <= summary[f"{name}_{time}"] <= high
    page = (folder / "report.html").read_text()
    for words in ("My run", "Reward by component", "2 × sometimes", "plot-frontier", "Command of the run"):
        assert words in page
    assert page.count("Healthy:") >= 12
    for setting in ("learning_rate", "kl_target"):
        assert f"<td>{setting}</td>" in page.split("All settings")[0]


def test_no_file_names_a_folder_of_the_machine(run: tuple[Path, PPOTrainer, dict[str, Any]]) -> None:
    folder, trainer, _ = run
    content = {"summary": {"model_before": str(folder), "kl": 1.0}, "config": {"data": f"{folder}/p.jsonl"}}
    write_report(folder / "own.html", title=f"Run in {folder}/x", notes=f"from {Path.home()}/p.jsonl", **content)
    for name in ("report.html", "summary.json", DATA, "own.html"):
        text = (folder / name).read_text()
        assert str(folder.parent) not in text and f"{Path.home()}/" not in text, name
    assert "tiny-lm" in (folder / "report.html").read_text()


def test_a_page_is_drawn_again(
    run: tuple[Path, PPOTrainer, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, *_ = run
    shutil.copytree(folder, tmp_path / "copy")
    first = (folder / "report.html").read_text()
    (tmp_path / "copy" / "report.html").unlink()
    main(["report", str(tmp_path / "copy"), "--picture", str(tmp_path / "run.svg")])
    drawn = tmp_path / "copy" / "report.html"
    assert capsys.readouterr().out.split() == [str(drawn), str(tmp_path / "run.svg")]
    assert _texts(drawn.read_text()) == _texts(first)
    assert (tmp_path / "run.svg").read_text().count("<svg") == 4


def test_a_run_that_was_interrupted_is_drawn_from_its_checkpoint(
    run: tuple[Path, PPOTrainer, dict[str, Any]], tmp_path: Path
) -> None:
    folder, trainer, _ = run
    (tmp_path / "earlier-run-1").mkdir()
    shutil.copytree(folder / "checkpoint-4", tmp_path / "earlier-run-1" / "checkpoint-9")
    shutil.copytree(folder / "checkpoint-2", tmp_path / "checkpoint-2")
    report = load_run(tmp_path)
    assert (report.finished, report.step, report.max_steps) == (False, 2, 4)
    assert report.config is not None and report.config["learning_rate"] == 1e-3 and report.kl_target == 0.5
    # with what was measured before
    Report("Named", summary={"toxicity_before": 0.5}, finished=False).save(tmp_path)
    report = load_run(tmp_path)
    assert report.title == "Named" and report.summary is not None
    assert (report.summary["toxicity_before"], report.summary["episodes"]) == (0.5, 8)
    assert [line["step"] for line in report.log_history if "reward" in line] == [1, 2]
    # a checkpoint that is half written is passed over
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-3" / "trainer_state.json").write_text('{"global_step": 3, "log_')
    assert load_run(tmp_path).step == 2


def test_a_finished_report_gives_way_to_a_run_that_goes_on(
    run: tuple[Path, PPOTrainer, dict[str, Any]], tmp_path: Path
) -> None:
    folder, *_ = run
    shutil.copytree(folder, tmp_path / "run")
    assert load_run(tmp_path / "run").finished
    state = json.loads((folder / "checkpoint-4" / "trainer_state.json").read_text())
    (tmp_path / "run" / "checkpoint-6").mkdir()
    longer = state | {"global_step": 6, "max_steps": 8}
    (tmp_path / "run" / "checkpoint-6" / "trainer_state.json").write_text(json.dumps(longer))
    report = load_run(tmp_path / "run")
    assert (report.finished, report.step, len(report.samples)) == (False, 6, 0)
    assert not [key for key in report.summary or {} if key.endswith("_after")]


def test_several_runs_on_one_page(
    run: tuple[Path, PPOTrainer, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, *_ = run
    for name, rate in (("a", 1e-3), ("b", 2e-3)):
        shutil.copytree(folder, tmp_path / name / "run")
        content = json.loads((folder / DATA).read_text())
        content["config"]["learning_rate"] = rate
        (tmp_path / name / "run" / DATA).write_text(json.dumps(content))
    main(["report", str(tmp_path / "a" / "run"), str(tmp_path / "b" / "run"), "--output", str(tmp_path / "both.html")])
    assert capsys.readouterr().out.strip() == str(tmp_path / "both.html")
    page = (tmp_path / "both.html").read_text()
    for words in (
        "Comparison of a/run, b/run",
        "<td>0.001</td><td>0.002</td>",
        'id="plot-reward"',
        'id="plot-entropy"',
    ):
        assert words in page
    assert "<td>gamma</td>" not in page and str(tmp_path) not in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "`nowhere` is not a folder; give the output directory of a run."),
        (["."], "has neither report_data.json nor a checkpoint with trainer_state.json"),
        (["broken"], "cannot be read as the content of a report"),
        ([".", ".", "--picture", "x.svg"], "`--picture` shows one run"),
        (["empty", "--picture", "x.png"], "does not end in .svg"),
        (["empty", "--picture", "x.svg"], "has logged neither reward nor KL yet"),
        (["empty", "--output", "broken"], "`--output broken` is a folder"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("broken", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "broken" / DATA).write_text('{"log_history": []}')
    Report("Empty").save(tmp_path / "empty")
    with pytest.raises(SystemExit) as end:
        main(["report", *arguments])
    error = capsys.readouterr().err
    assert end.value.code == 2 and message in error and error.count("\n") == 1


def test_the_log_alone_is_a_report_and_it_survives_json(tmp_path: Path) -> None:
    history = [{"step": 1, "reward": math.nan, "kl": 0.1}, {"step": 2, "reward": 1.0, "kl": math.inf}]
    Report("t", history, summary={"x": math.nan}, samples=[{"prompt": "/a/b", "before": "\ud83d"}]).save(tmp_path)
    loaded = load_run(tmp_path)
    assert loaded.log_history == [{"step": 1, "reward": None, "kl": 0.1}, {"step": 2, "reward": 1.0, "kl": None}]
    assert loaded.samples[0]["prompt"] == "/a/b"
    (tmp_path / DATA).write_text(json.dumps(json.loads((tmp_path / DATA).read_text()) | {"of_a_later_version": 1}))
    assert load_run(tmp_path).title == "t"


def _texts(page: str) -> list[str]:
    """What a reader sees, without the coordinates of drawings, whose identifiers are random."""
    return [line for line in page.split("\n") if not line.lstrip().startswith(("<", "M ", "L ", "Q ", "C ", "z", '"'))]
