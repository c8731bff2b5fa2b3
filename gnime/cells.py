"""What the flags of `python -m gnime.reproduce` mean: its runs, the places of their results, and which results are theirs.

A cell is one target, explainer and seed. Each of its runs is one of the three scripts.
"""

import argparse
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

from . import words
from .cli import run_of
from .config import OFFICIAL, TARGETS, Run, Target, TrainConfig, target
from .errors import UsageError
from .filenames import layer_part
from .flags import (
    Formatter,
    Parser,
    add_data,
    add_device,
    add_official,
    add_pictures,
    add_rows,
    add_target,
    add_training,
    add_weight,
    add_xai,
)
from .flagtypes import at_least
from .ownentries import register
from .ownfiles import digest, is_own, own_name
from .registry import CONTROLS, PAPER_EXPLAINERS, PAPER_ROWS, find_row, injector_row, injector_weights

PROGRAM = "python -m gnime.reproduce"
ABOUT = """The paper's table or a run of your own, seed by seed: one JSON for each seed, and one page for all of them."""
# what changes the run of a preset
CHANGING = ("victim", "layer", "image_size", "width", "epochs", "batch_size", "lr", "skip_bad", "drop_duplicates")
# of a result's configuration, what is not compared: a file only grows by rows; files are compared by their contents; the stages
# tell epochs, batch and learning rate; precision stands beside the configuration; the rest decides no number
IGNORED = {"settings", "files", "epochs", "batch_size", "lr", "precision", "script", "skip_bad", "deterministic", "gpu"}
Cell = tuple[str, str, int]  # target, explainer and seed


