# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Files are written whole or not at all, and what is read back is what was written."""

import json
import math
import os

import pytest

from trl_ext.files import read_json_lines, without_nan, write_json, write_json_lines, write_text


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    write_json(tmp_path / "state.json", {"step": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "state.json", {"step": 2, "rollout": object()})

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_text(tmp_path / "state.json", "half")
    assert json.loads((tmp_path / "state.json").read_text()) == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]


def test_the_content_is_on_the_disk_before_the_name(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: calls.append("fsync") or fsync(file))
    monkeypatch.setattr(os, "replace", lambda *names: calls.append("replace") or replace(*names))
    write_text(tmp_path / "page.html", "ü")
    assert calls == ["fsync", "replace"] and (tmp_path / "page.html").read_bytes() == "ü".encode()


def test_json_lines_come_back(tmp_path):
    rows = [{"prompt": "a\u2028b"}, {"prompt": ""}]
    write_json_lines(tmp_path / "rows.jsonl", rows)
    assert read_json_lines(tmp_path / "rows.jsonl") == rows
    (tmp_path / "rows.jsonl").write_bytes('{"prompt": "a\u2028b"}\r\n\n{"prompt": ""}'.encode())
    assert read_json_lines(tmp_path / "rows.jsonl") == rows


def test_nan_and_infinity_become_null_at_any_depth():
    value = {"kl": math.inf, "ci": [math.nan, 1.0], "by_kind": {"a": (2, -math.inf)}, "name": "nan"}
    assert without_nan(value) == {"kl": None, "ci": [None, 1.0], "by_kind": {"a": [2, None]}, "name": "nan"}
