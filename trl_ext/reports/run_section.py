# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The part of the page that says how to repeat a run: command, versions, configuration."""

import json
from collections.abc import Collection, Mapping
from typing import Any

from .content import Report
from .markup import escape, folded, table

__all__ = ["run_section"]


def run_section(report: Report) -> str:
    """Return origin and configuration of the run, empty where neither is known."""
    config = report.config or {}
    changed = [name for name in config if name in (report.changed or ())]
    parts = [_command(report.origin or {}), _facts(report.origin or {})]
    if changed:
        parts.append(f"<h3>Settings that differ from the defaults</h3>{_settings(config, changed)}")
        parts.append(folded("All settings", _settings(config, config)))
    else:
        parts.append(folded("Configuration", _settings(config, config)))
    return "\n".join(part for part in parts if part)


def _command(origin: Mapping[str, Any]) -> str:
    command = origin.get("command")
    if not command:
        return ""
    hint = "Files outside the folder that it ran in are named without theirs."
    return f"<h3>Command of the run</h3><pre>{escape(command)}</pre><p>{hint}</p>"


def _facts(origin: Mapping[str, Any]) -> str:
    versions = origin.get("versions") or {}
    rewards, weights = origin.get("rewards") or [], origin.get("reward_weights") or []
    weights = [*weights, *[1.0] * (len(rewards) - len(weights))]
    facts = {
        "model": origin.get("model"),
        "rewards": ", ".join(
            name if weight == 1 else f"{weight:g} × {name}" for name, weight in zip(rewards, weights, strict=False)
        ),
        "judges": ", ".join(origin.get("judges") or []),
        "device": origin.get("device"),
        "git commit": origin.get("commit"),
        "versions": ", ".join(f"{name} {number}" for name, number in versions.items()),
    }
    rows = [f"<tr><td>{name}</td><td>{escape(value)}</td></tr>" for name, value in facts.items() if value]
    return table("<th></th><th></th>", rows, "texts")


def _settings(config: Mapping[str, Any], names: Collection[str]) -> str:
    rows = [f"<tr><td>{escape(name)}</td><td>{escape(_setting(config[name]))}</td></tr>" for name in names]
    return table("<th>setting</th><th>value</th>", rows, "texts")


def _setting(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
