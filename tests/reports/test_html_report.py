# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
import math
import os
import re
import threading
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trl_ext.reports import drawing, plots
from trl_ext.reports import result_plots as plots_of_results
from trl_ext.reports.report import write_report

EVERY_PLOT = [
    *("reward", "kl", "frontier", "histogram", "kl-coef", "length", "entropy", "terminated", "explained-variance"),
    *("value-loss", "clip-fraction", "approx-kl", "skipped", "grad-norm", "learning-rate", "speed", "time"),
]
LOGGED = {
    **{"reward": 0.5, "reward_std": 0.2, "kl": 1.0, "kl_coef": 0.7, "entropy": 3.0, "policy_loss": 0.0},
    **{"value_loss": 0.4, "approx_kl": 0.01, "clip_fraction": 0.1, "explained_variance": 0.3},
    **{"completions/mean_length": 9.0, "completions/terminated_fraction": 0.9, "skipped_minibatches": 0.0},
    **{"grad_norm": 1.5, "learning_rate": 1e-5, "tokens_per_second": 900.0},
    **{"time/generate": 2.0, "time/score": 0.5, "time/evaluate": 0.5, "time/learn": 1.0},
}
NASTY = "<script>alert('x')</script> & \"quoted\" $\\frac{$ [/b] \ud83d"
VOID = {"meta", "br"}


def _history(num_steps: int = 12) -> list[dict[str, Any]]:
    steps = [{**LOGGED, "step": i, "epoch": i / 9, "reward": i / num_steps} for i in range(1, num_steps + 1)]
    return [*steps, {"eval_reward": 0.9, "eval_kl": 1.1, "step": num_steps}, {"train_runtime": 3.0}]


def _everything(**changes: Any) -> dict[str, Any]:
    content: dict[str, Any] = {
        "title": "Detoxification",
        "log_history": _history(),
        "summary": {"toxicity_before": 0.5, "toxicity_after": 0.125, "kl": 1.2, "episodes": 3840},
        "samples": [{"prompt": "p", "before": "b", "after": "a", "score_before": 0.9, "score_after": 0.1}],
        "histograms": {"before": [0.1, 0.9], "after": [0.1, 0.2]},
        "kl_target": 1.0,
        "frontier": [(1.0, 2.0), (0.0, 0.0)],
        "measured": [{"name": "before", "kl": 0.0, "reward": 0.1}, {"name": "after", "kl": 0.9, "reward": 1.0}],
        "config": {"learning_rate": 6e-5},
        "notes": "A note.",
    }
    return content | changes


