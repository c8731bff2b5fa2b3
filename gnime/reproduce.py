"""The paper's table, measured: `python -m gnime.reproduce` runs a matrix of targets, explainers and seeds.

Every run goes through the code of the three scripts and leaves one JSON in `results/`. Stopped at any moment and
started again, it goes on where it was. `--docs` writes docs/results.md and its charts from these files alone, `--check`
compares.
"""

import argparse
import json
import math
import os
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from .cli import Formatter, Parser, add_attackers, add_official, add_published, at_least, guarded, row_name, target_name
from .config import OFFICIAL, Run, Target, TrainConfig, target
from .errors import GnimeError, Stopped, UsageError
from .registry import (
    CONTROLS,
    DEFAULT_ATTACKERS,
    EXPLAINERS,
    KNOWN,
    PAPER_EXPLAINERS,
    PAPER_ROWS,
    find_row,
    in_order,
    injector_weights,
)

PROGRAM = "python -m gnime.reproduce"


@dataclass(frozen=True)
class Reduced:
    """A target cut down for a CPU: stated beside its numbers, kept apart from the paper's table."""

    limit: int | None
    classifier: TrainConfig
    injector: TrainConfig
    inverter: TrainConfig
    width: int = 256
    image_size: int | None = None

    def of(self, name: str) -> Target:
        return replace(target(name, self.image_size), width=self.width, classifier=self.classifier,
                       injector=self.injector, inverter=self.inverter)


_CLASSIFIER = TrainConfig(epochs=6, batch_size=64, lr=1e-3, betas=(0.5, 0.999))
_INVERTER = TrainConfig(epochs=300, batch_size=64, lr=1e-3)
REDUCED = {
    "mnist": Reduced(3000, _CLASSIFIER, TrainConfig(epochs=60, batch_size=64, lr=1e-3), _INVERTER),
    "cifar10": Reduced(3000, _CLASSIFIER, TrainConfig(epochs=60, batch_size=64, lr=1e-3), _INVERTER),
    "orl_faces": Reduced(None, replace(_CLASSIFIER, epochs=30, batch_size=16, lr=3e-4),
                         TrainConfig(epochs=500, batch_size=16, lr=1e-3),
                         replace(_INVERTER, epochs=600, batch_size=16, patience=40), image_size=32),
}


def cell_run(script: str, options: argparse.Namespace, cell: tuple[str, str, int], settings: tuple[str, ...] = ()) -> Run:
    """The run of one script for one cell; explainers of one seed share a root, so images, victim and PredMI too."""
    name, xai, seed = cell
    reduced = REDUCED.get(name) if options.preset == "reduced" else None
    if options.preset == "reduced" and reduced is None and name != "digits":
        raise UsageError(f"--targets {name}: no reduced configuration; there is one for digits, {', '.join(REDUCED)}")
    limit = options.limit or (reduced.limit if reduced else None)
    rehearsal = f"_limit{options.limit}" if options.limit else ""
    root = options.root / f"{options.preset}{rehearsal}{mode(options.official)}_seed{seed}"
    goal = reduced.of(name) if reduced else target(name)
    rows = settings if script == "eval" else ()
    weights = injector_weights(settings, goal.inversion_weight) if script == "train" else ()
    return Run(script, goal, xai, root, options.datasets, seed, limit, options.official, options.gpu, options.precision,
               rows=rows, attackers=options.attackers, weights=weights,
               published=options.published)


def result_path(options: argparse.Namespace, cell: tuple[str, str, int]) -> Path:
    """The place of a cell's one JSON. Rehearsals on few images, and other published forms, lie apart from the preset's."""
    name, xai, seed = cell
    folder = options.preset if options.limit is None else f"rehearsal_{options.preset}_{options.limit}"
    folder += cell_run("prepare", options, cell).published_part
    return options.results / folder / f"{name}_{xai}{mode(options.official)}{_precision(options)}_seed{seed}.json"


def _precision(options: argparse.Namespace) -> str:
    """The part of a name that keeps precisions apart, where it is not the device's default."""
    from .device import default_precision

    given = options.precision
    return f"_{given}" if given and given != default_precision(options.gpu) else ""


def mode(official: tuple[str, ...]) -> str:
    """The part of a name that keeps runs which repeat other choices of the authors apart."""
    return "_" + "-".join(["official", *(official if len(official) < len(OFFICIAL) else ())]) if official else ""


