"""Milliseconds of work on the device."""

import statistics
import time
from collections.abc import Callable

import torch


def milliseconds(work: Callable[[], object], seconds: float = 0.25) -> float:
    """The median over `seconds` of repetitions, at least five; on a CPU one repetition. The first two do not count."""
    work()
    work()
    if not torch.cuda.is_available():
        began = time.perf_counter()
        work()
        return 1e3 * (time.perf_counter() - began)
    torch.cuda.synchronize()
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 5:
        before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        before.record()
        work()
        after.record()
        after.synchronize()
        times.append(before.elapsed_time(after))
    return statistics.median(times)
