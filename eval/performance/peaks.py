# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Memory and time of every phase of a run, read where one phase ends and the next begins."""

import ctypes
import gc
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch

from trl_ext.monitoring import PhaseProgress

_M_MMAP_THRESHOLD = -3  # in glibc's malloc.h
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Memory(Protocol):
    """A source of peaks of memory."""

    def reset(self) -> None:
        """Start a new measurement."""

    def read(self) -> dict[str, int]:
        """Return the peaks since `reset` by kind, in bytes."""
        ...

    def synchronize(self) -> None:
        """Wait until the device has finished its work."""


class CudaMemory:
    """Peaks of torch's allocator on the current CUDA device.

    `allocated` is the memory of tensors, which the planner predicts; `process` the memory that torch has reserved.
    """

    def reset(self) -> None:
        """Start a new measurement."""
        torch.cuda.reset_peak_memory_stats()

    def read(self) -> dict[str, int]:
        """Return the peaks since `reset`, in bytes."""
        return {"allocated": torch.cuda.max_memory_allocated(), "process": torch.cuda.max_memory_reserved()}

    def synchronize(self) -> None:
        """Wait until the device has finished its work."""
        torch.cuda.synchronize()


class ProcessMemory:
    """Peaks of this process's resident memory; Linux only.

    `process` is all of it, `allocated` the growth since this object was made.

    Raises:
        ValueError: on other systems.
    """

    def __init__(self) -> None:
        if platform.system() != "Linux" or not _CLEAR.exists():
            raise ValueError("Peaks on a CPU are read from /proc, which only Linux has; use --device cuda.")
        gc.collect()
        self._libc = ctypes.CDLL(None)
        if hasattr(self._libc, "mallopt"):
            # glibc keeps freed memory for later; from now on it returns blocks larger than this at once.
            self._libc.mallopt(_M_MMAP_THRESHOLD, 2**16)
        self.reset()
        self.before = self._status("VmRSS")

    def reset(self) -> None:
        """Start a new measurement."""
        if hasattr(self._libc, "malloc_trim"):
            self._libc.malloc_trim(0)  # the only call that returns the heap's free blocks
        _CLEAR.write_text("5")  # sets the peak to the memory that is resident now

    def read(self) -> dict[str, int]:
        """Return the peaks since `reset`, in bytes."""
        peak = self._status("VmHWM")
        return {"allocated": peak - self.before, "process": peak}

    def synchronize(self) -> None:
        """Return at once: a CPU has finished its work."""

    @staticmethod
    def _status(field: str) -> int:
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
        return 1024 * int(line.split()[1])


class PhasePeaks(PhaseProgress):
    """A trainer's progress display that measures memory and time instead.

    The time between two phases counts for the first: the optimizer's step comes after the last phase "learn".

    Args:
        memory: Where peaks are read.

    Attributes:
        peaks: Bytes by phase, as `memory.read` gives them.
        total_seconds: Seconds by phase, over the whole run.
    """

    def __init__(self, memory: Memory):
        super().__init__(enabled=False)
        self.memory = memory
        self.peaks: dict[str, dict[str, int]] = {}
        self.total_seconds: dict[str, float] = {}
        self._current: str | None = None

    def start(self, name: str | None) -> None:
        """Record the peaks of the current phase, and begin the phase `name`; None begins none."""
        if self._current is not None:
            peaks = self.peaks.setdefault(self._current, {})
            for kind, size in self.memory.read().items():
                peaks[kind] = max(peaks.get(kind, 0), size)
        self.memory.reset()
        self._current = name

    @contextmanager
    def phase(self, name: str, *args: Any, **kwargs: Any) -> Iterator[Callable[..., Any]]:
        """Measure the phase `name`, as `PhaseProgress.phase` does, with its memory."""
        self.memory.synchronize()
        self.start(name)
        begin = time.perf_counter()
        with super().phase(name, *args, **kwargs) as advance:
            yield advance
            self.memory.synchronize()
        self.total_seconds[name] = self.total_seconds.get(name, 0.0) + time.perf_counter() - begin
