# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Stages that leave a record, so that what is done is not done again and what was interrupted goes on."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from trl_ext.checkpoint import write_json

_RECORD, _STARTED = "stage.json", "started.json"


class Record(NamedTuple):
    """What a finished stage left.

    Attributes:
        fingerprint: Of its settings and of everything it was made from.
        settings: Those settings.
        seconds: How long it took, over all interruptions.
        result: Numbers and paths for later stages and the summary.
    """

    fingerprint: str
    settings: dict[str, Any]
    seconds: float
    result: dict[str, Any]


def fingerprint(settings: Mapping[str, Any], upstream: Iterable[str] = ()) -> str:
    """Changes with the settings of a stage and with what it is made from."""
    text = json.dumps([dict(settings), list(upstream)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_identity(name: str | None) -> list[Any] | str | None:
    """A name of the Hub as it is; for a file its size and time too, so that another content is noticed."""
    path = Path(name).expanduser() if name else None
    if path is None or not path.is_file():
        return name
    status = path.stat()
    return [str(path.resolve()), status.st_size, status.st_mtime_ns]


def read_record(folder: Path) -> Record | None:
    """The record of a finished stage, if there is one."""
    try:
        return Record(**json.loads((folder / _RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def require(folder: Path, stage: str, needed_by: str, expected: str, remedy: str = "") -> Record:
    """
    The record of an earlier stage that is not part of this call.

    Raises:
        ValueError: if it has not been done, or with other settings (`expected` is the fingerprint it should have).
    """
    record = read_record(folder)
    if record is None:
        raise ValueError(
            f"Stage `{needed_by}` needs stage `{stage}`, which has not been done in '{folder}'; add `{stage}` to "
            f"`--stages`{remedy}."
        )
    if record.fingerprint != expected:
        raise ValueError(
            f"Stage `{needed_by}` needs stage `{stage}`, which was done in '{folder}' with other settings; add "
            f"`{stage}` to `--stages` to do it again, or use another `--output_dir`."
        )
    return record


def run_stage(
    name: str,
    folder: Path,
    settings: Mapping[str, Any],
    upstream: Iterable[str],
    work: Callable[[Path], dict[str, Any]],
) -> Record:
    """
    Do a stage, or skip it if it is done with these settings.

    A folder that was left by other settings is emptied first; one that was left half done by the same settings is given
    to `work` as it is.

    Args:
        name: Of the stage, for the messages.
        folder: Where it works.
        settings: Everything its result depends on.
        upstream: Fingerprints of the stages it builds on.
        work: Called with the folder; returns what later stages need to know, JSON-able.
    """
    key = fingerprint(settings, upstream)
    record = read_record(folder)
    if record is not None and record.fingerprint == key:
        print(f"Stage {name}: done already with this configuration ({record.seconds:.0f} s); skipped.")
        return record
    spent = _begin(name, folder, key)
    start = time.perf_counter()
    try:
        result = work(folder)
    finally:
        spent += time.perf_counter() - start
        write_json(folder / _STARTED, {"fingerprint": key, "seconds": spent})
    record = Record(key, json.loads(json.dumps(dict(settings), default=str)), spent, result)
    write_json(folder / _RECORD, record._asdict())
    print(f"Stage {name}: finished in {spent:.0f} s.")
    return record


def _begin(name: str, folder: Path, key: str) -> float:
    """Make the folder ready; the seconds that an interrupted attempt with the same settings has spent in it."""
    try:
        started = json.loads((folder / _STARTED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        started = {}
    if started.get("fingerprint") == key:
        print(f"Stage {name}: goes on where it stopped.")
        return float(started["seconds"])
    if folder.exists() and any(folder.iterdir()):
        if not started:
            raise ValueError(f"'{folder}' is not empty and was not made by stage `{name}`; choose another folder.")
        print(f"Stage {name}: the configuration has changed; it is done again.")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / _STARTED, {"fingerprint": key, "seconds": 0.0})
    return 0.0


def newest_whole_checkpoint(folder: Path) -> str | None:
    """The last checkpoint that the Trainer finished; half-written ones are removed."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    for path in reversed(found):
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))  # written last
            return str(path)
        except (OSError, ValueError):
            shutil.rmtree(path)
    return None
