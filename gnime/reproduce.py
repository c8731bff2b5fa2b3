"""Whole runs, seed by seed: `python -m gnime.reproduce` measures a matrix of targets, explainers and seeds.

Without other flags it is the paper's table. Every run goes through the code of the three scripts and leaves one JSON in
`results/`, and the seeds of a target and explainer leave one page. Stopped at any moment and started again, it goes on where
it was. `--docs` writes docs/results.md, its charts and README's table from these files alone, `--check` compares.
"""

import argparse
import json
import math
import os
import re
import shlex
import sys
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from .cells import (
    PROGRAM,
    Cell,
    asked_rows,
    cell_run,
    data_now,
    data_of,
    difference,
    own_digests,
    parser,
    result_path,
)
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


def _refuse_other_training(options: argparse.Namespace, cell: Cell, settings: tuple[str, ...]) -> None:
    """Raises `GnimeError` where a classifier or an injector has another training than these flags ask for.

    The scripts would use it as it is. Then the result would be of another configuration than its command, and refused.
    """
    from .checkpoints import load_checkpoint
    from .networks import trained_otherwise
    from .paths import Paths
    from .resuming import StateFile

    before, train = (cell_run(script, options, cell, settings) for script in ("prepare", "train"))
    paths = Paths(before)
    classifiers = [paths.evaluation, *([] if before.victim else [paths.victim])]
    used = [(path, before.train_config("classifier"), None) for path in classifiers]
    for path in map(paths.injector, train.weights):  # which can go on from its state
        used.append((path, train.train_config("injector"), StateFile(paths.state(path), train.root, {})))
    for path, config, state in used:
        if path.exists() and (other := trained_otherwise(load_checkpoint(path), config, state)):
            raise GnimeError(f"{path}: {other}; give the same --epochs, --batch-size and --lr again, or another --root")


def finished_part(options: argparse.Namespace, cell: Cell, settings: tuple[str, ...], there: set[str]) -> list[str]:
    """Writes the result of those settings whose training is finished, after the time was up; returns their names.

    there: the rows of the result that lies there. Where one of them would be lost, nothing is written.
    """
    from . import pipeline
    from .errors import Unfinished

    run = cell_run("eval", options, cell, settings)
    try:
        measured = pipeline.evaluate(run, trains=False)
    except Unfinished:
        measured = None
    if measured is None or not there <= measured["settings"].keys():
        return []
    _write_result(options, cell, run, measured)
    return list(measured["settings"])


