"""The threads of a CPU's run, decided before torch is imported. Imports nothing heavy."""

import math
import os
from pathlib import Path

# Turns of a waiting thread's loop before it sleeps. GNU OpenMP's default is 300,000, some milliseconds. After fewer
# turns it often sleeps between two operations of Python's, and waking it takes time on an idle machine. More turns cost time on
# a busy one. benchmarks/busy.py measures what this number costs on both.
SPINS = "2000"


def configure_threads() -> None:
    """Lets a waiting thread sleep, and starts no more threads than the process has processors.

    GNU OpenMP's threads spin at every barrier. Beside one busy process on two cores a small operation then waits for a thread
    that is not running, and a training step takes several times as long (docs/performance.md). The user's own settings of
    `GOMP_SPINCOUNT`, `OMP_WAIT_POLICY` and `OMP_NUM_THREADS` are kept. Child processes inherit the choice.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    os.environ.setdefault("OMP_NUM_THREADS", str(processors()))


def processors(group: Path = Path("/sys/fs/cgroup")) -> int:
    """Processors that this process may use: its affinity, and the quota of its control group (`group`, version 2 or 1)."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, _quota(group)))


def _quota(group: Path) -> float:
    try:
        quota, period = (group / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota, period = ((group / "cpu" / f"cpu.cfs_{what}_us").read_text().strip() for what in ("quota", "period"))
        except OSError:
            return math.inf
    try:
        return math.ceil(int(quota) / int(period)) if int(quota) > 0 else math.inf
    except (ValueError, ZeroDivisionError):  # "max": no quota
        return math.inf
