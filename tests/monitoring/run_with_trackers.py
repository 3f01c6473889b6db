# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""A run that logs to Trackio and TensorBoard, and what a process of its own reads back from their files.

Arguments: `train FOLDER` or `read FOLDER`. Trackio takes its folder from the environment when it is imported.
"""

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

PROJECT, RUN = "tracked", "first"


def no_network(*args: Any, **kwargs: Any) -> None:
    """Take the place of connecting to anything."""
    raise AssertionError(f"a connection to {args[1:]}")


def train(folder: Path) -> None:
    """Train for four steps, interrupted and resumed after two."""
    from tests import scripted

    settings: dict[str, Any] = {
        "report_to": ["trackio", "tensorboard"],
        "project": PROJECT,
        "run_name": RUN,
        "log_completions": True,
        "num_completions_to_print": 3,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "eval_dataset": scripted.prompts(4),
        "save_strategy": "steps",
        "save_steps": 2,
    }
    scripted.trainer(folder / "out", **settings, max_steps=2, total_episodes=None).train()
    made = scripted.trainer(folder / "out", **settings)
    made.train(resume_from_checkpoint=True)
    (folder / "history.json").write_text(json.dumps(made.state.log_history))


def read(folder: Path) -> None:
    """Write the scalars and tables of both loggers as JSON."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from trackio.sqlite_storage import SQLiteStorage

    (folder / "trackio.json").write_text(json.dumps(SQLiteStorage.get_logs(PROJECT, RUN), default=str))
    scalars: dict[str, list[tuple[int, float]]] = {}
    texts: list[tuple[int, str]] = []
    for directory in sorted({path.parent for path in folder.rglob("events.out.tfevents.*")}):
        events = EventAccumulator(str(directory), size_guidance={"tensors": 0, "scalars": 0}).Reload()
        for tag in events.Tags()["scalars"]:
            scalars.setdefault(tag, []).extend((event.step, event.value) for event in events.Scalars(tag))
        for tag in (tag for tag in events.Tags()["tensors"] if tag.startswith("completions")):
            tables = events.Tensors(tag)
            texts += [(event.step, event.tensor_proto.string_val[0].decode()) for event in tables]
    (folder / "tensorboard.json").write_text(json.dumps({"scalars": scalars, "texts": sorted(texts)}))


if __name__ == "__main__":
    socket.socket.connect = no_network  # type: ignore[method-assign,assignment]
    os.environ["TRACKIO_DIR"] = str(Path(sys.argv[2]) / "trackio")
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(Path(sys.argv[2]) / "tensorboard")
    {"train": train, "read": read}[sys.argv[1]](Path(sys.argv[2]))
