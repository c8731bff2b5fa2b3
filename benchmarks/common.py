"""Side by side in one run: A B A B ..., each side in a process of its own, with what is needed to repeat it."""

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gnime.threads import configure_threads, processors  # noqa: E402  before torch, here and in every child
from gnime.words import counted  # noqa: E402

configure_threads()


def options(about: str, gpu: bool = False) -> argparse.Namespace:
    """The flags that all benchmarks take; `gpu`: and the device."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    if gpu:
        parser.add_argument("--gpu", type=int, default=0, help="index of the CUDA device; -1 is the CPU (default: 0)")
    parser.add_argument("--quick", action="store_true", help="smaller, within a minute on two cores")
    parser.add_argument("--json", type=Path, help="keep the figures in this file")
    parser.add_argument("--threads", type=int, default=processors(), help="of every process (default: one a core)")
    parser.add_argument("--cpu-time", action="store_true",
                        help="count processor seconds, not the clock's: with --threads 1, for a machine that others use too")
    return parser.parse_args()


class Side:
    """Work that is measured in its own process, so that neither side lives in the memory the other left.

    environment: variables that the process sets, or removes (None), before it imports torch. The script then must not import it
    at its top, which a spawned process runs.
    """

    def __init__(self, build: Callable[[], Callable[[], object]], chosen: argparse.Namespace,
                 environment: Mapping[str, str | None] | None = None):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, build, chosen, environment or {}), daemon=True)
        self._process.start()
        theirs.close()  # else a child that dies is waited for without end
        self._answer()

    def seconds(self) -> float:
        self._pipe.send("work")
        return self._answer()

    def _answer(self):
        try:
            answer = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(f"a side's process ended with code {self._process.exitcode}") from None
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def close(self) -> None:
        self._pipe.send(None)
        self._process.join()


def _serve(pipe, build: Callable, chosen: argparse.Namespace, environment: Mapping[str, str | None]) -> None:
    too_late = environment and "torch" in sys.modules
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    import torch

    torch.set_num_threads(chosen.threads)
    torch.manual_seed(0)
    clock = time.process_time if chosen.cpu_time else time.perf_counter
    try:
        if too_late:
            raise RuntimeError("the script imports torch at its top, before its environment is set")
        work = build()
        work(), work()  # do not count
        pipe.send(0.0)
        while pipe.recv():
            began = clock()
            work()
            pipe.send(clock() - began)
    except Exception as error:
        pipe.send(error)


class Report:
    """Prints figures as they come, then one line for each claim."""

    def __init__(self, chosen: argparse.Namespace, device: str | None = None):
        import torch

        from gnime.system import provenance

        torch.set_num_threads(chosen.threads)
        self.chosen, self.figures, self.claims = chosen, {}, []
        clock = "processor time" if chosen.cpu_time else "wall time"
        device = device or f"CPU, {counted(chosen.threads, 'thread')}"
        self.made_on = provenance(device) | {"clock": clock, "load": os.getloadavg()}
        print(json.dumps(self.made_on), flush=True)

    def values(self, name: str, measured: Sequence[float], unit: str) -> None:
        low, middle, high = min(measured), statistics.median(measured), max(measured)
        self.figures[name] = {"min": low, "median": middle, "max": high, "n": len(measured)}
        print(f"{name:<44} min {low:.4g}  median {middle:.4g}  max {high:.4g} {unit}  (n={len(measured)})", flush=True)

    def times(self, name: str, seconds: Sequence[float]) -> None:
        self.values(name, seconds, "s")

    def number(self, name: str, value: float) -> None:
        """What is no time."""
        self.figures[name] = {"value": value}
        print(f"{name:<44} {value:.4g}", flush=True)

    def compare(self, claim: str, names: Sequence[str], builds: Sequence[Callable], rounds: int, target: float,
                other: str | None = None) -> None:
        """Ours comes last, and is compared with the fastest of the rest, called `other` in the claim.

        Measured in turn. The ratio is the median over neighbours: what else the machine does touches both. Every round has new
        processes, since two of the same work can differ for as long as they live.
        """
        rows = []
        for _ in range(rounds):
            sides = [Side(build, self.chosen) for build in builds]
            rows.append([side.seconds() for side in sides])
            for side in sides:
                side.close()
        for name, seconds in zip(names, zip(*rows, strict=True), strict=True):
            self.times(f"{claim}: {name}", seconds)
        ratios = [statistics.median(row[i] / row[-1] for row in rows) for i in range(len(builds) - 1)]
        self.claim(f"{claim}, {other or names[0]} / ours", min(ratios), target)

    def alone(self, name: str, build: Callable, rounds: int) -> list[float]:
        """Seconds of something that is compared with nothing."""
        side = Side(build, self.chosen)
        seconds = [side.seconds() for _ in range(rounds)]
        side.close()
        self.times(name, seconds)
        return seconds

    def claim(self, claim: str, measured: float, target: float, at_most: bool = False) -> None:
        good = measured <= target if at_most else measured >= target
        self.claims.append({"claim": claim, "measured": round(measured, 3), "target": target, "at_most": at_most, "ok": good})

    def finish(self) -> None:
        print()
        for c in self.claims:
            print(f"{c['claim']}  {c['measured']:.2f}  {c['target']}  {'ok' if c['ok'] else 'short'}")
        if self.chosen.json:
            figures = {"figures": self.figures, "claims": self.claims, **self.made_on}
            self.chosen.json.write_text(json.dumps(figures, indent=1) + "\n")
