"""Training steps beside one busy process and beside none: with threads that soon sleep and with the library's own default, and
small steps with one thread and with several.

Steps are the accelerated ones of step.py, at the paper's width, and an attacker's of the demo. They are timed several at a
time, one after another as in training: after a pause the first one is slower. Needs two processors or more: one thread waits
for no other.
"""

import argparse
import contextlib
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial

from common import Report, Side, options

from gnime.threads import SPINS

# Before torch is imported; None removes a setting.
SETTINGS = {"ours": {"GOMP_SPINCOUNT": SPINS, "OMP_WAIT_POLICY": None},
            "library": {"GOMP_SPINCOUNT": None, "OMP_WAIT_POLICY": None}}


BUSY = "import os; parent = os.getppid()\nwhile os.getppid() == parent: sum(range(10**6))"  # ends with the benchmark
STEPS = {"injector_step": 3, "victim_step": 15, "small_steps": 1}  # of a measurement: about two seconds


def built(step: str, batch: int):
    import step as steps  # imports torch, which must find the settings

    work = getattr(steps, step)(batch, True)
    return lambda: [work() for _ in range(STEPS[step])]


@contextlib.contextmanager
def one_busy_process():
    process = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def ratio(above: list[float], below: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


Times = dict[str, list[float]]


def measured(report: Report, title: str, start: dict[str, Callable[[], Side]], rounds: int) -> tuple[Times, Times]:
    """Seconds of each side, idle and busy. A B B A ..., each round first idle, then busy, so that neither side is always the
    first one after the busy process. Each round has new processes, as in `Report.compare`."""
    idle, busy = ({name: [] for name in start} for _ in range(2))
    order = list(start)
    for _ in range(rounds):
        sides = {name: start[name]() for name in order}
        for times, company in ((idle, contextlib.nullcontext()), (busy, one_busy_process())):
            with company:
                for name in order:
                    times[name].append(sides[name].seconds())
        order.reverse()
        for side in sides.values():
            side.close()
    for name in start:
        report.times(f"{title}: {name}, idle", idle[name])
        report.times(f"{title}: {name}, beside one process", busy[name])
    return idle, busy


def compare_waiting(report: Report, step: str, batch: int, rounds: int) -> None:
    title = step.replace("_", " ")
    start = {name: partial(Side, partial(built, step, batch), report.chosen, setting) for name, setting in SETTINGS.items()}
    idle, busy = measured(report, title, start, rounds)
    report.claim(f"{title}, busy / idle", ratio(busy["ours"], idle["ours"]), 3.5, at_most=True)
    report.claim(f"{title}, idle, ours / library", ratio(idle["ours"], idle["library"]), 1.05, at_most=True)
    report.number(f"{title}, busy / idle with the library's default", ratio(busy["library"], idle["library"]))


def compare_threads(report: Report, rounds: int) -> None:
    """`system.training_threads` gives a training of this size one thread."""
    title, one, several = "small steps", "one thread", f"{report.chosen.threads} threads"
    build = partial(built, "small_steps", 32)
    start = {name: partial(Side, build, argparse.Namespace(**vars(report.chosen) | {"threads": threads}), SETTINGS["ours"])
             for name, threads in ((one, 1), (several, report.chosen.threads))}
    idle, busy = measured(report, title, start, rounds)
    report.claim(f"{title}, busy / idle with one thread", ratio(busy[one], idle[one]), 1.5, at_most=True)
    report.claim(f"{title}, idle, one thread / several", ratio(idle[one], idle[several]), 1.15, at_most=True)
    report.number(f"{title}, busy / idle with {several}", ratio(busy[several], idle[several]))


def main(chosen: argparse.Namespace) -> None:
    if chosen.cpu_time or chosen.threads < 2:
        raise SystemExit("busy.py: it measures waiting, which processor time and one thread do not show; leave out --cpu-time, "
                         "and take two threads or more")
    batch, rounds = (32, 2) if chosen.quick else (128, 9)
    report = Report(chosen)
    print(f"batch {batch}, mnist, width 2048; {STEPS['injector_step']} injector steps, {STEPS['victim_step']} victim steps")
    for step in ("injector_step", "victim_step"):
        compare_waiting(report, step, batch, rounds)
    print("small steps: 20 steps of batch 32, digits, width 256")
    compare_threads(report, rounds)
    report.finish()


if __name__ == "__main__":
    main(options(__doc__))