def _write_result(options: argparse.Namespace, cell: Cell, run: Run, measured: dict) -> None:
    from .report.results import SOMEWHERE, portable
    from .store import write_text

    del measured["configuration"]["gpu"]
    if digests := own_digests(run):
        measured["own_files"] = digests
    run = portable(run, SOMEWHERE)
    rows = " ".join(shlex.quote(run.given("settings", name)) for name in measured["settings"])
    attackers = " ".join(shlex.quote(run.given("attackers", name)) for name in run.attackers)
    flags = {"--preset": options.preset, "--targets": shlex.quote(cell[0]), "--xai": shlex.quote(run.given("xai", run.xai)),
             "--seeds": cell[2], "--victim": shlex.quote(run.victim) if run.victim else None,
             "--layer": shlex.quote(run.layer) if run.layer else None,
             "--scale": None if run.scale == "absolute" else run.scale,
             **{f"--{name.replace('_', '-')}": getattr(options, name) for name in (
                 "limit", "image_size", "width", "epochs", "batch_size", "lr", "drop_duplicates")},
             "--datasets": shlex.quote(str(run.datasets)) if options.datasets != parser().get_default("datasets") else None,
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
    data = {cell[:2]: data_now(cell_run("prepare", options, cell)) for cell in {cell[:2]: cell for cell in cells}.values()}
    for cell in cells:  # likewise
        asked, there = asked_rows(options, cell), _rows_there(options, cell, data[cell[:2]])
        if not asked <= there:
            _refuse_other_training(options, cell, tuple(in_order(asked | there)))
    _measure(options, cells, data)
    for cell in {cell[:2]: cell for cell in cells}.values():
        _show_seeds(options, cell, data[cell[:2]])
    return 0


def _measure(options: argparse.Namespace, cells: list[Cell], data: dict[tuple[str, str], dict]) -> None:
    """Seed by seed, so that an early stop leaves finished cells.

    A cell that lacks a setting is evaluated again with those it has and those asked for: a file only grows. A second process
    that adds to the same cell waits. When the time is up, the settings whose training is finished are evaluated in the part of
    the budget that is kept for it.
    """
    from .store import artifact_lock
    from .system import say, stop_after, time_is_up

    margin = options.margin or evaluation_seconds(options.budget or 0.0)
    stop_after(options.budget - margin if options.budget else math.inf)
    for i, cell in enumerate(cells, 1):
        path, asked, of_data = result_path(options, cell), asked_rows(options, cell), data[cell[:2]]
        whole = asked <= _rows_there(options, cell, of_data)
        with nullcontext() if whole else artifact_lock(path, path.parent):
            there = _rows_there(options, cell, of_data)  # a process that held the lock has added some
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
                part = finished_part(options, cell, settings, there)
                more = f", and {' '.join(part)} of {path}" if part else ""
                say(f"{stopped}; {i - 1} of {len(cells)} cells are done{more}")
                return
        say(f"[{i}/{len(cells)}] {path}: made in {time.monotonic() - began:.0f} s")


def _rows_there(options: argparse.Namespace, cell: Cell, data: dict) -> set[str]:
    """The rows of the cell's result; none where there is none. Raises `GnimeError` where it is damaged or of another run."""
    from .report.docs import read_result

    path = result_path(options, cell)
    if not path.exists():
        return set()
    result = read_result(path)
    if reason := difference(result, options, cell, data):
        raise GnimeError(f"{path}: {reason}")
    return set(result["settings"])


def _show_seeds(options: argparse.Namespace, cell: Cell, data: dict) -> None:
    """The table of means of all seeds whose results lie there, and their page. Seeds of other data are left out.

    data: as `data_now` returns it. Where the data are not there, the asked seed's result says which they are.
    """
    from . import pipeline
    from .report import seeds
    from .report.docs import read_result
    from .system import say

    any_seed = result_path(options, cell)
    name, runs = any_seed.name.rpartition("_seed")[0], []
    paths = {path: path.stem.removeprefix(f"{name}_seed") for path in any_seed.parent.glob(f"{name}_seed*.json")}
    for path, seed in sorted(paths.items(), key=lambda found: (found[0] != any_seed, found[0])):
        if not re.fullmatch(r"[0-9]+", seed):
            continue
        try:
            result = read_result(path)
            reason = difference(result, options, (*cell[:2], int(seed)), data)
        except GnimeError as error:
            reason = str(error).removeprefix(f"{path}: ")
        if not reason and "verdict" not in result:
            reason = "measured by a version without a verdict"
        if reason:
            say(f"{path}: not in the page of all seeds: {reason}")
        else:
            runs.append(result)
            data = data_of(result) | data
    if runs:
        page = any_seed.with_name(f"{name}_report.html")
        runs.sort(key=lambda run: run["seed"])
        pipeline.draw(seeds.write, page, runs, options.seeds)
        gathered = seeds.gather(runs, options.seeds)
        finish = [f"to add them: {_here(seeds.command(gathered), options, cell)}"] if gathered.missing() else []
        say("", *seeds.lines(runs, options.seeds), *finish, f"report: {page}")


def _here(command: str, options: argparse.Namespace, cell: Cell) -> str:
    """The command of a result for this machine: with its places, which results leave out."""
    from .report.results import SOMEWHERE, portable

    run = cell_run("eval", options, cell)
    shown = portable(run, SOMEWHERE)
    pairs = [(shown.victim, run.victim), (str(shown.datasets), str(run.datasets)),
             *((told, here) for (_, told), (_, here) in zip(shown.files, run.files, strict=True))]
    places, words = dict(pairs), shlex.split(command)
    words = [places.get(word, word) for word in words]
    for name in ("datasets", "root", "results", "gpu", "jobs"):
        if f"--{name}" not in words and (place := getattr(options, name)) != parser().get_default(name):
            words += [f"--{name}", str(place)]
    return shlex.join(words)


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
    flags = parser()
    options = flags.parse_args(arguments)
    if instead := next((name for name in ("docs", "check") if getattr(options, name)), ""):
        changed = [name for name, value in vars(options).items() if value != flags.get_default(name)]
        if others := [name for name in changed if name not in (instead, "results")]:
            flags.error(f"argument --{others[0].replace('_', '-')}: not of --{instead}, which takes --results alone")

    def work() -> int:
        if not (options.docs or options.check):
            return reproduce(options)
        from .report.docs import check_docs, write_docs

        return check_docs(options.results) if options.check else write_docs(options.results)

    return guarded(PROGRAM, work)


if __name__ == "__main__":
    sys.exit(main())
