"""Seeds, messages, signals, memory, and the versions and hardware of a result."""

import contextlib
import ctypes
import hashlib
import math
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

import torch
from tqdm import tqdm

from ._commit import COMMIT
from .errors import UsageError
from .streams import is_new, tell


def derive_seed(seed: int, *purpose: object) -> int:
    """A 63-bit seed for one purpose. All random numbers of a run are drawn from such seeds.

    So no generator's state needs to be saved. The order of epoch 7, for example, does not depend on the process that ran the
    epochs before it.
    """
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(seed: int, *purpose: object) -> torch.Generator:
    """A generator on the CPU for one purpose; see `derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(seed, *purpose))


def permutation(n: int, seed: int, *purpose: object) -> torch.Tensor:
    """The numbers 0 to n - 1 in random order, (n,) int64; see `derive_seed`."""
    return torch.randperm(n, generator=generator(seed, *purpose))


def processes() -> tuple[int, int]:
    """Index of this process and number of processes, as torchrun sets them in the environment; (0, 1) without it.

    RANK or WORLD_SIZE alone is not of torchrun and does not count; see `stray_variables`.

    Raises:
        UsageError: both are set, but they or the other variables make no sense together.
    """
    texts = [os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE")]
    if not all(texts) or texts == ["0", "1"]:
        return 0, 1
    remedy = "start the processes with torchrun, or unset RANK and WORLD_SIZE"
    if not all(re.fullmatch("[0-9]{1,9}", text) for text in texts) or int(texts[0]) >= int(texts[1]):
        raise UsageError(f"RANK={texts[0]!r} and WORLD_SIZE={texts[1]!r} in the environment are not a process's number and a "
                         f"larger number of processes; {remedy}")
    if not os.environ.get("MASTER_ADDR") or not re.fullmatch("[0-9]{1,5}", os.environ.get("MASTER_PORT", "")):
        raise UsageError("RANK and WORLD_SIZE are set in the environment, but not MASTER_ADDR and a number MASTER_PORT; "
                         f"{remedy}")
    return int(texts[0]), int(texts[1])


def stray_variables() -> list[str]:
    """The one of RANK and WORLD_SIZE that is set without the other, as "RANK=3"."""
    found = {name: value for name in ("RANK", "WORLD_SIZE") if (value := os.environ.get(name))}
    return [f"{name}={value}" for name, value in found.items()] if len(found) == 1 else []


def _speaks() -> bool:
    try:
        return processes()[0] == 0
    except UsageError:
        return True


def say(*lines: str) -> None:
    """Prints lines for the user. In a distributed run only the first process prints."""
    if _speaks():
        tell("\n".join(lines), sys.stdout)


def say_once(line: str) -> None:
    """`say`, once a command: of what several of its steps and processes find."""
    if _relay:
        _relay("once", line)
    elif is_new(line):
        say(line)


def warn(line: str) -> None:
    """Prints a warning to standard error, once a command. In a distributed run only the first process prints."""
    if _relay:
        _relay("warning", line)
    elif _speaks() and is_new(line):
        tell(f"warning: {line}", sys.stderr)


_relay: Callable[[str, str], None] | None = None  # of a process whose parent prints what is printed once a command


def relay(to: Callable[[str, str], None]) -> None:
    """Makes this process pass on, with its kind, what is printed once a command: "once" or "warning", and the line."""
    global _relay
    _relay = to


def seconds_since(began: float) -> str:
    """The time since `began`, a value of `time.monotonic()`, as text."""
    return f"{time.monotonic() - began:.1f} s"


class Forecast:
    """Says once how long a work of equal steps will take, if that is long.

    The first step does not count, because it allocates memory and chooses kernels.

    Args:
        name: of the work, as in other messages.
        steps: of all of it.
        what: the end of the message, as "for 100 epochs".
    """

    AFTER, LONG = 10.0, 120.0  # seconds of work after which it is said, and seconds that are long

    def __init__(self, name: str, steps: int, what: str):
        self._name, self._left, self._what = name, steps, what
        self._began, self._done, self._told = 0.0, 0, False

    def step(self, steps: int = 1) -> None:
        """So many steps are done."""
        self._left -= steps
        if not self._began:
            self._began = time.monotonic()
            return
        self._done += steps
        seconds = time.monotonic() - self._began
        if self._told or seconds < self.AFTER:
            return
        self._told = True
        if (rest := seconds / self._done * self._left) >= self.LONG:
            with tqdm.external_write_mode():  # a progress bar steps aside
                say(f"{self._name:<13} {in_words(rest)} {self._what}")


def in_words(seconds: float) -> str:
    """A time of at least a minute, as "about 40 minutes"."""
    unit, size = next((unit for unit in (("days", 86_400), ("hours", 3600)) if seconds >= 2 * unit[1]), ("minutes", 60))
    return f"about {seconds / size:.0f} {unit}"


def retain_freed_memory() -> None:
    """Makes glibc keep up to 2 GB of freed memory. Page-faulting freed blocks back in costs 25 % of a classifier's step.

    The setting holds for the whole process. It has no effect with other C libraries.
    """
    trim_threshold, mmap_threshold = -1, -3  # malloc.h
    with contextlib.suppress(AttributeError, OSError, TypeError):
        allocator = ctypes.CDLL(None).mallopt
        allocator(trim_threshold, 2**31 - 1)
        allocator(mmap_threshold, 2**30)


_released = time.monotonic()  # time of the last release; global, like the allocator


def release_freed_memory(every: float = 0.0) -> None:
    """Returns freed memory to the system, unless the last return was less than `every` seconds ago.

    Call it between two pieces of work, because the blocks that the first one freed rarely fit the second one.
    """
    global _released
    if time.monotonic() - _released < every:
        return
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
    _released = time.monotonic()


SMALL = 1 << 32  # weights times pixels times images of a batch; up to here a second thread saves a sixth of a step at most


@contextlib.contextmanager
def training_threads(work: int, device: torch.device) -> Iterator[int]:
    """One thread where the steps of a training are small, on a CPU; else as many as before.

    The threads of a small step wait for each other most of the time, and beside a busy process much longer
    (docs/performance.md). Sizes alone decide, so the last digits do not depend on what else the machine does.

    Args:
        work: weights times pixels times images of a batch.

    Yields the number of threads.
    """
    usual = torch.get_num_threads()
    if device.type == "cpu" and work <= SMALL:
        torch.set_num_threads(1)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(usual)


_deadline = math.inf  # global, because it acts like Ctrl-C


def stop_after(seconds: float) -> None:
    """Makes training stop after `seconds` as Ctrl-C does: the finished epochs are saved, and the run can be resumed."""
    global _deadline
    _deadline = time.monotonic() + seconds


def time_left() -> float:
    """Seconds, infinite where nothing limits them."""
    return _deadline - time.monotonic()


def time_is_up() -> bool:
    """Whether the time of `stop_after` has passed."""
    return time_left() < 0


class Interrupt:
    """Ctrl-C and SIGTERM set a flag that training checks after each step. A second one stops at once.

    SIGTERM is what `kill`, batch systems and containers send. A shell starts commands in the background with Ctrl-C's signal
    ignored. Then it stays ignored.
    """

    AGAIN = {signal.SIGINT: "press Ctrl-C again to stop at once", signal.SIGTERM: "a second SIGTERM stops it at once"}
    announces = True  # of a process whose parent announces it: False

    @property
    def asked(self) -> bool:
        """Whether training should stop."""
        return self._pressed or time_is_up()

    def __enter__(self):
        self._pressed = False
        main = threading.current_thread() is threading.main_thread()
        usable = [number for number in self.AGAIN if main and signal.getsignal(number) is not signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._on_signal) for number in usable}
        return self

    def _on_signal(self, number, frame):
        if self._pressed:
            raise KeyboardInterrupt
        self._pressed = True
        if self.announces:
            warn(f"stopping at the end of this epoch, which is then saved; {self.AGAIN[number]}")

    def __exit__(self, *error):
        for number, handler in self._before.items():
            signal.signal(number, handler)


@cache
def provenance(device: str) -> dict:
    """Versions, commit and hardware. Together with configuration and seed they suffice to repeat a result."""
    from . import __version__

    versions = {"gnime": __version__, "python": platform.python_version()}
    for package in ("torch", "torchvision", "numpy", "hickle", "h5py", "scikit-learn", "pytorch-msssim"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {"versions": versions, "commit": commit(),
            "hardware": {"device": device, "cpu": _cpu(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}}


@cache
def commit() -> str | None:
    """The commit of the package's checkout, with "+" if files differ from it. A copy by `git archive` and a wheel know theirs.

    None: there is none of them.
    """
    here = Path(__file__).resolve().parent.parent
    if not (here / ".git").exists():
        return None if COMMIT.startswith("$") else COMMIT[:12] + COMMIT[40:]
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
