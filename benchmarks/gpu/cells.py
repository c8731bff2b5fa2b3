"""Cells of the paper's table against a deadline.

Trainings stop `MARGIN` seconds before it, saved; the settings that are finished are evaluated in that time, and the result says
which are not. The same command goes on with them.
"""

import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import cell
import env

from gnime.cells import cell_run, parser
from gnime.paths import Paths
from gnime.registry import find_row

CELLS = os.environ.get("CELLS", "mnist:lrp:0 mnist:gradcam:0 mnist:grad:0").split()
SETTINGS = os.environ.get("SETTINGS", "predmi expmi rnd gnime ond").split()
PRECISION = os.environ.get("PRECISION", "auto")
MARGIN = float(os.environ.get("MARGIN", 60))
DONE = env.WORK / "cells.done"
SPARE = 5  # seconds before the deadline at which a cell's budget ends


def start(name: str, precision: str) -> subprocess.Popen:
    """A cell in a process of its own, whose output goes to WORK/logs."""
    log = env.WORK / "logs" / f"{name.replace(':', '_')}.txt"
    log.parent.mkdir(exist_ok=True)
    command = [sys.executable, Path(cell.__file__), precision, name, ",".join(SETTINGS), max(1, env.left() - SPARE), MARGIN]
    environment = os.environ | {"TQDM_DISABLE": "1"}
    env.log(name, precision, "begins:", *SETTINGS)
    with log.open("a") as file:
        return subprocess.Popen([str(word) for word in command], env=environment, stdout=file, stderr=subprocess.STDOUT)


def injector(name: str, precision: str) -> Path:
    """The cell's injector, once it is trained."""
    target, xai, seed = name.split(":")
    options = parser().parse_args(cell.flags(precision, name, SETTINGS))
    run = cell_run("train", options, (target, xai, int(seed)))
    return Paths(run).injector(run.target.inversion_weight)


def run(cells: list[str]) -> None:
    """Cell after cell. The next one begins when the injector of the one before is trained: an injector fills the device, and
    attackers leave most of it free."""
    precision = env.decided()["precisions"][0] if PRECISION == "auto" else PRECISION
    precision = precision if env.on_gpu() else "fp32"
    needs_injector, running = any(find_row(setting).needs_injector for setting in SETTINGS), {}
    for i, name in enumerate(cells):
        if i and env.left() < 2 * MARGIN:
            env.log(name, "does not begin: too little time is left")
            break
        running[name] = start(name, precision)
        trained = injector(name, precision) if needs_injector and name != cells[-1] else None
        while name != cells[-1] and running[name].poll() is None and not (trained and trained.exists()):
            time.sleep(0.5)
    for name, process in running.items():
        env.log(name, "ends with code", process.wait())


def main() -> None:
    with (env.WORK / "cells.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # cells of an earlier command end at their deadline
        DONE.unlink(missing_ok=True)
        if env.on_gpu() or env.TINY:
            run(CELLS)
        else:
            env.log("no CUDA device: no cell is run")
        DONE.write_text("done\n")


if __name__ == "__main__":
    main()
