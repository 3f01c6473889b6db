# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Files that leave the machine name no folder of it."""

from pathlib import Path

import pytest

from trl_ext.messages.places import short_name, without_places


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/home/me/models/gpt2", "gpt2"),
        ("/home/me/models/gpt2/", "gpt2"),
        ("~/models/gpt2", "gpt2"),
        (r"C:\Users\me\models\gpt2", "gpt2"),
        ("/root/.cache/huggingface/hub/models--org--name/snapshots/0123abcd", "org/name"),
        ("org/name", "org/name"),
        ("gpt2", "gpt2"),
        ("./models/gpt2", "./models/gpt2"),
    ],
)
def test_short_names(path: str, shown: str) -> None:
    assert short_name(path) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("read '/srv/data sets/my prompts.jsonl'.", "read 'my prompts.jsonl'."),
        ("/srv/data sets/my prompts.jsonl", "my prompts.jsonl"),
        ("from /srv/data/prompts.jsonl, by /opt/judge/model.", "from prompts.jsonl, by model."),
        ("file:///srv/data/prompts.jsonl", "prompts.jsonl"),
        ("--reward=/srv/code/my.py:brevity", "--reward=my.py:brevity"),
        ("--reward toxicity:/srv/models/judge", "--reward toxicity:judge"),
        ("preference:~/models/rm", "preference:rm"),
        (r"from C:\Users\me\prompts.jsonl", "from prompts.jsonl"),
        # what is no path of a machine
        ("https://host/a/b?c=/d/e", "https://host/a/b?c=/d/e"),
        ("org/name, and/or, 3/4, ./here/below, ../up/again", "org/name, and/or, 3/4, ./here/below, ../up/again"),
        ("half a second / a third", "half a second / a third"),
    ],
)
def test_texts(text: str, shown: str) -> None:
    assert without_places(text) == shown


def test_what_lies_in_the_run_or_in_the_current_folder_keeps_its_path_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, here = tmp_path / "my run", tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    values = {
        "model": str(run / "reward" / "model"),
        "data": [here / "data" / "prompts.jsonl", f"see {run}/sft/model and {here}/a/b.txt"],
        "run": str(run),
        "home": f"{Path.home()}/secret place/x.txt",
        "number": 3,
        "nothing": None,
    }
    assert without_places(values, run) == {
        "model": "reward/model",
        "data": ["data/prompts.jsonl", "see sft/model and a/b.txt"],
        "run": "my run",
        "home": "x.txt",
        "number": 3,
        "nothing": None,
    }
