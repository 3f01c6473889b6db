# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Processes of one run succeed or fail together."""

import os
import re
import socket
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.launching import torchrun
from trl_ext import checkpoint
from trl_ext.monitoring import RewardHackingMonitor
from trl_ext.processes import ProcessFailureError, leave, own_rows, together
from trl_ext.rewards import Scores
from trl_ext.rewards.base import Batch


@pytest.mark.parametrize(
    ("at_the_end", "remainder", "own"),
    [
        (True, 5, [4, 1]),  # of the last 5 rows, the first process has 4, and the second has 1 and fills up with 3
        (True, 3, [3, 0]),
        (True, 8, [4, 4]),
        (True, 0, [4, 4]),
        (True, -1, [4, 4]),  # accelerate does not know how long the dataset is
        (False, 5, [4, 4]),
    ],
)
def test_the_rows_that_fill_up_the_last_batch_are_nobodys_own(at_the_end, remainder, own):
    state = SimpleNamespace(end_of_dataloader=at_the_end, remainder=remainder)
    processes = [SimpleNamespace(gradient_state=state, process_index=i) for i in range(2)]
    assert [own_rows(process, 4) for process in processes] == own


def test_one_process_keeps_its_own_exception():
    with together("Scoring"):
        pass
    with pytest.raises(KeyError), together("Scoring"):
        raise KeyError("a")


def in_processes(function, count: int = 3) -> list[str]:
    """What `function(rank)` returned, or raised, in so many processes that know of each other."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    pipes = [os.pipe() for _ in range(count)]
    children = []
    for rank in range(count):
        children.append(os.fork())
        if children[-1] == 0:
            try:
                store = torch.distributed.TCPStore("localhost", port, count, rank == 0, timeout=timedelta(seconds=30))
                torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=count)
                said = str(function(rank))
                if torch.distributed.is_initialized():
                    torch.distributed.barrier()
            except BaseException as error:
                said = f"{type(error).__name__}: {error}"
            os.write(pipes[rank][1], said.encode())
            if rank == 0:
                time.sleep(1)  # the store lives here
            os._exit(0)
    answers = []
    for child, (reading, writing) in zip(children, pipes, strict=True):
        os.waitpid(child, 0)
        answers.append(os.read(reading, 10_000).decode())
        os.close(reading), os.close(writing)
    return answers


def test_the_others_fail_with_the_message_of_the_one_that_failed():
    def score(rank):
        with together("Scoring"):
            if rank == 1:
                raise ValueError("3 rewards for\n4 completions")
        return "not reached"

    expected = (
        "Scoring failed on process 1 (ValueError: 3 rewards for 4 completions); the other processes stop with it."
    )
    answers = in_processes(score)
    assert answers[0] == answers[2] == f"{ProcessFailureError.__name__}: {expected}"
    assert answers[1] == "ValueError: 3 rewards for\n4 completions"


def test_a_gold_reward_that_breaks_its_contract_on_one_process_ends_all():
    def observe(rank):
        monitor = RewardHackingMonitor(gold=lambda completions, **_: [0.0] * (len(completions) + rank))
        scores = Scores(torch.zeros(1), torch.zeros(1, 1), torch.ones(1, dtype=torch.bool), {}, {})
        monitor.on_rollout(Batch(["p"], ["c"], [[1, 2]], {}), scores, {"kl": 0.0}, state=None, training=False)

    answers = in_processes(observe, 2)
    assert answers[0].startswith(
        "ProcessFailureError: Scoring by the gold reward failed on process 1 (RewardValueError"
    )
    assert answers[1].startswith("RewardValueError")


def test_a_checkpoint_is_committed_when_the_slowest_process_has_written_its_part(tmp_path):
    def write(rank):
        folder = tmp_path / "checkpoint-1"
        with checkpoint.writing(folder, leader=rank == 0):
            time.sleep(0.3 * rank)
            (folder / f"part-{rank}").write_text("content")
        return checkpoint.find_damage(folder), len((folder / "manifest.json").read_text().split("part-")) - 1

    assert in_processes(write) == ["(None, 3)"] * 3


def test_processes_leave_when_the_slowest_is_done(tmp_path):
    leave()  # one process has nothing to leave

    def end(rank):
        time.sleep(0.3 * rank)
        (tmp_path / str(rank)).touch()
        leave()
        return len(list(tmp_path.iterdir())), torch.distributed.is_initialized()

    assert in_processes(end) == ["(3, False)"] * 3
    assert in_processes(end, 1) == ["(3, True)"], "a group of one process is not ours"


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        # Process 1 could not end by itself: a thread of its reward function is still running.
        ("thread", r"ProcessFailureError: Scoring failed on process 1 \(RewardValueError: .* returned 5 rewards for 4"),
        ("callback", "ZeroDivisionError: a bug in the callback"),
    ],
)
def test_a_process_that_fails_ends_the_job_in_seconds(tmp_path, mode, message):
    """Under torchrun, which ends the processes that wait for one that has gone."""
    done = torchrun(Path(__file__).with_name("two_processes.py"), tmp_path, mode)
    ended = time.time()
    assert done.returncode == 1 and re.search(message, done.stderr), done.stderr[-3000:]
    assert ended - float((tmp_path / "failed").read_text()) < 20
    assert "ended at step" not in done.stdout
