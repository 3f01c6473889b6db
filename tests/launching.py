# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Scripts of this folder on several processes of this machine, as `torchrun` starts them."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# The processes of a job find each other by ports of this machine, which other tests use at the same time. None of these
# errors comes from a script's own code.
_NOT_CONNECTED = re.compile(
    r"DistNetworkError|RendezvousConnectionError|DistStoreError|Connection (closed|reset|refused)"
)


def torchrun(script: Path, *arguments: object, processes: int = 2) -> subprocess.CompletedProcess[str]:
    """Run a script on gloo processes of one thread each; a job that hangs is ended with all its processes."""
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return run_command([*command, str(script), *map(str, arguments)])


def run_command(arguments: Sequence[str], *, first_on_path: Sequence[Path] = ()) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments, one thread a process; a job that hangs is ended with all its processes."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": python_path(*first_on_path)}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    words = [sys.executable, *arguments]
    with subprocess.Popen(words, env=environment, start_new_session=True, **pipes) as job:
        try:
            out, errors = job.communicate(timeout=600)
        except BaseException:
            os.killpg(job.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(words, job.returncode, out, errors)


def run_whole(script: Path, *arguments: object, processes: int = 2) -> subprocess.CompletedProcess[str]:
    """Run a script that must succeed; a job whose processes did not find each other runs again, twice at most."""
    for _ in range(3):
        done = torchrun(script, *arguments, processes=processes)
        if done.returncode == 0:
            return done
        if not _NOT_CONNECTED.search(done.stderr):
            break
    raise AssertionError(f"exit code {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}")


def python_path(*first: Path) -> str:
    """The PYTHONPATH of a process that sees what this one sees: `make test-trl-1.12` puts the oldest TRL in front.

    Args:
        first: Folders in front of all others.
    """
    own = [*map(str, first), str(Path(__file__).parents[1])]
    return os.pathsep.join([*own, *filter(None, [os.environ.get("PYTHONPATH")])])
