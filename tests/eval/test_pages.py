# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The generated parts of the documentation are those that the code makes now."""

import re
from xml.etree import ElementTree

import pytest

from eval.pages import __main__ as pages
from eval.pages import controllers, step
from eval.pages.markers import insert
from trl_ext.kl_control import CONTROLLERS


def test_the_pages_and_pictures_are_up_to_date():
    stale = [
        path.relative_to(pages.DOCS).as_posix()
        for path, text in pages.generated(pages.DOCS).items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]
    assert stale == [], "run `python -m eval.pages` and commit the files"


def test_every_file_is_written(tmp_path):
    for name in ("metrics.md",):
        (tmp_path / name).write_text((pages.DOCS / name).read_text(encoding="utf-8"), encoding="utf-8")
    pages.main(["--docs", str(tmp_path)])
    assert {path: path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.*")} == pages.generated(tmp_path)


def test_a_part_goes_between_its_markers_and_a_page_without_them_is_refused():
    text = "a\n<!-- x: begin -->\nold\n<!-- x: end -->\nb\n"
    assert insert(text, "x", "new") == "a\n<!-- x: begin -->\nnew\n<!-- x: end -->\nb\n"
    with pytest.raises(ValueError, match="no place for the part 'y'; add a line <!-- y: begin --> and a line"):
        insert(text, "y", "new")


def test_the_pictures_are_svg_that_fit_a_narrow_screen():
    for name, svg in (controllers.pictures() | step.pictures()).items():
        root = ElementTree.fromstring(svg)
        assert root.get("viewBox") == f"0 0 {root.get('width')} {root.get('height')}", name
        assert "prefers-color-scheme: dark" in svg and int(root.get("width", "0")) <= 480
        sizes = [int(size) for size in re.findall(r"font(?:-size)?: (\d+)px", svg)]
        assert sizes and min(sizes) * 400 / 480 > 10, name


def test_the_pictures_of_the_controllers_show_what_their_page_says():
    """`docs/kl-control.md` names these figures."""
    assert controllers.CONTROLLERS.keys() == CONTROLLERS.keys()
    courses = {name: controllers.simulate(make()) for name, make in controllers.CONTROLLERS.items()}

    def kl(name: str, first: int, last: int) -> float:
        return sum(courses[name].kls[first:last]) / (last - first)

    assert kl("fixed", 100, 160) == pytest.approx(5.3, abs=0.05)
    assert kl("fixed", 200, 240) == pytest.approx(11.9, abs=0.05)
    for name in ("adaptive", "pid"):
        assert kl(name, 100, 160) == pytest.approx(3.0, abs=0.1)
        assert kl(name, 200, 240) == pytest.approx(3.0, abs=0.1)
    assert max(courses["adaptive"].kls) > max(courses["pid"].kls) > 4
    assert kl("scheduled", 200, 240) == pytest.approx(6.1, abs=0.05)
