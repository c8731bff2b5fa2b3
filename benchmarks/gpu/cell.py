"""One cell of the paper's table: `python -m gnime.reproduce` with the data that were packed, a process for each setting.

    python cell.py PRECISION TARGET:XAI:SEED SETTING,SETTING,... SECONDS MARGIN
"""

import os
import sys

import env

from gnime import reproduce
from gnime.cells import REDUCED


def flags(precision: str, name: str, settings: list[str]) -> list[str]:
    """Those of `gnime.reproduce` that do not depend on the time."""
    target, xai, seed = name.split(":")
    gpu = 0 if env.on_gpu() else -1
    places = {"--datasets": env.WORK / "data", "--root": env.WORK / "root", "--results": env.WORK / "results", "--gpu": gpu}
    what = {"--preset": "reduced" if env.TINY else "paper", "--targets": target, "--xai": xai, "--seeds": seed}
    if precision != ("tf32" if gpu == 0 else "fp32"):  # a result's command does not name the default
        what["--precision"] = precision
    official = os.environ.get("OFFICIAL", "").split()
    lists = ["--settings", *settings, *(["--official", *official] if official else [])]
    return [str(word) for pair in (what | places).items() for word in pair] + lists


def prepare() -> None:
    """The networks that the smoke checks found good, and the sizes of a rehearsal."""
    if env.decided()["plain"]:
        from gnime import ops

        ops.FAST.clear()  # `accelerate` then replaces nothing
    if env.TINY:
        REDUCED.update({name: env.reduced(name) for name in ("digits", "mnist", "cifar10")})


def main(precision: str, name: str, settings: str, seconds: str, margin: str) -> int:
    chosen = settings.split(",")
    time_limits = ["--jobs", str(len(chosen)), "--budget", seconds, "--margin", margin]
    return reproduce.main(flags(precision, name, chosen) + time_limits)


prepare()  # in the settings' processes as well: each of them imports this file
if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