def run_cell(options: argparse.Namespace, cell: tuple[str, str, int], settings: tuple[str, ...]) -> None:
    """The three scripts for one cell, and its JSON: nothing in it is of this machine but the hardware's name."""
    from . import pipeline
    from .parallel import run_side_by_side

    before = cell_run("prepare", options, cell), cell_run("train", options, cell, settings)
    run = cell_run("eval", options, cell, settings)
    if options.jobs > 1:
        run_side_by_side([partial(pipeline.train_row, run, name, before) for name in settings], options.jobs)
    pipeline.prepare(before[0])
    if any(find_row(name).needs_injector for name in settings):
        pipeline.train(before[1])
    _write_result(options, cell, run, pipeline.evaluate(run))


def finished_part(options: argparse.Namespace, cell: tuple[str, str, int], settings: tuple[str, ...]) -> list[str]:
    """Writes the result of those settings whose training is finished, after the time was up; returns their names."""
    from . import pipeline
    from .errors import Unfinished

    run = cell_run("eval", options, cell, settings)
    try:
        measured = pipeline.evaluate(run, trains=False)
    except Unfinished:
        measured = None
    if measured:
        _write_result(options, cell, run, measured)
    return list(measured["settings"]) if measured else []


def _write_result(options: argparse.Namespace, cell: tuple[str, str, int], run: Run, measured: dict) -> None:
    from .store import write_text

    del measured["configuration"]["gpu"]
    flags = {"--preset": options.preset, "--targets": cell[0], "--xai": cell[1], "--seeds": cell[2], "--limit": options.limit,
             "--settings": " ".join(measured["settings"]), "--precision": options.precision,
             "--published": run.published if run.published_part else None}
    if options.attackers != DEFAULT_ATTACKERS:
        flags["--attackers"] = " ".join(options.attackers)
    words = [f"{flag} {value}" for flag, value in flags.items() if value is not None]
    measured["command"] = " ".join([PROGRAM, *words, *run.official_flag()])
    measured["commands"] = [measured["command"]]
    write_text(result_path(options, cell), json.dumps(measured, indent=1) + "\n")


def reproduce(options: argparse.Namespace) -> int:
    """Runs what has no result yet: seed by seed, so that an early stop leaves finished cells.

    A cell that lacks a setting is evaluated again with those it has and those asked for: a file only grows. When the time is
    up, the settings whose training is finished are evaluated in the part of the budget that is kept for it.
    """
    from .report.docs import read_result
    from .system import say, stop_after, time_is_up

    margin = options.margin or evaluation_seconds(options.budget or 0.0)
    stop_after(options.budget - margin if options.budget else math.inf)
    asked = {*options.settings, *(CONTROLS if options.controls else ())}
    cells = list(dict.fromkeys((name, xai, seed) for seed in options.seeds for name in options.targets for xai in options.xai))
    for cell in cells:
        cell_run("prepare", options, cell)  # refused before the first hour, not after it
    _writable(result_path(options, cells[0]).parent)
    for i, cell in enumerate(cells, 1):
        path = result_path(options, cell)
        there = _made_likewise(path, read_result(path), cell_run("eval", options, cell)) if path.exists() else set()
        if asked <= there:
            say(f"[{i}/{len(cells)}] {path}: found")
            continue
        say(f"[{i}/{len(cells)}] {path}")
        began = time.monotonic()
        settings = tuple(in_order(asked | there))
        try:
            run_cell(options, cell, settings)
        except Stopped as stopped:
            if not time_is_up():  # Ctrl-C
                raise
            part = finished_part(options, cell, settings)
            say(f"{stopped}; {i - 1} of {len(cells)} cells are done" + (f", and {' '.join(part)} of {path}" if part else ""))
            return 0
        say(f"[{i}/{len(cells)}] {path}: made in {time.monotonic() - began:.0f} s")
    return 0


def evaluation_seconds(budget: float) -> float:
    """The part of a budget in which nothing is trained and finished settings are evaluated, where `--margin` is not given."""
    return min(max(10.0, 0.1 * budget), 60.0, budget / 2)


