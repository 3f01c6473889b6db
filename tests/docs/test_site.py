# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The built site: no warning, no dead link, nothing from another server."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest

from .pages import ROOT

HOST = "http://site"


class Page(HTMLParser):
    """Anchors, links and loaded files of a page."""

    def __init__(self, html: str):
        super().__init__()
        self.anchors: set[str] = {""}
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.add(values["href"])
        elif tag == "link" and values.get("rel") not in ("canonical", "next", "prev"):
            self.loaded.add(values["href"])
        elif "src" in values:
            self.loaded.add(values["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Page]:
    """Pages by their address in the site."""
    files = [path for path in site.rglob("*.html") if path.name != "404.html"]
    return {f"{HOST}/{path.relative_to(site).as_posix()}": Page(path.read_text(encoding="utf-8")) for path in files}


def target(site: Path, address: str) -> Path:
    path = site / unquote(urlsplit(address).path).lstrip("/")
    return path / "index.html" if path.is_dir() else path


def test_no_dead_link_and_no_dead_anchor(site: Path, pages: dict[str, Page]) -> None:
    dead = []
    for address, page in pages.items():
        for link in page.links | page.loaded:
            full = urljoin(address, link)
            if not full.startswith(f"{HOST}/"):
                continue
            path = target(site, full)
            there = pages.get(f"{HOST}/{path.relative_to(site).as_posix()}")
            if not path.is_file() or (there and unquote(urlsplit(full).fragment) not in there.anchors):
                dead.append(f"{address}: {link}")
    assert len(pages) > 20 and sorted(dead) == []


def test_nothing_is_loaded_from_another_server(site: Path, pages: dict[str, Page]) -> None:
    for address, page in pages.items():
        assert [link for link in page.loaded if not urljoin(address, link).startswith((f"{HOST}/", "data:"))] == []
    for path in site.rglob("*.css"):
        assert "url(http" not in path.read_text(encoding="utf-8") and "url(//" not in path.read_text(encoding="utf-8")


def test_the_reference_shows_the_options_of_the_configuration(site: Path) -> None:
    html = (site / "reference" / "trainer" / "index.html").read_text(encoding="utf-8")
    text = " ".join(re.sub(r"<[^>]+>", "", html).split())
    assert "Initial coefficient of the KL penalty in the reward." in text
    assert "[`" not in text, "a reference in a docstring is no link"


def test_no_page_is_a_stub() -> None:
    pages = sorted((ROOT / "docs").rglob("*.md"))
    texts = {page.name: page.read_text(encoding="utf-8") for page in pages}
    assert [name for name, text in texts.items() if len(text.split()) < 60 and ":::" not in text] == []
