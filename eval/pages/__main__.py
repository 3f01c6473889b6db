# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""`python -m eval.pages` writes what the documentation takes from the code: pictures, and the table of metrics."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from trl_ext.files import write_text

from . import controllers, metrics, step
from .markers import insert

DOCS = Path(__file__).parents[2] / "docs"


def generated(docs: Path) -> dict[Path, str]:
    """Return the text that each generated file in the folder `docs` should have."""
    pictures = controllers.pictures() | step.pictures()
    page = docs / metrics.PAGE
    text = insert(page.read_text(encoding="utf-8"), metrics.PART, metrics.render())
    return {docs / "images" / name: svg for name, svg in pictures.items()} | {page: text}


def main(argv: Sequence[str] | None = None) -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(prog="python -m eval.pages", description=__doc__)
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of the documentation")
    for path, text in generated(parser.parse_args(argv).docs).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)


if __name__ == "__main__":
    main()
