# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""`trl_ext report DIR`: draw the report of a run again, or several runs on one page."""

from collections.abc import Sequence
from pathlib import Path

from trl_ext.messages.refusal import refusing

from .parser import CommandParser

SUMMARY = "draw the report of a run again, also of one that goes on; or compare several runs"
DESCRIPTION = """Draw the report of a run from what it saved in its folder: report_data.json, and the log of the newest
checkpoint while the run goes on or after an interruption. Of several folders: one page with their curves on the same
axes. The path of the page is printed."""


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the page and print its path."""
    arguments = make_parser().parse_args(argv)
    folders = [Path(folder).expanduser() for folder in arguments.folders]
    with refusing(OSError, ValueError):
        if arguments.picture and len(folders) > 1:
            raise ValueError("`--picture` shows one run; give one folder.")
        print(_draw(folders, arguments.output))
        if arguments.picture:
            print(_picture(folders[0], Path(arguments.picture).expanduser()))


def _picture(folder: Path, path: Path) -> Path:
    from trl_ext.reports.picture import write_picture
    from trl_ext.reports.saved import load_run

    return write_picture(path, load_run(folder))


def _draw(folders: Sequence[Path], output: str | None) -> Path:
    from trl_ext.reports.comparison import write_comparison
    from trl_ext.reports.report import write_page
    from trl_ext.reports.saved import load_run

    runs = {folder: load_run(folder) for folder in folders}
    if output is not None and Path(output).is_dir():
        raise ValueError(f"`--output {output}` is a folder; give the name of a file.")
    if len(runs) == 1:
        ((folder, report),) = runs.items()
        return write_page(Path(output) if output else folder / "report.html", report)
    return write_comparison(
        Path(output or "comparison.html"), dict(zip(_names(list(runs)), runs.values(), strict=True))
    )


def _names(folders: Sequence[Path]) -> list[str]:
    """Return the shortest ends of the paths that differ, such as `a/out` and `b/out`."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def make_parser() -> CommandParser:
    """Return the parser of this subcommand."""
    parser = CommandParser("trl_ext report", description=DESCRIPTION)
    parser.add_argument("folders", nargs="+", metavar="DIR", help="output directory of a run")
    parser.add_argument(
        "--output", help="the HTML file; default: report.html in DIR, or comparison.html here for several runs"
    )
    parser.add_argument("--picture", metavar="FILE.svg", help="also write the main plots of one run as one picture")
    return parser
