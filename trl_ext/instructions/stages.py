# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Stages that leave a record: a finished stage is skipped, an interrupted stage goes on."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from trl_ext.checkpoint import recover
from trl_ext.files import write_json
from trl_ext.folders import is_whole_model
from trl_ext.messages.redaction import redacted
from trl_ext.running.folders import set_aside
from trl_ext.running.interrupts import Interrupted

_RECORD, _STARTED = "stage.json", "started.json"


class Record(NamedTuple):
    """The record of a finished stage.

    Attributes:
        fingerprint: Digest of the settings and of the stages before.
        settings: Settings of the stage, without secrets.
        seconds: Duration, over all interruptions.
        result: Numbers and paths for later stages and the summary.
    """

    fingerprint: str
    settings: dict[str, Any]
    seconds: float
    result: dict[str, Any]

    def missing(self, folder: Path) -> list[str]:
        """Return the models that the stage made in `folder` and that are missing or damaged."""
        named = [self.result.get("model"), *self.result.get("models", ())]
        made = [Path(name) for name in named if name is not None and Path(name).is_relative_to(folder)]
        return [str(model) for model in made if not is_whole_model(model)]


def fingerprint(settings: Mapping[str, Any], upstream: Iterable[str] = ()) -> str:
    """Return a digest of the settings of a stage and of the stages before it; passwords do not count."""
    text = json.dumps([redacted(dict(settings)), list(upstream)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_record(folder: Path) -> Record | None:
    """Return the record of a finished stage, if there is one."""
    try:
        record = Record(**json.loads((folder / _RECORD).read_text(encoding="utf-8")))
        return record._replace(result=_with_models(record.result, lambda name: _found(name, folder)))
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def _with_models(result: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """Return a result with other names of its models."""
    changed = {"model": change(result["model"])} if "model" in result else {}
    return {**result, **changed, **({"models": [*map(change, result["models"])]} if "models" in result else {})}


def _inside(name: str, folder: Path) -> str:
    """Return the path of a model from the folder of its stage, "./model", so that both can be moved; others stay."""
    return f"./{Path(name).relative_to(folder).as_posix()}" if Path(name).is_relative_to(folder) else name


def _found(name: str, folder: Path) -> str:
    return str(folder / name) if name.startswith("./") else name


def require(folder: Path, stage: str, needed_by: str, expected: str, remedy: str = "") -> Record:
    """Return the record of an earlier stage that is not part of this call.

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
    if missing := record.missing(folder):
        raise ValueError(
            f"Stage `{needed_by}` needs stage `{stage}`, whose model '{missing[0]}' is missing or damaged; add "
            f"`{stage}` to `--stages` to make it again."
        )
    return record


def run_stage(
    name: str,
    folder: Path,
    settings: Mapping[str, Any],
    upstream: Iterable[str],
    work: Callable[[Path], dict[str, Any]],
) -> Record:
    """Run a stage, or skip it if it is done with these settings.

    A folder that was left by other settings is renamed, so that nothing in it is lost; one that was left half done by
    the same settings is given to `work` as it is.

    Args:
        name: Name of the stage, for messages.
        folder: Folder of the stage.
        settings: Settings that the result depends on.
        upstream: Fingerprints of the stages before.
        work: Function of the folder; returns numbers and paths for later stages, as JSON types.

    Raises:
        ValueError: if the folder holds files that no stage has made.
    """
    key = fingerprint(settings, upstream)
    kept: dict[str, Any] = json.loads(json.dumps(redacted(dict(settings)), default=str))
    record = read_record(folder)
    if record is not None and record.fingerprint == key:
        missing = record.missing(folder)
        if not missing:
            print(f"Stage {name}: done already with this configuration ({record.seconds:.0f} s); skipped.")
            return record
        print(f"Stage {name}: '{missing[0]}' is missing or damaged and is made again.")
    spent = _begin(name, folder, key, kept)
    start = time.perf_counter()
    try:
        result = work(folder)
    except KeyboardInterrupt as stop:
        raise Interrupted.at(f"in stage `{name}`", stop) from None
    finally:
        spent += time.perf_counter() - start
        write_json(folder / _STARTED, {"fingerprint": key, "seconds": spent, "settings": kept})
    record = Record(key, kept, spent, result)
    saved = record._replace(result=_with_models(result, lambda name: _inside(name, folder)))
    write_json(folder / _RECORD, saved._asdict())
    print(f"Stage {name}: finished in {spent:.0f} s.")
    return record


def _begin(name: str, folder: Path, key: str, settings: dict[str, Any]) -> float:
    """Make the folder ready, and return the seconds that an interrupted attempt with the same settings has spent."""
    try:
        started = json.loads((folder / _STARTED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        started = {}
    if started.get("fingerprint") == key:
        print(f"Stage {name}: goes on where it stopped.")
        recover(folder)
        return float(started["seconds"])
    if folder.exists() and any(folder.iterdir()):
        if not started:
            raise ValueError(f"'{folder}' is not empty and was not made by stage `{name}`; choose another folder.")
        changed = _changed(started.get("settings", {}), settings)
        print(f"Stage {name}: {changed}; its earlier folder is now '{set_aside(folder)}', and the stage is done again.")
    # In one step with the file that names the stage: a folder without it would be taken for foreign files.
    fresh = folder.with_name(f".{folder.name}.fresh")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    write_json(fresh / _STARTED, {"fingerprint": key, "seconds": 0.0, "settings": settings})
    os.replace(fresh, folder)
    return 0.0


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return the names of settings that differ, in words."""
    names = [f"`{name}`" for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    what = f" ({', '.join(names[:4])}{more})" if names and before else ""
    return f"the configuration has changed{what}" if names or not before else "an earlier stage was done again"
