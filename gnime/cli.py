"""The command line of the three scripts. Imports nothing heavy, so that `--help` and errors of usage are fast."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from . import __version__
from .config import PUBLISHED, TARGETS, Run, Target, program
from .errors import GnimeError, fixable
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
from .ownfiles import is_own, own_name
from .registry import ATTACKERS, DEFAULT_ROWS, DEFENCES, EXPLAINERS, ROWS, takes_layer
from .streams import one_command, open_standard_streams, tell
from .targets import IN_AUX, find_target
from .threads import configure_threads

ABOUT = {
    "prepare": "Train the victim and the evaluation classifier, and explain every image. Writes to models/ and aux/.",
    "train": "Train the noise injector against a sparring inverter. Writes to models/def/.",
    "eval": "Train an attacker for each setting, and compare the images that they recover. Writes to models/inv/ and figures/.",
}


def _name(script: str) -> str:
    return program(script).removeprefix("python ")


def parser(script: str) -> argparse.ArgumentParser:
    """The command-line flags of a script: "prepare", "train" or "eval"."""
    flags = Parser(_name(script), description=ABOUT[script], formatter_class=Formatter, allow_abbrev=False)
    flags.add_argument("--version", action="version", version=f"gnime {__version__}")
    data = flags.add_argument_group("data and explainer")
    add_target(data)
    add_xai(data)
    data.add_argument("--seed", type=at_least(0), default=0, help="of shuffle, first weights, order of batches and noise")
    add_data(data)
    if script == "eval":
        add_rows(data, DEFAULT_ROWS)
    if script == "prepare":
        add_pictures(data)
    training = flags.add_argument_group("training (defaults: the paper's)")
    add_training(training, script)
    if script == "train":
        add_weight(training)
    add_official(training)
    place = flags.add_argument_group("device and folders")
    add_device(place)
    place.add_argument("--root", type=Path, default=Path(), help="folder of models/, aux/ and figures/")
    place.add_argument("--datasets", type=Path, metavar="DIR", help="folder of the data sets (default: ROOT/datasets)")
    return flags


def resolve(script: str, arguments: list[str] | None = None) -> Run:
    """The run of a command line (`sys.argv` if `arguments` is None). An error of usage ends the process with code 2."""
    register(())  # what an earlier run in this process registered
    flags = parser(script)
    given = flags.parse_args(arguments)
    given.datasets = given.datasets or given.root / "datasets"
    return run_of(script, given, flags)


def run_of(script: str, given: argparse.Namespace, flags: Parser, record: Target | None = None) -> Run:
    """The run of a script with these flags; those that it does not take may be missing.

    record: the target, where it is not that of `config.target`. Values that do not fit together end the process with code 2.
    """
    if given.image_size and given.target in TARGETS and not given.victim:
        flags.error(f"argument --image-size: the size of {given.target} is fixed; the flag is for folder targets, and for a "
                    "--victim of your own")
    for flag, path in (("--root", given.root), ("--datasets", given.datasets)):
        if "\0" in str(path):
            flags.error(f"argument {flag}: a path cannot contain a null character")
    found = find_target(flags, given)
    record = record or found
    if given.width:
        record = replace(record, width=given.width)
    if record.width < 1 << (record.size - 1).bit_length():  # at the next power of two a network has a channel or more
        flags.error(f"argument --width: {record.width}: images of side {record.size} need at least {record.size}")
    rows, asked = ([*dict.fromkeys(getattr(given, flag, ()))] for flag in ("settings", "attackers"))
    if form := next((form for form in PUBLISHED if form != "logits" and own_name(given.xai).endswith(f"_{form}")), ""):
        flags.error(f"argument --xai: {given.xai}: a name that ends with _{form} is for files of --published {form}; rename it")
    files = own_files(flags, {"xai": [given.xai], "settings": rows, "attackers": asked})
    if given.scale != "absolute" and not is_own(given.xai) and record.source != "record":
        flags.error(f"argument --scale: the maps of {given.xai} have no sign; the flag is for an explainer of your own")
    if given.layer and (record.source == "record" or not takes_layer(given.xai)):
        flags.error(f"argument --layer: {given.xai} does not take a layer; the flag is for --xai gradcam")
    rows, attackers = tuple(map(own_name, rows)), tuple(map(own_name, asked))
    return Run(script, record, own_name(given.xai), given.root, given.datasets, given.seed,
               given.limit, given.official, given.gpu, given.precision, given.deterministic, given.epochs, given.batch_size,
               rows, attackers, getattr(given, "skip_bad", False), getattr(given, "drop_duplicates", None),
               getattr(given, "jobs", 1), given.published, given.lr, tuple(dict.fromkeys(getattr(given, "weight", ()))),
               given.victim or "", given.scale, given.layer or "", files)


def own_files(flags: Parser, asked: dict[str, list[str]]) -> tuple[tuple[str, str], ...]:
    """The objects of the user's own among the names that flags were given. Each needs a name that is not taken.

    Returns pairs of a flag and FILE.py:NAME, as `Run.files` has them. A name that is taken ends the process with code 2.
    """
    files = []
    for flag, names in asked.items():
        taken = {*EXPLAINERS, *DEFENCES, *ROWS, *ATTACKERS, *IN_AUX, "all", "victim", "evaluation", "injector"}
        for spec in filter(is_own, names):
            if own_name(spec) in taken:
                flags.error(f"argument --{flag}: {spec}: the name {own_name(spec)} is taken; give the object another one")
            taken.add(own_name(spec))
            files.append((flag, spec))
    return tuple(files)


def main(script: str, arguments: list[str] | None = None) -> int:
    """Runs a script. Returns the exit code: 0, 1 for a fault that the user can fix, 2 for an error of usage.

    Raises:
        SystemExit: argparse refuses the command line (code 2), or it has --help or --version (code 0).
    """
    open_standard_streams()
    run = resolve(script, arguments)

    def work() -> None:
        from . import pipeline  # here, because it is slow to import and a wrong command line does not need it

        {"prepare": pipeline.prepare, "train": pipeline.train, "eval": pipeline.evaluate}[script](run)

    return guarded(_name(script), work)


def prepare() -> int:
    """The command `gnime-prepare`."""
    return main("prepare")


def train() -> int:
    """The command `gnime-train`."""
    return main("train")


def evaluate() -> int:
    """The command `gnime-eval`."""
    return main("eval")


def guarded(name: str, work: Callable[[], int | None]) -> int:
    """Calls `work`, which may import torch, and returns its exit code.

    An error that the user can fix is printed as one line. Any other error is raised.
    """
    configure_threads()
    try:
        with one_command():
            return work() or 0
    except GnimeError as error:
        code, line = error.exit_code, str(error)
    except KeyboardInterrupt:
        code, line = 130, "stopped; the same command goes on from what is saved"
    except Exception as error:
        if (line := fixable(error)) is None:
            raise
        code = 1
    tell(f"{name}: error: {' '.join(line.splitlines())}", sys.stderr)
    return code
