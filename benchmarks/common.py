"""Side by side in one run: A B A B ..., with what is needed to repeat it."""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from gnime.runtime import provenance


def parser(about: str) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=about)
    made.add_argument("--quick", action="store_true", help="smaller, within a minute on two cores")
    made.add_argument("--json", type=Path, help="keep the figures in this file")
    return made


def compare(plain: Callable[[], object], ours: Callable[[], object], rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of each, measured in turn, after one round that does not count."""
    times: tuple[list[float], list[float]] = ([], [])
    for i in range(rounds + 1):
        for side, work in enumerate((plain, ours)):
            began = time.perf_counter()
            work()
            if i:
                times[side].append(time.perf_counter() - began)
    return times


class Report:
    """Prints figures as they come, then one line for each claim."""

    def __init__(self):
        self.figures, self.claims = {}, []
        self.made_on = provenance(f"CPU, {torch.get_num_threads()} threads")
        print(json.dumps(self.made_on), flush=True)

    def times(self, name: str, seconds: list[float]) -> None:
        low, middle, high = min(seconds), statistics.median(seconds), max(seconds)
        self.figures[name] = {"min": low, "median": middle, "max": high, "n": len(seconds)}
        print(f"{name:<44} min {low:.4f}  median {middle:.4f}  max {high:.4f} s  (n={len(seconds)})", flush=True)

    def ratio(self, claim: str, plain: list[float], ours: list[float], target: float) -> None:
        """Median of the ratios of neighbouring measurements: what the machine does besides touches both."""
        self.times(f"{claim}: plain", plain)
        self.times(f"{claim}: ours", ours)
        self.claim(claim, statistics.median(p / o for p, o in zip(plain, ours, strict=True)), target)

    def claim(self, claim: str, measured: float, target: float, at_most: bool = False) -> None:
        good = measured <= target if at_most else measured >= target
        self.claims.append({"claim": claim, "measured": round(measured, 3), "target": target, "ok": good})

    def finish(self, file: Path | None) -> None:
        print()
        for c in self.claims:
            print(f"{c['claim']}  {c['measured']:.2f}  {c['target']}  {'ok' if c['ok'] else 'short'}")
        if file:
            file.write_text(json.dumps({"figures": self.figures, "claims": self.claims, **self.made_on}, indent=1) + "\n")
