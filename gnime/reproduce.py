"""The paper's table, measured: `python -m gnime.reproduce` runs a matrix of targets, explainers and seeds.

Every run goes through the code of the three scripts and leaves one JSON in `results/`. Stopped at any moment and
started again, it goes on where it was. `--docs` writes docs/results.md from these files alone, `--check` compares.
"""

import argparse
import json
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from .cli import guarded
from .config import Run, Stage, Target, target
from .errors import GnimeError, Stopped
from .explainers import EXPLAINERS
from .settings import CONTROLS, SETTINGS

RESULTS = Path("results")
PAPER_SETTINGS = ("predmi", "expmi", "rnd", "gnime", "ond")


@dataclass(frozen=True)
class Reduced:
    """A target cut down for a CPU: stated beside its numbers, kept apart from the paper's table."""

    limit: int | None
    classifier: Stage
    injector: Stage
    inverter: Stage
    width: int = 256
    image_size: int | None = None

    def of(self, name: str) -> Target:
        return replace(target(name, self.image_size), width=self.width, classifier=self.classifier,
                       injector=self.injector, inverter=self.inverter)


_CLASSIFIER = Stage(epochs=6, batch_size=64, lr=1e-3, betas=(0.5, 0.999))
_INVERTER = Stage(epochs=300, batch_size=64, lr=1e-3)
REDUCED = {
    "mnist": Reduced(3000, _CLASSIFIER, Stage(epochs=60, batch_size=64, lr=1e-3), _INVERTER),
    "cifar10": Reduced(3000, _CLASSIFIER, Stage(epochs=60, batch_size=64, lr=1e-3), _INVERTER),
    "orl_faces": Reduced(None, replace(_CLASSIFIER, epochs=30, batch_size=16, lr=3e-4),
                         Stage(epochs=500, batch_size=16, lr=1e-3),
                         replace(_INVERTER, epochs=600, batch_size=16, patience=40), image_size=32),
}


def cell_run(script: str, options: argparse.Namespace, name: str, xai: str, seed: int) -> Run:
    """The run of one script for one cell; explainers of one seed share a root, so images, victim and PredMI too."""
    reduced = REDUCED.get(name) if options.preset == "reduced" else None
    if options.preset == "reduced" and reduced is None and name != "digits":
        raise GnimeError(f"--targets {name}: no reduced configuration; there is one for digits, {', '.join(REDUCED)}")
    root = options.root / f"{options.preset}{'_official' if options.official else ''}_seed{seed}"
    settings = tuple(dict.fromkeys([*options.settings, *(CONTROLS if options.controls else ())]))
    return Run(script, reduced.of(name) if reduced else target(name), xai, root, options.datasets, seed,
               reduced.limit if reduced else None, options.official, options.gpu, options.precision,
               settings=settings if script == "eval" else ())


def result_path(options: argparse.Namespace, name: str, xai: str, seed: int) -> Path:
    mode = "_official" if options.official else ""
    return options.results / options.preset / f"{name}_{xai}{mode}_seed{seed}.json"


def done(path: Path, settings: tuple[str, ...]) -> bool:
    """Whether the cell's file is there and has all settings."""
    return path.exists() and set(settings) <= json.loads(path.read_text())["settings"].keys()


def run_cell(options: argparse.Namespace, name: str, xai: str, seed: int) -> None:
    from . import pipeline
    from .artifacts import Paths, write_text

    for script, step in (("prepare", pipeline.prepare), ("train", pipeline.train), ("eval", pipeline.evaluate)):
        run = cell_run(script, options, name, xai, seed)
        step(run)
    measured = json.loads((Paths(run).figures / "results.json").read_text())
    for place in ("root", "datasets", "gpu"):  # of this machine, not of the result
        del measured["configuration"][place]
    flags = ["--settings", *measured["settings"]] + ["--official"] * options.official
    measured["command"] = " ".join(["python -m gnime.reproduce --preset", options.preset, "--targets", name, "--xai", xai,
                                    "--seeds", str(seed), *flags])
    write_text(result_path(options, name, xai, seed), json.dumps(measured, indent=1) + "\n")


def reproduce(options: argparse.Namespace) -> int:
    """Runs what has no result yet: seed by seed, so that whatever stops early leaves finished cells."""
    from .runtime import say, stop_after

    if options.budget:
        stop_after(options.budget)
    cells = [(name, xai, seed) for seed in options.seeds for name in options.targets for xai in options.xai]
    for i, (name, xai, seed) in enumerate(cells, 1):
        path = result_path(options, name, xai, seed)
        wanted = cell_run("eval", options, name, xai, seed).settings
        if done(path, wanted):
            say(f"[{i}/{len(cells)}] {path}: found")
            continue
        say(f"[{i}/{len(cells)}] {path}")
        began = time.monotonic()
        try:
            run_cell(options, name, xai, seed)
        except Stopped as stopped:
            say(f"{stopped}; {i - 1} of {len(cells)} cells are done")
            return 0
        say(f"[{i}/{len(cells)}] {path}: made in {time.monotonic() - began:.0f} s")
    return 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser("python -m gnime.reproduce", description=__doc__.splitlines()[0],
                                   formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False)
    made.add_argument("--preset", choices=("paper", "reduced"), default="paper", help="the paper's sizes, or a CPU's")
    made.add_argument("--targets", nargs="+", default=["mnist", "cifar10"], help="targets")
    made.add_argument("--xai", nargs="+", choices=EXPLAINERS, default=list(EXPLAINERS), help="explainers")
    made.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="one run each, all networks reseeded")
    made.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(PAPER_SETTINGS), help="settings")
    made.add_argument("--controls", action="store_true", help=f"also {', '.join(CONTROLS)}")
    made.add_argument("--official", action="store_true", help="repeat the authors' release where it differs")
    made.add_argument("--budget", type=float, help="seconds after which to stop where the work can be resumed")
    made.add_argument("--root", type=Path, default=Path(".reproduce"), help="networks and arrays; may be deleted after")
    made.add_argument("--datasets", type=Path, default=Path("datasets"), help="data")
    made.add_argument("--results", type=Path, default=RESULTS, help="one JSON per run")
    made.add_argument("--gpu", type=int, default=0, help="index of the CUDA device; -1 is the CPU")
    made.add_argument("--precision", choices=("fp32", "tf32", "bf16"), help="default: tf32 on CUDA, fp32 on the CPU")
    made.add_argument("--docs", action="store_true", help="write docs/results.md and its charts, run nothing")
    made.add_argument("--check", action="store_true", help="exit 1 where docs/results.md differs from the results")
    return made


def main(arguments: list[str] | None = None) -> int:
    made = parser()
    options = made.parse_args(arguments)
    unknown = [name for name in options.targets if "/" in name or name.startswith(".")]
    if unknown or min(options.seeds) < 0:
        made.error(f"argument --targets or --seeds: {unknown or options.seeds}")
    if options.docs or options.check:
        from .docs import check_docs, write_docs

        return guarded("reproduce", lambda: check_docs(options.results) if options.check else write_docs(options.results))
    return guarded("reproduce", lambda: reproduce(options))


if __name__ == "__main__":
    sys.exit(main())
