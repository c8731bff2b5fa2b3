"""The command line of the three scripts. Imports nothing heavy: `--help` and bad usage answer at once."""

import argparse
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from operator import attrgetter
from pathlib import Path

from . import __version__
from .config import IMAGE_SIZES, OFFICIAL, TARGETS, Run, target
from .errors import GnimeError
from .registry import DEFAULT_ROWS, EXPLAINERS, KNOWN, find_row
from .threads import configure_threads

ABOUT = {
    "prepare": "Train the victim and the evaluation classifier, and explain every image: models/victim, models/eval, aux/.",
    "train": "Train the noise injector against its inverter: models/def.",
    "eval": "Train an attacker for each setting, and compare what they recover: models/inv, figures/.",
}
EPOCHS = {"prepare": "of the classifiers, at most", "train": "of the injector", "eval": "of the inverters, at most"}
CONFIGS = {"prepare": "classifier.", "train": "injector.", "eval": "inverter."}


class Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Defaults in --help, where there is one and the help does not tell it itself."""

    def _get_help_string(self, action):
        told = any(action.default is nothing for nothing in (None, False, ())) or "(default" in action.help
        return action.help if told else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """Bad usage is one line."""

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}; --help lists the flags\n")


def _default(number: str) -> str:
    """What a number of `Target`, "width" or "injector.epochs", is when no flag sets it."""
    usual, faces, digits = (attrgetter(number)(TARGETS[name]) for name in ("mnist", "celeba", "digits"))
    return f"(default: {usual:g}" + (f"; faces and folders {faces:g}" if faces != usual else "") + f"; digits {digits:g})"


def at_least(least: int) -> Callable[[str], int]:
    """A type for flags: whole numbers from `least` on, below 2^31."""

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


def target_name(text: str) -> str:
    """A type for flags: what can be a folder in --datasets and a part of a file's name."""
    if not re.fullmatch(r"\w[\w .+-]*", text) or text.endswith((" ", ".", ".state")) or len(text.encode()) > 200:
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
        raise argparse.ArgumentTypeError(f"{value}: networks use fractions of it; give a multiple of 64, at most 65536")
    return value


def parser(script: str) -> argparse.ArgumentParser:
    made = Parser(f"{script}.py", description=ABOUT[script], formatter_class=Formatter, allow_abbrev=False)
    made.add_argument("--version", action="version", version=f"gnime {__version__}")
    what = made.add_argument_group("what")
    what.add_argument("--target", type=target_name, default="digits", metavar="NAME",
                      help=f"{', '.join(TARGETS)}, or any folder of class folders in --datasets")
    what.add_argument("--xai", choices=EXPLAINERS, default="lrp", help="explainer")
    what.add_argument("--limit", type=at_least(1), metavar="N", help="only the first N images after the shuffle")
    what.add_argument("--image-size", type=int, choices=IMAGE_SIZES, metavar="S",
                      help=f"side of a folder target's images: {', '.join(map(str, IMAGE_SIZES))} (default: 128)")
    what.add_argument("--seed", type=at_least(0), default=0, help="of shuffle, weights, orders and noise")
    if script == "eval":
        what.add_argument("--settings", nargs="+", type=row_name, default=list(DEFAULT_ROWS), metavar="SETTING",
                          help=f"of {KNOWN} (default: {' '.join(DEFAULT_ROWS)})")
        what.add_argument("--jobs", type=at_least(1), default=1, metavar="N", help="attackers that are trained at once")
    if script == "prepare":
        what.add_argument("--skip-bad", action="store_true", help="leave damaged pictures out, and list them in aux/")
    how = made.add_argument_group("training (defaults: the paper's)")
    how.add_argument("--epochs", type=at_least(1), metavar="N",
                     help=f"{EPOCHS[script]} {_default(CONFIGS[script] + 'epochs')}")
    how.add_argument("--batch-size", type=at_least(1), metavar="N",
                     help=f"images a step {_default(CONFIGS[script] + 'batch_size')}")
    how.add_argument("--width", type=_width, metavar="W", help=f"of inversion networks and injector {_default('width')}")
    if script == "train":
        how.add_argument("--weight", type=_positive, metavar="A",
                         help=f"of the attacker's error in the injector's loss {_default('inversion_weight')}")
    add_official(how)
    where = made.add_argument_group("where")
    where.add_argument("--gpu", type=at_least(-1), default=0, help="index of the CUDA device; -1 is the CPU")
    where.add_argument("--precision", choices=("fp32", "tf32", "bf16"), help="(default: tf32 on CUDA, fp32 on the CPU)")
    where.add_argument("--deterministic", action="store_true", help="repeat exactly on CUDA too, slower")
    where.add_argument("--root", type=Path, default=Path(), help="holds datasets/, models/, aux/ and figures/")
    where.add_argument("--datasets", type=Path, metavar="DIR", help="data elsewhere than in ROOT/datasets")
    return made


