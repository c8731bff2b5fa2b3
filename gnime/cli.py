"""The command line of the three scripts. Imports nothing heavy, so that `--help` and errors of usage are fast."""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import attrgetter
from pathlib import Path

from . import __version__
from .config import IMAGE_SIZES, OFFICIAL, PUBLISHED, TARGETS, Run, Target, program, target
from .errors import GnimeError, fixable
from .flagtypes import at_least, layer_name, name_or_file, own_file, rate, row_or_file, side, target_name, weight, width
from .ownentries import register
from .ownfiles import is_own, own_name
from .registry import ATTACKERS, DEFAULT_ATTACKERS, DEFAULT_ROWS, DEFENCES, EXPLAINERS, KNOWN, ROWS, injector_row, takes_layer
from .streams import open_standard_streams, tell
from .threads import configure_threads

ABOUT = {
    "prepare": "Train the victim and the evaluation classifier, and explain every image. Writes to models/ and aux/.",
    "train": "Train the noise injector against a sparring inverter. Writes to models/def/.",
    "eval": "Train an attacker for each setting, and compare the images that they recover. Writes to models/inv/ and figures/.",
}
EPOCHS = {"prepare": "of the classifiers, at most", "train": "of the injector", "eval": "of the inverters, at most",
          "": "of every network, at most"}
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


# The flags themselves, each once: `python -m gnime.reproduce` has those of all three scripts.


def add_target(flags: argparse._ActionsContainer, *several: str) -> None:
    """Adds `--target`, or `--targets` where there are defaults for `several`."""
    kind = {"nargs": "+", "default": list(several)} if several else {"default": "digits"}
    flags.add_argument("--targets" if several else "--target", type=target_name, metavar="NAME", **kind,
                       help=f"{', '.join(TARGETS)}, or any folder of class folders in --datasets "
                            f"(default: {' '.join(several) or 'digits'})")


def add_xai(flags: argparse._ActionsContainer, *several: str) -> None:
    """Adds `--xai`, which takes a name in `EXPLAINERS` or FILE.py:NAME, and several where there are defaults for `several`."""
    kind = {"nargs": "+", "default": list(several)} if several else {"default": "lrp"}
    flags.add_argument("--xai", type=name_or_file(EXPLAINERS), metavar="XAI", **kind,
                       help=f"explainer: {', '.join(EXPLAINERS)}, or FILE.py:NAME of your own "
                            f"(default: {' '.join(several) or 'lrp'})")


def add_data(flags: argparse._ActionsContainer) -> None:
    """Adds the flags of the images and of what is published of them."""
    flags.add_argument("--victim", type=own_file, metavar="FILE.py:NAME",
                       help="your own function that returns the model, in place of the paper's classifier; it is not trained")
    add_layer(flags)
    flags.add_argument("--scale", choices=("absolute", "signed"), default="absolute",
                       help="of your own explainer's maps: their absolute value is shown, as in the paper, or the sign is kept")
    flags.add_argument("--limit", type=at_least(1), metavar="N", help="only the first N images after the shuffle")
    flags.add_argument("--image-size", type=side, metavar="S",
                       help="side of the images, from {} to {}, of a folder target or with --victim (default: 128)".format(
                           *IMAGE_SIZES))
    add_published(flags)


def add_layer(flags: argparse._ActionsContainer) -> None:
    """Adds `--layer`, which takes the name of a module."""
    flags.add_argument("--layer", type=layer_name, metavar="NAME",
                       help="of gradcam: the module of the victim whose output is explained, as in named_modules() (default: "
                            "the last convolution with the normalisation and ReLU after it)")


def add_published(flags: argparse._ActionsContainer) -> None:
    """Adds `--published`, which takes a name in `PUBLISHED`."""
    flags.add_argument("--published", choices=PUBLISHED, default="logits",
                       help="what the service publishes of its predictions: attackers, injector and fitted defences see it")


def add_pictures(flags: argparse._ActionsContainer) -> None:
    """Adds the flags of reading pictures."""
    flags.add_argument("--skip-bad", action="store_true", help="leave damaged pictures out, and list them in aux/")
    flags.add_argument("--drop-duplicates", nargs="?", choices=("exact", "near"), const="exact", metavar="KIND",
                       help="leave copies of pictures out: exact ones (without KIND), or also near ones, which look alike")


