"""The command line of the three scripts. Imports nothing heavy, so that `--help` and errors of usage are fast."""

import argparse
import re
import sys
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from operator import attrgetter
from pathlib import Path

from . import __version__
from .config import IMAGE_SIZES, OFFICIAL, PUBLISHED, TARGETS, Run, target
from .errors import GnimeError, fixable
from .registry import ATTACKERS, DEFAULT_ATTACKERS, DEFAULT_ROWS, EXPLAINERS, KNOWN, find_row, injector_row
from .streams import open_standard_streams, tell
from .threads import configure_threads

ABOUT = {
    "prepare": "Train the victim and the evaluation classifier, and explain every image. Writes to models/ and aux/.",
    "train": "Train the noise injector against a sparring inverter. Writes to models/def/.",
    "eval": "Train an attacker for each setting, and compare the images that they recover. Writes to models/inv/ and figures/.",
}
JOINERS = "\u200c\u200d"  # between letters of Persian and of Indian scripts
EPOCHS = {"prepare": "of the classifiers, at most", "train": "of the injector", "eval": "of the inverters, at most"}
CONFIGS = {"prepare": "classifier.", "train": "injector.", "eval": "inverter."}


class Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the default to the help of a flag that has one and does not state it already."""

    def _get_help_string(self, action):
        complete = any(action.default is nothing for nothing in (None, False, ())) or "(default" in action.help
        return action.help if complete else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """Prints an error of usage as one line, without the usage text."""

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}; --help lists the flags\n")


def _default(number: str) -> str:
    """The defaults of a number of `Target`, such as "width" or "injector.epochs", for --help."""
    usual, faces, digits = (attrgetter(number)(TARGETS[name]) for name in ("mnist", "celeba", "digits"))
    return f"(default: {usual:g}" + (f"; faces and folders {faces:g}" if faces != usual else "") + f"; digits {digits:g})"


def at_least(least: int) -> Callable[[str], int]:
    """A type for flags: whole numbers of at least `least`, below 2^31."""

    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if not least <= value < 2**31:
            raise argparse.ArgumentTypeError(f"{value} is not {'at least ' + str(least) if value < least else 'below 2^31'}")
        return value

    return number


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of at least 0")
    return value


def _rate(text: str) -> float:
    if not 0 < (value := _positive(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0, up to 1")
    return value


def _weight(text: str) -> float:
    value = _positive(text)
    try:
        same = find_row(injector_row(value)).parameters["weight"] == value
    except ValueError:
        same = False
    if not same:
        raise argparse.ArgumentTypeError(f"{text} has too many digits: the injector's name carries six at most")
    return value


def target_name(text: str) -> str:
    """A type for flags: a name that can be a folder in --datasets and a part of a file's name."""
    letters = "".join(c for c in text if not unicodedata.category(c).startswith("M") and c not in JOINERS)
    if not re.fullmatch(r"\w[\w .+-]*", letters) or text.endswith((" ", ".", ".state")) or len(text.encode()) > 200:
        raise argparse.ArgumentTypeError(f"{text!r} is not the name of a folder in --datasets")
    return text


def row_name(text: str) -> str:
    """A type for flags: the name of a row that the registry knows."""
    try:
        return find_row(text).name
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _width(text: str) -> int:
    value = at_least(64)(text)
    if value % 64 or value > 65536:
        raise argparse.ArgumentTypeError(f"{value} is not a multiple of 64 up to 65536")
    return value