def add_official(where: argparse._ActionsContainer) -> None:
    """`--official`: nothing, everything, or some of `OFFICIAL`."""
    where.add_argument("--official", nargs="*", choices=OFFICIAL, action=_Official, default=(), metavar="CHOICE",
                       help="repeat the authors' release where it differs from the paper, in all or some of: "
                            + "; ".join(f"{name} ({what})" for name, what in OFFICIAL.items()))


class _Official(argparse.Action):
    """Each choice once, in the order of `OFFICIAL`; none named means all."""

    def __call__(self, parser, namespace, values, option=None) -> None:
        setattr(namespace, self.dest, tuple(name for name in OFFICIAL if name in values or not values))


def resolve(script: str, arguments: list[str] | None = None) -> Run:
    """The run that a command line asks for; bad usage ends the process with code 2."""
    made = parser(script)
    given = made.parse_args(arguments)
    if given.image_size and given.target in TARGETS:
        made.error(f"argument --image-size: {given.target} has its own size; it is for folder targets")
    for flag, path in (("--root", given.root), ("--datasets", given.datasets)):
        if "\0" in str(path):
            made.error(f"argument {flag}: a path has no null character")
    chosen = target(given.target, given.image_size)
    if given.width:
        chosen = replace(chosen, width=given.width)
    if getattr(given, "weight", None) is not None:
        chosen = replace(chosen, inversion_weight=given.weight)
    if chosen.width < chosen.size:
        made.error(f"argument --width: {chosen.width}: images of side {chosen.size} need at least {chosen.size}")
    rows = tuple(dict.fromkeys(getattr(given, "settings", ())))
    return Run(script, chosen, given.xai, given.root, given.datasets or given.root / "datasets", given.seed, given.limit,
               given.official, given.gpu, given.precision, given.deterministic, given.epochs, given.batch_size,
               rows, getattr(given, "skip_bad", False), getattr(given, "jobs", 1))


def main(script: str, arguments: list[str] | None = None) -> int:
    """Runs a script and returns its exit code: 0, 1 for what the user must mend outside, 2 for bad usage.

    Raises `SystemExit` with code 2 where the command line itself is refused, as argparse does.
    """
    for stream in (sys.stdout, sys.stderr):  # names may have letters that a terminal has not
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    run = resolve(script, arguments)

    def work() -> None:
        from . import pipeline  # heavy: only once the command line is known to be good

        {"prepare": pipeline.prepare, "train": pipeline.train, "eval": pipeline.evaluate}[script](run)

    return guarded(f"{script}.py", work)


def guarded(name: str, work: Callable[[], int | None]) -> int:
    """The exit code of `work`, which may import torch. Faults that a user can mend become one line; others stay a traceback."""
    configure_threads()
    try:
        return work() or 0
    except GnimeError as error:
        code, line = error.exit_code, str(error)
    except KeyboardInterrupt:
        code, line = 130, "stopped; the same command goes on from what is saved"
    except MemoryError:
        code, line = 1, "out of memory; give a smaller --batch-size or --width"
    except OSError as error:
        code, line = 1, f"{error.filename or 'file system'}: {error.strerror or error}"
    except RuntimeError as error:
        if "out of memory" in str(error) or "can't allocate memory" in str(error):
            code, line = 1, "the device is out of memory; give a smaller --batch-size or --width, or --precision bf16"
        elif "Connection closed by peer" in str(error):  # several processes: another says why
            code, line = 1, "another process of this run stopped"
        else:
            raise
    print(f"{name}: error: {line}", file=sys.stderr)
    return code
