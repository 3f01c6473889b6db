# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Peaks of memory, of a CUDA device or of this process. `trl_ext` is not imported: any interpreter can run this."""

import ctypes
import gc
import platform
from pathlib import Path
from typing import Protocol

import torch

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
