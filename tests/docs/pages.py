# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Pages of the documentation as text: their code blocks, with the comments that direct the tests, and their tables."""

import re
import textwrap
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]

LANGUAGES = {"python", "bash", "yaml", "json", "jsonl", "html", "text", "diff"}
MARKERS = {"small", "setup", "check", "needs", "run", "config", "part"}
_PIECE = re.compile(
    r"^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<code>.*?)^(?P=indent)```$|<!-- (?P<marker>[a-z]+)\b:?(?P<text>.*?)-->",
    flags=re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    """A fenced block.

    Attributes:
        where: Page and line, for messages.
        language: First word behind the fence.
        file: Name of the file that the block is the content of (`title="..."`); empty for none.
        code: The text inside, without the indentation of the fence.
        small: What the test writes in the place of what stands in the page.
        setup: Python that the page does not show, run before the block.
        check: Python that the page does not show, run after the block.
        needs: A module without which the block cannot run; empty for none.
        run: Whether the commands of a bash block run, instead of only being parsed.
        config: The command whose `--config` reads a YAML block, or "none".
        part: A file that the block is a part of, and that has a test of its own; empty for none.
    """

    where: str
    language: str
    file: str
    code: str
    small: dict[str, str]
    setup: str
    check: str
    needs: str
    run: bool
    config: str
    part: str

    @property
    def shrunk(self) -> str:
        """The code with its replacements.

        Raises:
            AssertionError: where the page no longer has one of the texts to replace.
        """
        code = self.code
        for written, replacement in self.small.items():
            assert written in code, f"{self.where}: the block no longer has `{written}`"
            code = code.replace(written, replacement)
        return code


def page_name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    """The blocks of a page; a comment belongs to the block behind it, `check` to the block before it."""
    found: list[Block] = []
    before: dict[str, str] = {}
    text = page.read_text(encoding="utf-8")
    for piece in _PIECE.finditer(text):
        where = f"{page_name(page)}:{text.count(chr(10), 0, piece.start()) + 1}"
        marker = piece["marker"]
        if marker == "check":
            found[-1] = found[-1]._replace(check=found[-1].check + textwrap.dedent(piece["text"]))
        elif marker in MARKERS:
            assert marker not in before, f"{where}: two comments `{marker}` for one block"
            before[marker] = textwrap.dedent(piece["text"]).strip()
        elif marker is None:
            language, _, rest = piece["info"].strip().partition(" ")
            assert language in LANGUAGES, f"{where}: language '{language}' of the block is none of {sorted(LANGUAGES)}"
            title = re.search(r'title="([^"]+)"', rest)
            found.append(
                Block(
                    where,
                    language,
                    title[1] if title else "",
                    textwrap.dedent(piece["code"]),
                    _replacements(before.get("small", ""), where),
                    before.get("setup", ""),
                    "",
                    before.get("needs", ""),
                    "run" in before,
                    before.get("config", ""),
                    before.get("part", ""),
                )
            )
            before = {}
    assert not before, f"{page_name(page)}: no block behind the comment {before}"
    return found


def _replacements(text: str, where: str) -> dict[str, str]:
    pairs = [line.split(" -> ") for line in text.splitlines() if line.strip()]
    assert all(len(pair) == 2 for pair in pairs), f"{where}: write `small` as lines of `text -> replacement`"
    return {written.strip(): replacement.strip() for written, replacement in pairs}


def table(name: str) -> list[list[str]]:
    """The rows (lists of cells) of the table behind the comment `<!-- table: name -->`, without its heading."""
    marker = f"<!-- table: {name} -->\n"
    (text,) = [text for text in (page.read_text(encoding="utf-8") for page in PAGES) if marker in text]
    body = text.split(marker, 1)[1].lstrip("\n").split("\n\n", 1)[0]
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in body.splitlines()]
    assert len({len(row) for row in rows}) == 1, f"the rows of table '{name}' differ in their number of cells"
    return rows[2:]


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)
