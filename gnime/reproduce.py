"""Whole runs, seed by seed: `python -m gnime.reproduce` measures a matrix of targets, explainers and seeds.

Without other flags it is the paper's table. Every run goes through the code of the three scripts and leaves one JSON in
`results/`, and the seeds of a target and explainer leave one page. Stopped at any moment and started again, it goes on where
it was. `--docs` writes docs/results.md and its charts from these files alone, `--check` compares.
"""

import argparse
import json
import math
import os
import re
import shlex
import sys
import time
from functools import partial
from pathlib import Path

from .cells import PROGRAM, Cell, asked_rows, cell_run, difference, own_digests, parser, result_path
from .cli import guarded
from .config import Run
from .errors import GnimeError, Stopped
from .registry import DEFAULT_ATTACKERS, find_row, in_order


def run_cell(options: argparse.Namespace, cell: Cell, settings: tuple[str, ...]) -> None:
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


def finished_part(options: argparse.Namespace, cell: Cell, settings: tuple[str, ...]) -> list[str]:
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


def _write_result(options: argparse.Namespace, cell: Cell, run: Run, measured: dict) -> None:
    from .report.results import portable
    from .store import write_text

    del measured["configuration"]["gpu"]
    if digests := own_digests(run):
        measured["own_files"] = digests
    run = portable(run)
    rows = " ".join(shlex.quote(run.given("settings", name)) for name in measured["settings"])
    attackers = " ".join(shlex.quote(run.given("attackers", name)) for name in run.attackers)
    flags = {"--preset": options.preset, "--targets": shlex.quote(cell[0]), "--xai": shlex.quote(run.given("xai", run.xai)),
             "--seeds": cell[2], "--victim": shlex.quote(run.victim) if run.victim else None,
             "--layer": shlex.quote(run.layer) if run.layer else None,
             "--scale": None if run.scale == "absolute" else run.scale,
             **{f"--{name.replace('_', '-')}": getattr(options, name) for name in (
                 "limit", "image_size", "width", "epochs", "batch_size", "lr", "drop_duplicates")},
             "--settings": rows, "--precision": options.precision,
             "--published": run.published if run.published_part else None,
             "--attackers": attackers if run.attackers != DEFAULT_ATTACKERS else None}
    words = [f"{flag} {value}" for flag, value in flags.items() if value is not None]
    words += [f"--{name.replace('_', '-')}" for name in ("deterministic", "skip_bad") if getattr(options, name)]
    measured["command"] = " ".join([PROGRAM, *words, *run.official_flag()])
    measured["commands"] = [measured["command"]]
    write_text(result_path(options, cell), json.dumps(measured, indent=1) + "\n")


def reproduce(options: argparse.Namespace) -> int:
    """Runs what has no result yet, then shows of each target and explainer what all its seeds say."""
    cells = list(dict.fromkeys((name, xai, seed) for seed in options.seeds for name in options.targets for xai in options.xai))
    for cell in cells:
        cell_run("prepare", options, cell)  # refused before the first hour, not after it
    for folder in {result_path(options, cell).parent for cell in cells}:
        _writable(folder)
    _measure(options, cells)
    for cell in {cell[:2]: cell for cell in cells}.values():
        _show_seeds(options, cell)
    return 0


def _measure(options: argparse.Namespace, cells: list[Cell]) -> None:
    """Seed by seed, so that an early stop leaves finished cells.

    A cell that lacks a setting is evaluated again with those it has and those asked for: a file only grows. When the time is
    up, the settings whose training is finished are evaluated in the part of the budget that is kept for it.
    """
    from .report.docs import read_result
    from .system import say, stop_after, time_is_up

    margin = options.margin or evaluation_seconds(options.budget or 0.0)
    stop_after(options.budget - margin if options.budget else math.inf)
    for i, cell in enumerate(cells, 1):
        path, asked, there = result_path(options, cell), asked_rows(options, cell), set()
        if path.exists():
            result = read_result(path)
            if reason := difference(result, options, cell):
                raise GnimeError(f"{path}: {reason}")
            there = set(result["settings"])
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
            return
        say(f"[{i}/{len(cells)}] {path}: made in {time.monotonic() - began:.0f} s")


def _show_seeds(options: argparse.Namespace, cell: Cell) -> None:
    """The table of means of all seeds whose results lie there, and their page."""
    from . import pipeline
    from .report import seeds
    from .report.docs import read_result
    from .system import say

    any_seed = result_path(options, cell)
    name, runs = any_seed.name.rpartition("_seed")[0], []
    for path in any_seed.parent.glob(f"{name}_seed*.json"):
        if not re.fullmatch(r"[0-9]+", path.stem.removeprefix(f"{name}_seed")):
            continue
        result = read_result(path)
        reason = difference(result, options, cell) or ("" if "verdict" in result else "measured by a version without a verdict")
        if reason:
            say(f"{path}: not in the page of all seeds: {reason}")
        else:
            runs.append(result)
    if runs:
        page = any_seed.with_name(f"{name}_report.html")
        runs.sort(key=lambda run: run["seed"])
        pipeline.draw(seeds.write, page, runs)
        say("", *seeds.lines(runs), f"report: {page}")


def evaluation_seconds(budget: float) -> float:
    """The part of a budget in which nothing is trained and finished settings are evaluated, where `--margin` is not given."""
    return min(max(10.0, 0.1 * budget), 60.0, budget / 2)


def _writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        reason = None if os.access(folder, os.W_OK | os.X_OK) else "Permission denied"
    except OSError as error:
        reason = error.strerror
    if reason:
        raise GnimeError(f"--results: {folder} cannot be written ({reason}); choose another folder or mend its permissions")


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