@dataclass(frozen=True)
class Reduced:
    """A target cut down for a CPU: stated beside its numbers, kept apart from the paper's table."""

    limit: int | None
    classifier: TrainConfig
    injector: TrainConfig
    inverter: TrainConfig
    width: int = 256
    image_size: int | None = None

    def of(self, name: str, image_size: int | None = None) -> Target:
        return replace(target(name, image_size or self.image_size), width=self.width, classifier=self.classifier,
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


def kept_as(options: argparse.Namespace, cell: Cell) -> str:
    """The folder of a cell's files: the preset's, or "own" for a folder of images and where flags change the preset."""
    folder = options.preset == "paper" and cell[0] not in TARGETS
    own = any(map(is_own, (cell[1], *options.settings, *options.attackers)))
    kept = "own" if folder or own or any(getattr(options, name) for name in CHANGING) else options.preset
    return kept + (f"_limit{options.limit}" if options.limit else "")


def cell_run(script: str, options: argparse.Namespace, cell: Cell, settings: tuple[str, ...] = ()) -> Run:
    """The run of one script for one cell, as the script makes it of the same flags. Registers its objects of the user's own.

    Explainers of one seed share a root, so images, victim and PredMI too.
    """
    name, xai, seed = cell
    reduced = REDUCED.get(name) if options.preset == "reduced" else None
    if options.preset == "reduced" and reduced is None and name != "digits":
        raise UsageError(f"--targets {name}: no reduced configuration; there is one for digits, {', '.join(REDUCED)}")
    root = options.root / f"{kept_as(options, cell)}{mode(options.official)}_seed{seed}"
    given = argparse.Namespace(**vars(options) | {
        "target": name, "xai": xai, "seed": seed, "root": root, "limit": options.limit or (reduced.limit if reduced else None),
        "weight": (), "jobs": 1})
    if script != "prepare":
        given.skip_bad, given.drop_duplicates = False, None
    register(())
    run = run_of(script, given, parser(), reduced.of(name, options.image_size) if reduced else None)
    register(run.files)
    return replace(run, rows=settings if script == "eval" else (),
                   weights=injector_weights(settings, run.target.inversion_weight) if script == "train" else ())


def result_path(options: argparse.Namespace, cell: Cell) -> Path:
    """The place of a cell's one JSON. Runs on fewer images, and other published forms, lie apart from the preset's."""
    run = cell_run("prepare", options, cell)
    victim = f"_{own_name(run.victim)}" if run.victim else ""
    how = f"{mode(options.official)}{_precision(options)}{layer_part(run.layer)}"
    name = f"{run.target.name}{victim}_{run.xai}{how}_seed{run.seed}.json"
    return options.results / (kept_as(options, cell) + run.published_part) / name


def _precision(options: argparse.Namespace) -> str:
    """The part of a name that keeps precisions apart, where it is not the device's default."""
    from .device import default_precision

    given = options.precision
    return f"_{given}" if given and given != default_precision(options.gpu) else ""


def mode(official: tuple[str, ...]) -> str:
    """The part of a name that keeps runs which repeat other choices of the authors apart."""
    return "_" + "-".join(["official", *(official if len(official) < len(OFFICIAL) else ())]) if official else ""


def asked_rows(options: argparse.Namespace, cell: Cell) -> set[str]:
    """Names of the rows that the flags ask for."""
    usual = cell_run("train", options, cell).target.inversion_weight
    weighted = ("gnime" if weight == usual else injector_row(weight) for weight in options.weight)
    return {*map(own_name, options.settings), *(CONTROLS if options.controls else ()), *weighted}


def difference(result: dict, options: argparse.Namespace, cell: Cell, data: dict) -> str:
    """What another configuration or other data a result was measured with than these flags ask for, and what to do.

    data: as `data_now` returns it. Returns an empty text where there is no difference.
    """
    from .device import default_precision

    run, found = cell_run("eval", options, cell), dict(result["configuration"])
    wanted = _configuration(options, cell)
    stages, networks = wanted["stages"], result.get("networks", {})
    classifier = networks.get("victim") or networks.get("evaluation") or {}
    for kind, stage in found["stages"].items():
        if stage is None or kind == "injector" and not any(find_row(name).needs_injector for name in result["settings"]):
            stages[kind] = stage  # the run has no such network, or not one that it trained
        elif kind == "classifier" and classifier.get("early") and stages[kind]["epochs"] >= classifier["epochs"]:
            stages[kind]["epochs"] = stage["epochs"]  # more would have changed nothing
    if absent := [f"--{flag} {spec}" for flag, spec in found.get("files", []) if [flag, spec] not in wanted.get("files", [])]:
        return f"measured with {' '.join(absent)}; give the same flags again, or another --results and --root"
    if changed := [spec for spec, made_by in result.get("own_files", {}).items() if own_digests(run).get(spec) != made_by]:
        return f"measured with another content of {' and '.join(changed)}; move it away, or give another --results and --root"
    for key in (name for name in wanted | found if name not in IGNORED):
        if found.get(key) != wanted.get(key):
            return (f"measured with {words.difference(key, found.get(key), wanted.get(key))}; move it away, or give another "
                    "--results and --root")
    precision = run.precision or default_precision(run.gpu)
    if result["precision"] != precision:
        return (f"measured in {result['precision']}, this run computes in {precision}; give --precision "
                f"{result['precision']}, or another --results and --root")
    if changed := [name for name, digest in data_of(result).items() if data.get(name, digest) != digest]:
        return f"of other data ({', '.join(changed)}); move it away, or give another --results and --root"
    return ""


def _configuration(options: argparse.Namespace, cell: Cell) -> dict:
    """As a result has it: the evaluation's, with what prepare.py and train.py decide."""
    from .report.results import portable

    made = {script: portable(cell_run(script, options, cell)).describe() for script in ("prepare", "train", "eval")}
    wanted = made["eval"] | {"drop_duplicates": made["prepare"]["drop_duplicates"]}
    wanted["stages"] |= {"classifier": made["prepare"]["stages"]["classifier"], "injector": made["train"]["stages"]["injector"]}
    return json.loads(json.dumps(wanted))


def data_now(run: Run) -> dict:
    """What tells the run's data from others: "images" -> `sources.fingerprint`, and each other file of a record -> its digest.

    What is not there yet is left out.

    Raises:
        GnimeError: an array or a record is damaged.
    """
    from .records import Folder, digest
    from .sources import fingerprint

    found: dict = {"images": fingerprint(run)}
    if run.record:
        folder = Folder(run.datasets / run.target.folder)
        found |= {file.path.name: digest(file.path) for file in (folder.predictions, folder.maps(run.xai))}
    return {name: value for name, value in found.items() if value}


def data_of(result: dict) -> dict:
    """The same of a result, as far as it says: older ones say less, and scikit-learn's digits are always the same."""
    found = {"images": result.get("source")} | result.get("record", {}).get("files", {})
    return {name: value for name, value in found.items() if value}


def own_digests(run: Run) -> dict[str, str]:
    """The SHA-256 of the file of each of the run's objects of the user's own, by the FILE.py:NAME that results have."""
    from .report.results import portable

    def specs(of: Run) -> list[str]:
        return [*([of.victim] if of.victim else []), *(spec for _, spec in of.files)]

    return {told: digest(spec) for told, spec in zip(specs(portable(run)), specs(run), strict=True)}


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value


def parser() -> Parser:
    """The flags of `python -m gnime.reproduce`: those of the scripts, for several targets, explainers and seeds."""
    made = Parser(PROGRAM, description=ABOUT, formatter_class=Formatter, allow_abbrev=False)
    made.add_argument("--preset", choices=("paper", "reduced"), default="paper",
                      help="the paper's sizes, or a CPU's; other flags change them, and results/own then has the results")
    add_target(made, "mnist", "cifar10")
    add_xai(made, *PAPER_EXPLAINERS)
    made.add_argument("--seeds", nargs="+", type=at_least(0), default=[0, 1, 2], metavar="SEED",
                      help="one run each, all networks reseeded (default: 0 1 2)")
    add_data(made)
    add_pictures(made)
    add_rows(made, PAPER_ROWS)
    made.add_argument("--controls", action="store_true", help=f"also {', '.join(CONTROLS)}")
    add_training(made)
    add_weight(made)
    add_official(made)
    add_device(made)
    made.add_argument("--budget", type=_seconds, metavar="SECONDS",
                      help="after which all ends; training stops before, and finished settings are evaluated. The exit code "
                           "is 0 where cells are left, too; a line says how many are done")
    made.add_argument("--margin", type=_seconds, metavar="SECONDS",
                      help="of the budget, kept for evaluation (default: a tenth of it, from 10 to 60 s); as "
                           "large as the budget: nothing is trained")
    made.add_argument("--root", type=Path, default=Path(".reproduce"), help="networks and arrays; may be deleted after")
    made.add_argument("--datasets", type=Path, default=Path("datasets"), help="data")
    made.add_argument("--results", type=Path, default=Path("results"), help="one JSON per run")
    instead = made.add_mutually_exclusive_group()
    instead.add_argument("--docs", action="store_true", help="write docs/results.md, its charts and README's table alone")
    instead.add_argument("--check", action="store_true", help="exit 1 where one of them is not of these results")
    return made
