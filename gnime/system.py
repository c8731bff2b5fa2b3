"""Seeds, messages, signals, memory, and the record of the machine and versions that made a result."""

import contextlib
import ctypes
import hashlib
import math
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from functools import cache
from importlib import metadata
from pathlib import Path

import torch

from ._commit import COMMIT


def derive_seed(seed: int, *purpose: object) -> int:
    """A 63-bit seed for one purpose. Every random number of a run comes from one of these.

    So no generator's state needs saving: epoch 7's order is the same whether epochs 0 to 6 ran in this process or another.
    """
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(seed: int, *purpose: object) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(seed, *purpose))


def permutation(n: int, seed: int, *purpose: object) -> torch.Tensor:
    return torch.randperm(n, generator=generator(seed, *purpose))


def say(*lines: str) -> None:
    """Prints for the user; of several processes of one run, the first prints."""
    if int(os.environ.get("RANK", 0)) == 0:
        print(*lines, sep="\n", flush=True)


def warn(line: str) -> None:
    if int(os.environ.get("RANK", 0)) == 0:
        print(f"warning: {line}", file=sys.stderr, flush=True)


def seconds_since(began: float) -> str:
    return f"{time.monotonic() - began:.1f} s"


def retain_freed_memory() -> None:
    """Tells glibc to keep up to 2 GB of freed memory. Page-faulting freed blocks back in costs 25 % of a classifier's step.

    The allocator is the process's own, so this setting is global. Other C libraries are left as they are.
    """
    trim_threshold, mmap_threshold = -1, -3  # malloc.h
    with contextlib.suppress(AttributeError, OSError, TypeError):
        allocator = ctypes.CDLL(None).mallopt
        allocator(trim_threshold, 2**31 - 1)
        allocator(mmap_threshold, 2**30)


_released = time.monotonic()  # when freed memory last went back: one allocator, one clock


def release_freed_memory(every: float = 0.0) -> None:
    """Returns the retained memory to the system, unless that was done within `every` seconds.

    Call it between two pieces of work: the blocks that one leaves rarely fit the next.
    """
    global _released
    if time.monotonic() - _released < every:
        return
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
    _released = time.monotonic()


_deadline = math.inf  # of the process, like Ctrl-C


def stop_after(seconds: float) -> None:
    """After so many seconds training stops as if Ctrl-C were pressed: saved, and resumable."""
    global _deadline
    _deadline = time.monotonic() + seconds


def time_left() -> float:
    """Seconds, infinite where nothing limits them."""
    return _deadline - time.monotonic()


def time_is_up() -> bool:
    return time_left() < 0


class Interrupt:
    """Ctrl-C sets a flag that training checks after each step. A second Ctrl-C stops at once."""

    @property
    def asked(self) -> bool:
        return self._pressed or time_is_up()

    def __enter__(self):
        self._pressed = False
        self._usable = threading.current_thread() is threading.main_thread()
        if self._usable:
            self._before = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def _on_signal(self, number, frame):
        if self._pressed:
            raise KeyboardInterrupt
        self._pressed = True
        warn("stopping: the work is saved at the end of this epoch; press Ctrl-C again to stop at once")

    def __exit__(self, *error):
        if self._usable:
            signal.signal(signal.SIGINT, self._before)


@cache
def provenance(device: str) -> dict:
    """Versions, commit and hardware: with configuration and seed, all that repeats a result."""
    from . import __version__

    versions = {"gnime": __version__, "python": platform.python_version()}
    for package in ("torch", "torchvision", "numpy", "hickle", "h5py", "scikit-learn", "pytorch-msssim"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {"versions": versions, "commit": commit(),
            "hardware": {"device": device, "cpu": _cpu(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}}


@cache
def commit() -> str | None:
    """The commit of the checkout that this package runs from, with "+" where files differ from it.

    A copy that `git archive` made knows its commit too. None: nothing tells it.
    """
    here = Path(__file__).resolve().parent.parent
    if not (here / ".git").exists():
        return None if COMMIT.startswith("$") else COMMIT[:12]
    try:
        run = [subprocess.run(["git", "-C", str(here), *args], capture_output=True, text=True, timeout=10, check=True).stdout
               for args in (("rev-parse", "--short=12", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))]
    except (OSError, subprocess.SubprocessError):
        return None
    return run[0].strip() + ("+" if run[1].strip() else "")


def _cpu() -> str:
    with contextlib.suppress(OSError), Path("/proc/cpuinfo").open() as file:
        for line in file:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