def _made_likewise(path: Path, result: dict, run: Run) -> set[str]:
    """The settings that a result has, if sizes and training are the run's: a file is of one configuration."""
    wanted = json.loads(json.dumps(run.describe()))
    for key in ("limit", "official", "image", "width", "weight", "stages", "attackers", "published"):
        if result["configuration"].get(key) != wanted.get(key):
            raise GnimeError(f"{path}: measured with {key} {json.dumps(result['configuration'].get(key))}, this run has "
                             f"{json.dumps(wanted.get(key))}; move it away, or give another --results and --root")
    from .device import default_precision

    precision = run.precision or default_precision(run.gpu)
    if result["precision"] != precision:
        raise GnimeError(f"{path}: measured in {result['precision']}, this run computes in {precision}; give --precision "
                         f"{result['precision']}, or another --results and --root")
    return set(result["settings"])


def _writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        reason = None if os.access(folder, os.W_OK | os.X_OK) else "Permission denied"
    except OSError as error:
        reason = error.strerror
    if reason:
        raise GnimeError(f"--results: {folder} cannot be written ({reason}); choose another folder or mend its permissions")


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value


def parser() -> argparse.ArgumentParser:
    """The flags of `python -m gnime.reproduce`."""
    made = Parser(PROGRAM, description=__doc__.splitlines()[0], formatter_class=Formatter, allow_abbrev=False)
    made.add_argument("--preset", choices=("paper", "reduced"), default="paper", help="the paper's sizes, or a CPU's")
    made.add_argument("--targets", nargs="+", type=target_name, default=["mnist", "cifar10"], metavar="TARGET",
                      help="(default: mnist cifar10)")
    made.add_argument("--xai", nargs="+", choices=EXPLAINERS, default=list(PAPER_EXPLAINERS), metavar="XAI",
                      help=f"explainers (default: {' '.join(PAPER_EXPLAINERS)})")
    made.add_argument("--seeds", nargs="+", type=at_least(0), default=[0, 1, 2], metavar="SEED",
                      help="one run each, all networks reseeded (default: 0 1 2)")
    made.add_argument("--settings", nargs="+", type=row_name, default=list(PAPER_ROWS), metavar="SETTING",
                      help=f"of {KNOWN} (default: {' '.join(PAPER_ROWS)})")
    made.add_argument("--controls", action="store_true", help=f"also {', '.join(CONTROLS)}")
    add_attackers(made)
    add_official(made)
    add_published(made)
    made.add_argument("--limit", type=at_least(1), metavar="N",
                      help="a rehearsal on the first N images; its results are kept apart from the preset's")
    made.add_argument("--jobs", type=at_least(1), default=1, metavar="N", help="settings whose attackers are trained at once")
    made.add_argument("--budget", type=_seconds, metavar="SECONDS",
                      help="after which all ends; training stops before, and finished settings are evaluated")
    made.add_argument("--margin", type=_seconds, metavar="SECONDS",
                      help="of the budget, kept for evaluation (default: a tenth of it, from 10 to 60 s); as "
                           "large as the budget: nothing is trained")
    made.add_argument("--root", type=Path, default=Path(".reproduce"), help="networks and arrays; may be deleted after")
    made.add_argument("--datasets", type=Path, default=Path("datasets"), help="data")
    made.add_argument("--results", type=Path, default=Path("results"), help="one JSON per run")
    made.add_argument("--gpu", type=at_least(-1), default=0, help="index of the CUDA device; -1 is the CPU")
    made.add_argument("--precision", choices=("fp32", "tf32", "bf16"), help="(default: tf32 on CUDA, fp32 on the CPU)")
    instead = made.add_mutually_exclusive_group()
    instead.add_argument("--docs", action="store_true", help="write docs/results.md and its charts, run nothing")
    instead.add_argument("--check", action="store_true", help="exit 1 where docs/results.md or a chart is not of these results")
    return made


def main(arguments: list[str] | None = None) -> int:
    """Runs, writes or compares; returns the exit code: 0, 1 for what the user must mend outside, 2 for bad usage."""
    options = parser().parse_args(arguments)

    def work() -> int:
        if not (options.docs or options.check):
            return reproduce(options)
        from .report.docs import check_docs, write_docs

        return check_docs(options.results) if options.check else write_docs(options.results)

    return guarded(PROGRAM, work)


if __name__ == "__main__":
    sys.exit(main())