class Page(HTMLParser):
    """Reads a page, checks that its tags nest, and collects what the tests ask for."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(self.source)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.text += data

    @property
    def plots(self) -> list[str]:
        return [value.removeprefix("plot-") for name, value in self.attributes if value.startswith("plot-")]


def _page(tmp_path: Path, **content: Any) -> Page:
    return Page(write_report(tmp_path / "report.html", **content))


@pytest.fixture(scope="module")
def full_page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return _page(tmp_path_factory.mktemp("report"), **_everything())


def test_every_plot_is_there_when_its_data_are(full_page: Page):
    assert full_page.plots == EVERY_PLOT


@pytest.mark.parametrize(
    ("key", "plot"),
    [
        *(("kl_coef", "kl-coef"), ("entropy", "entropy"), ("value_loss", "value-loss")),
        *(("explained_variance", "explained-variance"), ("completions/mean_length", "length")),
        *(("completions/terminated_fraction", "terminated"), ("clip_fraction", "clip-fraction")),
        *(("approx_kl", "approx-kl"), ("reward", "reward"), ("kl", "kl"), ("skipped_minibatches", "skipped")),
        *(("grad_norm", "grad-norm"), ("learning_rate", "learning-rate"), ("tokens_per_second", "speed")),
    ],
)
def test_a_plot_needs_no_other_key(key: str, plot: str):
    for entry in ({key: 0.5}, {key: 0.5, "step": 3}):
        assert [drawing.slug for drawing in plots.training_plots([entry, {"train_loss": 1.0}], 1.0)] == [plot]


def test_title_alone_is_a_report(tmp_path: Path):
    page = _page(tmp_path, title="Empty")
    assert page.plots == []
    assert page.text.split() == ["Empty", "Empty"]


def test_values_that_are_no_numbers_are_left_out(tmp_path: Path):
    bad: list[Any] = [math.nan, math.inf, -math.inf, None, "nan", "text", 1e300, [1.0]]
    broken = [dict.fromkeys(LOGGED, value) | {"step": index} for index, value in enumerate(bad)]
    page = _page(
        tmp_path,
        **_everything(
            log_history=[*broken, *_history()],
            histograms={"before": [*bad, 0.5], "after": bad},
            frontier=[*((value, 1.0) for value in bad), *((0.5, value) for value in bad), (0.1, 0.2)],
            measured=[{"kl": value, "reward": 1.0, "low": value} for value in [*bad, 0.5]],
            kl_target=math.nan,
            summary={f"{index}_after": value for index, value in enumerate(bad)},
        ),
    )
    assert page.plots == EVERY_PLOT
    for value in bad:
        nothing = {"log_history": [dict.fromkeys(LOGGED, value)], "histograms": {"a": [value]}, "kl_target": value}
        assert _page(tmp_path, title="t", **nothing).plots == []


def test_user_text_is_escaped_everywhere(tmp_path: Path):
    page = _page(
        tmp_path,
        title=NASTY,
        log_history=[{"reward": 1.0}],
        summary={NASTY: NASTY, f"{NASTY}_before": 1.0, f"{NASTY}_after": NASTY},
        samples=[
            {"prompt": [{"role": NASTY, "content": NASTY}], "before": NASTY, "after": NASTY, "score_after": NASTY}
        ],
        histograms={NASTY: [0.5]},
        config={NASTY: NASTY, "nested": {"a": NASTY}},
        notes=[NASTY],
        score_name=NASTY,
        thresholds={NASTY: ("<=", 1.0)},
    )
    assert "script" not in page.tags
    shown = NASTY.replace("\ud83d", "?")
    assert page.text.count(shown) >= 14
    assert page.source.count("<script") == 0


def test_page_refers_to_nothing_outside_itself(full_page: Page):
    page = full_page
    assert {"script", "link", "img", "iframe", "object", "base"}.isdisjoint(page.tags)
    namespaces = ("http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink")
    assert {value for name, value in page.attributes if name.startswith("xmlns")} == set(namespaces)
    elsewhere = re.sub("|".join(map(re.escape, namespaces)), "", page.source)
    assert "://" not in elsewhere and "@import" not in elsewhere
    identifiers = [value for name, value in page.attributes if name == "id"]
    assert len(set(identifiers)) == len(identifiers)
    references = [value for name, value in page.attributes if name.endswith("href") or name == "src"]
    references += re.findall(r"url\(([^)]*)\)", page.source)
    assert len(references) > 100
    assert {reference.removeprefix("#") for reference in references} <= set(identifiers)
    assert all(reference.startswith("#") for reference in references)


def test_drawings_are_sound_and_follow_the_page_colour(full_page: Page):
    drawings = re.findall(r"<svg.*?</svg>", full_page.source, re.DOTALL)
    assert len(drawings) == len(EVERY_PLOT)
    for svg in drawings:
        ElementTree.fromstring(svg)
        assert "currentColor" in svg
        assert not re.search(r"#(000000|ffffff|010203)", svg)


def test_page_fits_phones_and_both_colour_schemes(tmp_path: Path):
    source = _page(tmp_path, title="t").source
    assert 'name="viewport" content="width=device-width' in source
    assert "prefers-color-scheme: dark" in source


def test_summary_rows_by_hand(tmp_path: Path):
    summary = {
        **{"toxicity_before": 0.5, "toxicity_after": 0.125, "mean_length_before": 8.0, "mean_length_after": 4.0},
        **{"perplexity_before": 0.0, "perplexity_after": 125, "kl": 1.5, "episodes": 3840, "seconds": 1234.5},
    }
    thresholds = {
        "toxicity_after": ("<=", 0.125),
        "mean_length_after": (">=", 6.4),
        "kl": ("<=", 1.5),
        "empty_fraction_after": ("<=", 0.02),
    }
    rows = _rows(_page(tmp_path, title="t", summary=summary, thresholds=thresholds))
    assert ["toxicity", "50.0%", "12.5%", "0.25", "≤ 12.5%", "✓ passed"] in rows
    assert ["mean length tokens", "8", "4", "0.5", "≥ 6.4", "✗ missed"] in rows
    assert ["perplexity", "0", "125", "–", "", ""] in rows
    assert ["empty completions", "–", "–", "–", "≤ 2.0%", "✗ missed"] in rows
    assert ["KL to the initial model nats per completion", "1.5", "≤ 1.5", "✓ passed"] in rows
    assert ["episodes", "3,840", "", ""] in rows
    assert ["time s", "1,234", "", ""] in rows


def test_what_may_be_negative_has_no_quotient(tmp_path: Path):
    summary = {"reward_before": 0.02, "reward_after": 0.86, "length_before": 2.0, "length_after": 3.0}
    rows = _rows(_page(tmp_path, title="t", summary=summary, signed=("reward",)))
    assert [row[-1] for row in rows if row[0] in ("reward", "length")] == ["–", "1.5"]


def test_nan_does_not_pass_a_threshold(tmp_path: Path):
    page = _page(tmp_path, title="t", summary={"kl": math.nan}, thresholds={"kl": ("<=", 1.5)})
    assert ["KL to the initial model nats per completion", "nan", "≤ 1.5", "✗ missed"] in _rows(page)


def test_summary_without_thresholds_has_no_verdicts(tmp_path: Path):
    page = _page(tmp_path, title="t", summary={"kl": 1.0})
    assert ["KL to the initial model nats per completion", "1"] in _rows(page)
    assert "goal" not in page.text


def test_unknown_relation_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="'kl' has the relation '<'"):
        write_report(tmp_path / "report.html", title="t", summary={"kl": 1.0}, thresholds={"kl": ("<", 1.5)})


def test_kl_caption_by_hand():
    # Episodes 10 to 90: the last third starts at 63.3, so 70, 80 and 90 count; 0.6 is outside 0.75 to 1.25.
    kl = [5.0, 5.0, 5.0, 5.0, 5.0, 5.0, 0.6, 0.85, 1.25]
    history = [{"episodes": 10 * (i + 1), "step": i, "kl": value} for i, value in enumerate(kl)]
    (plot,) = plots.training_plots(history, kl_target=1.0)
    assert plot.slug == "kl"
    assert "mean KL is 0.9 nats against a target of 1; 67% of the measurements lie within 25%" in plot.caption
    (of_one,) = plots.training_plots(history[:1], kl_target=1.0)
    assert of_one.caption.startswith(
        "Over the last third the mean KL is 5 nats against a target of 1; one measurement is too few to judge by."
    )
    (without_target,) = plots.training_plots(history)
    assert without_target.caption == "Over the last third the mean KL is 0.9 nats."


def test_before_and_after_examples(tmp_path: Path):
    samples = [
        {"prompt": "The bus", "before": " is awful", "after": "", "score_before": 0.9375, "score_after": None},
        {
            "prompt": [{"role": "user", "content": "Hi"}],
            "before": "x",
            "after": [{"role": "assistant", "content": "y"}],
        },
    ]
    text = _page(tmp_path, title="t", samples=samples, score_name="rudeness").text
    for expected in ("The bus is awful", "The bus (empty)", "before · rudeness 0.938", "user: Hi", "assistant: y"):
        assert expected in text
    assert "None" not in text


def test_configuration_hides_tokens(tmp_path: Path):
    config = {
        "hub_token": "hf_secret",
        "wandb_api_key": "s3cret",
        "learning_rate": 6e-5,
        "lora": {"r": 8},
        "seed": None,
    }
    page = _page(tmp_path, title="t", config=config)
    assert "secret" not in page.source and "s3cret" not in page.source
    assert {"details", "summary"} <= set(page.tags)
    for row in (["learning_rate", "6e-05"], ["lora", '{"r": 8}'], ["seed", "null"], ["hub_token", "(hidden)"]):
        assert row in _rows(page)


def test_best_of_n_is_drawn_beside_the_optimum_and_the_judge_in_a_plot_of_its_own(tmp_path: Path):
    measured = [
        {"name": "before", "kl": 0.0, "reward": 0.0, "judge": 0.5, "judge_low": 0.4, "judge_high": 0.6},
        {"name": "after", "kl": 1.0, "reward": 1.0, "judge": 0.3, "judge_low": 0.2, "judge_high": 0.4},
    ]
    rows = ((1, 0.0), (2, 0.19), (4, 0.64))
    best = [{"n": n, "kl_bound": kl, "reward": n / 4, "judge": 0.5 - n / 9} for n, kl in rows]
    judge: dict[str, Any] = {"judge_frontier": [(0.0, 0.5), (1.0, 0.1)], "judge_name": "harm"}
    page = _page(tmp_path, title="t", measured=measured, best_of_n=best, **judge)
    assert {"frontier", "judge-frontier"} <= set(page.plots) and "The judge over the KL" in page.text
    for draw in (
        lambda rows: plots_of_results.frontier_plot(None, measured, "", rows),
        lambda rows: plots_of_results.judge_frontier_plot(None, measured, rows, "harm"),
    ):
        drawn, plain, odd = (draw(rows) for rows in (best, [], [*best, {"n": 8, "kl_bound": None, "reward": math.nan}]))
        assert drawn is not None and plain is not None and odd is not None
        assert "best of n" in drawn.svg and "best of n" not in plain.svg and _paths(odd.svg) == _paths(drawn.svg)
    unjudged = [{key: point[key] for key in ("name", "kl", "reward")} for point in measured]
    assert "judge-frontier" not in _page(tmp_path, title="t", measured=unjudged, best_of_n=best).plots


def test_judges_of_evaluations_are_drawn_by_name_and_dataset(tmp_path: Path):
    history = [{"step": i, "reward": 0.1 * i, "eval_judge/gold/mean": 0.5 + i / 10} for i in range(3)]
    history += [{"step": 3, "eval_long_judge/gold/mean": 0.2, "eval_judge/gold/std": 9.0}]
    (drawn,) = [plot for plot in plots.training_plots(history) if plot.slug == "judge"]
    assert drawn.caption == "gold: from 0.5 to 0.7; gold (long): 0.2 in the only line of the log."
    average = [{"step": 1, "eval_ema_judge/gold/mean": 0.3, "eval_long_ema_judge/gold/mean": 0.4}]
    (drawn,) = plots.training_plots(average)
    assert "gold (policy average): 0.3 in" in drawn.caption and "gold (long, policy average): 0.4" in drawn.caption
    several = [plot for plot in plots.training_plots({"a": history, "b": history[:1]}) if plot.slug == "judge"]
    assert "b: gold" in several[0].caption
    assert "judge" not in [plot.slug for plot in plots.training_plots([{"step": 1, "reward": 1.0}])]


def test_the_frontier_shows_measured_points_and_no_rollouts(tmp_path: Path):
    points: list[dict[str, Any]] = [{"kl": 0.0, "reward": 1.0}, {"kl": math.nan, "reward": 2.0}]
    points.append({"kl": 1.0, "reward": 3.0})
    drawn = plots_of_results.frontier_plot(None, points)
    whole = plots_of_results.frontier_plot(None, [points[0], points[2]])
    assert drawn is not None and whole is not None and _paths(drawn.svg) == _paths(whole.svg)
    assert plots_of_results.frontier_plot([(0.0, 1.0), (1.0, 2.0)], []) is None
    rollouts = [{"kl": 0.1, "reward": 1.0}, {"kl": 0.2, "reward": 2.0}]
    page = _page(tmp_path, title="t", log_history=rollouts, frontier=[(0.0, 1.0), (1.0, 2.0)])
    assert "frontier" not in page.plots


def test_optimum_is_drawn_from_low_to_high_kl():
    point = [{"kl": 0.4, "reward": 0.5}]
    in_order = plots_of_results.frontier_plot([(0.0, 0.0), (0.5, 1.0), (1.0, 1.5)], point)
    shuffled = plots_of_results.frontier_plot([(1.0, 1.5), (0.0, 0.0), (0.5, 1.0)], point)
    assert in_order is not None and shuffled is not None
    assert _paths(in_order.svg) == _paths(shuffled.svg)


def test_long_runs_are_smoothed_over_faint_points():
    few = plots.training_plots([{"step": i, "entropy": (-1.0) ** i} for i in range(30)])[0]
    many = plots.training_plots([{"step": i, "entropy": (-1.0) ** i} for i in range(100)])[0]
    assert "stroke-opacity: 0.25" in many.svg and "stroke-opacity: 0.25" not in few.svg


def test_smoothing_keeps_a_straight_line_and_its_ends_near():
    line = np.linspace(3.0, 5.0, 101)
    smooth = drawing.moving_average(line)
    assert smooth[10:-10] == pytest.approx(line[10:-10], abs=1e-12)
    assert abs(smooth - line).max() < 0.05
    assert drawing.moving_average(np.ones(77)) == pytest.approx(np.ones(77), abs=1e-12)


def test_scores_outside_the_unit_interval_have_a_histogram():
    plot = plots_of_results.histogram_plot({"before": [-3.0, 4.0], "after": [2.0]}, "logit")
    assert plot is not None
    assert plot.caption == "before: mean 0.5 over 2 completions; after: mean 2 over 1 completions."


def test_a_report_that_fails_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_report(tmp_path / "new" / "report.html", title="old")

    def full_disk(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="no space left"):
        write_report(path, title="new")
    assert "old" in path.read_text(encoding="utf-8")
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_reports_may_be_written_from_threads(tmp_path: Path):
    paths = [tmp_path / f"{index}.html" for index in range(3)]
    content = {"title": "t", "log_history": [{"entropy": 1.0, "kl": 2.0}]}
    threads = [threading.Thread(target=write_report, args=[path], kwargs=content) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [Page(path).plots for path in paths] == [["kl", "entropy"]] * 3


def _rows(page: Page) -> list[list[str]]:
    rows = re.findall(r"<tr>(.*?)</tr>", page.source, re.DOTALL)
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL) for row in rows]
    return [[re.sub(r"<[^>]+>", "", cell).replace("&quot;", '"') for cell in row] for row in cells if row]


def _paths(drawing: str) -> list[str]:
    return re.findall(r'<path d="([^"]*)" clip-path', drawing)