def add_rows(flags: argparse._ActionsContainer, default: Sequence[str]) -> None:
    """Adds `--settings`, `--attackers` and `--jobs`."""
    flags.add_argument("--settings", nargs="+", type=row_or_file, default=list(default), metavar="SETTING",
                       help=f"rows of the table, of {KNOWN}, or FILE.py:NAME of your own defence "
                            f"(default: {' '.join(default)})")
    flags.add_argument("--attackers", nargs="+", action=_Attackers, default=DEFAULT_ATTACKERS, metavar="ATTACKER",
                       type=name_or_file([*ATTACKERS, "all"]),
                       help=f"that attack every row, of {', '.join(ATTACKERS)}, or all, or FILE.py:NAME of your own "
                            f"(default: {' '.join(DEFAULT_ATTACKERS)})")
    flags.add_argument("--jobs", type=at_least(1), default=1, metavar="N", help="rows whose attackers are trained at once")


def add_training(flags: argparse._ActionsContainer, script: str = "") -> None:
    """Adds the flags of the networks that a script trains; without a script, those that all three train."""
    def default(number: str) -> str:
        return _default(CONFIGS[script] + number) if script else ""

    flags.add_argument("--epochs", type=at_least(1), metavar="N", help=f"{EPOCHS[script]} {default('epochs')}")
    flags.add_argument("--batch-size", type=at_least(1), metavar="N", help=f"images per step {default('batch_size')}")
    flags.add_argument("--lr", type=rate, metavar="R", help=f"Adam's learning rate {default('lr')}")
    flags.add_argument("--width", type=width, metavar="W", help=f"of inversion networks and injector {_default('width')}")


def add_weight(flags: argparse._ActionsContainer) -> None:
    """Adds `--weight`, which takes several."""
    flags.add_argument("--weight", nargs="+", type=weight, default=(), metavar="A",
                       help="of the inversion loss in the injector's loss; one injector for each, whose row is "
                            f"{injector_row(0)[:-1]}A {_default('inversion_weight')}")


def add_device(flags: argparse._ActionsContainer) -> None:
    """Adds the flags of the device and its arithmetic."""
    flags.add_argument("--gpu", type=at_least(-1), default=0, help="index of the CUDA device; -1 is the CPU")
    flags.add_argument("--precision", choices=("fp32", "tf32", "bf16"),
                       help="arithmetic of training (default: tf32 on CUDA, fp32 on the CPU)")
    flags.add_argument("--deterministic", action="store_true", help="deterministic kernels on CUDA, which are slower")


def add_official(flags: argparse._ActionsContainer) -> None:
    """Adds `--official`, which takes names in `OFFICIAL`."""
    flags.add_argument("--official", nargs="*", choices=OFFICIAL, action=_Official, default=(), metavar="CHOICE",
                       help="repeat the authors' release where it differs from the paper, in all of these choices or in some: "
                            + "; ".join(f"{name} ({what})" for name, what in OFFICIAL.items()))


class _Attackers(argparse.Action):
    """Each name once, in the order of `ATTACKERS`, then those of one's own. "all" means all of `ATTACKERS`."""

    def __call__(self, parser, namespace, values, option=None) -> None:
        named = [name for name in ATTACKERS if name in values or "all" in values]
        setattr(namespace, self.dest, (*named, *dict.fromkeys(filter(is_own, values))))


class _Official(argparse.Action):
    """Each choice once, in the order of `OFFICIAL`. `--official` without names means all of them."""

    def __call__(self, parser, namespace, values, option=None) -> None:
        setattr(namespace, self.dest, tuple(name for name in OFFICIAL if name in values or not values))


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
    record = record or target(given.target, given.image_size)
    if given.width:
        record = replace(record, width=given.width)
    if record.width < 1 << (record.size - 1).bit_length():  # at the next power of two a network has a channel or more
        flags.error(f"argument --width: {record.width}: images of side {record.size} need at least {record.size}")
    rows, asked = ([*dict.fromkeys(getattr(given, flag, ()))] for flag in ("settings", "attackers"))
    files = own_files(flags, {"xai": [given.xai], "settings": rows, "attackers": asked})
    if given.scale != "absolute" and not is_own(given.xai):
        flags.error(f"argument --scale: the maps of {given.xai} have no sign; the flag is for an explainer of your own")
    if given.layer and not takes_layer(given.xai):
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
        taken = {*EXPLAINERS, *DEFENCES, *ROWS, *ATTACKERS, "all", "victim", "evaluation", "injector"}
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