def parser(script: str) -> argparse.ArgumentParser:
    """The command-line flags of a script: "prepare", "train" or "eval"."""
    flags = Parser(f"{script}.py", description=ABOUT[script], formatter_class=Formatter, allow_abbrev=False)
    flags.add_argument("--version", action="version", version=f"gnime {__version__}")
    data = flags.add_argument_group("data and explainer")
    data.add_argument("--target", type=target_name, default="digits", metavar="NAME",
                      help=f"{', '.join(TARGETS)}, or any folder of class folders in --datasets")
    data.add_argument("--xai", choices=EXPLAINERS, default="lrp", help="explainer")
    data.add_argument("--limit", type=at_least(1), metavar="N", help="only the first N images after the shuffle")
    data.add_argument("--image-size", type=int, choices=IMAGE_SIZES, metavar="S",
                      help=f"side of a folder target's images: {', '.join(map(str, IMAGE_SIZES))} (default: 128)")
    data.add_argument("--seed", type=at_least(0), default=0, help="of shuffle, first weights, order of batches and noise")
    add_published(data)
    if script == "eval":
        data.add_argument("--settings", nargs="+", type=row_name, default=list(DEFAULT_ROWS), metavar="SETTING",
                          help=f"rows of the table, of {KNOWN} (default: {' '.join(DEFAULT_ROWS)})")
        add_attackers(data)
        data.add_argument("--jobs", type=at_least(1), default=1, metavar="N", help="rows whose attackers are trained at once")
    if script == "prepare":
        data.add_argument("--skip-bad", action="store_true", help="leave damaged pictures out, and list them in aux/")
        data.add_argument("--drop-duplicates", nargs="?", choices=("exact", "near"), const="exact", metavar="KIND",
                          help="leave copies of pictures out: exact ones (without KIND), or also near ones, which look alike")
    training = flags.add_argument_group("training (defaults: the paper's)")
    training.add_argument("--epochs", type=at_least(1), metavar="N",
                          help=f"{EPOCHS[script]} {_default(CONFIGS[script] + 'epochs')}")
    training.add_argument("--batch-size", type=at_least(1), metavar="N",
                          help=f"images per step {_default(CONFIGS[script] + 'batch_size')}")
    training.add_argument("--lr", type=_rate, metavar="R", help=f"Adam's learning rate {_default(CONFIGS[script] + 'lr')}")
    training.add_argument("--width", type=_width, metavar="W", help=f"of inversion networks and injector {_default('width')}")
    if script == "train":
        training.add_argument("--weight", nargs="+", type=_weight, default=(), metavar="A",
                              help="of the inversion loss in the injector's loss; one injector for each, which eval.py calls "
                                   f"{injector_row(0)[:-1]}A {_default('inversion_weight')}")
    add_official(training)
    place = flags.add_argument_group("device and folders")
    place.add_argument("--gpu", type=at_least(-1), default=0, help="index of the CUDA device; -1 is the CPU")
    place.add_argument("--precision", choices=("fp32", "tf32", "bf16"),
                       help="arithmetic of training (default: tf32 on CUDA, fp32 on the CPU)")
    place.add_argument("--deterministic", action="store_true", help="deterministic kernels on CUDA, which are slower")
    place.add_argument("--root", type=Path, default=Path(), help="folder of models/, aux/ and figures/")
    place.add_argument("--datasets", type=Path, metavar="DIR", help="folder of the data sets (default: ROOT/datasets)")
    return flags


def add_published(flags: argparse._ActionsContainer) -> None:
    """Adds `--published`, which takes a name in `PUBLISHED`."""
    flags.add_argument("--published", choices=PUBLISHED, default="logits",
                       help="what the service publishes of its predictions: attackers, injector and fitted defences see it")


def add_official(flags: argparse._ActionsContainer) -> None:
    """Adds `--official`, which takes names in `OFFICIAL`."""
    flags.add_argument("--official", nargs="*", choices=OFFICIAL, action=_Official, default=(), metavar="CHOICE",
                       help="repeat the authors' release where it differs from the paper, in all of these choices or in some: "
                            + "; ".join(f"{name} ({what})" for name, what in OFFICIAL.items()))


def add_attackers(flags: argparse._ActionsContainer) -> None:
    """Adds `--attackers`, which takes names in `ATTACKERS`."""
    flags.add_argument("--attackers", nargs="+", choices=[*ATTACKERS, "all"], action=_Attackers, default=DEFAULT_ATTACKERS,
                       metavar="ATTACKER", help=f"that attack every row, of {', '.join(ATTACKERS)}, or all (default: "
                                                f"{' '.join(DEFAULT_ATTACKERS)})")


class _Attackers(argparse.Action):
    """Each name once, in the order of `ATTACKERS`. "all" means all of them."""

    def __call__(self, parser, namespace, values, option=None) -> None:
        setattr(namespace, self.dest, tuple(name for name in ATTACKERS if name in values or "all" in values))


class _Official(argparse.Action):
    """Each choice once, in the order of `OFFICIAL`. `--official` without names means all of them."""

    def __call__(self, parser, namespace, values, option=None) -> None:
        setattr(namespace, self.dest, tuple(name for name in OFFICIAL if name in values or not values))


def resolve(script: str, arguments: list[str] | None = None) -> Run:
    """The run of a command line (`sys.argv` if `arguments` is None). An error of usage ends the process with code 2."""
    flags = parser(script)
    given = flags.parse_args(arguments)
    if given.image_size and given.target in TARGETS:
        flags.error(f"argument --image-size: the size of {given.target} is fixed; the flag is for folder targets")
    for flag, path in (("--root", given.root), ("--datasets", given.datasets)):
        if "\0" in str(path):
            flags.error(f"argument {flag}: a path cannot contain a null character")
    record = target(given.target, given.image_size)
    if given.width:
        record = replace(record, width=given.width)
    if record.width < record.size:
        flags.error(f"argument --width: {record.width}: images of side {record.size} need at least {record.size}")
    rows = tuple(dict.fromkeys(getattr(given, "settings", ())))
    return Run(script, record, given.xai, given.root, given.datasets or given.root / "datasets", given.seed, given.limit,
               given.official, given.gpu, given.precision, given.deterministic, given.epochs, given.batch_size,
               rows, getattr(given, "attackers", ()), getattr(given, "skip_bad", False),
               getattr(given, "drop_duplicates", None), getattr(given, "jobs", 1), given.published, given.lr,
               weights=tuple(dict.fromkeys(getattr(given, "weight", ()))))


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

    return guarded(f"{script}.py", work)


def guarded(name: str, work: Callable[[], int | None]) -> int:
    """Calls `work`, which may import torch, and returns its exit code.

    An error that the user can fix is printed as one line. Any other error is raised.
    """
    configure_threads()
    try:
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
