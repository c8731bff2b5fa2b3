"""The flags of the commands. Imports nothing heavy, so that `--help` is fast."""

import argparse
from collections.abc import Sequence
from operator import attrgetter

from .config import IMAGE_SIZES, OFFICIAL, PUBLISHED, TARGETS
from .flagtypes import (
    at_least,
    layer_name,
    maps_name,
    name_or_file,
    own_file,
    rate,
    row_or_file,
    side,
    target_name,
    weight,
    width,
)
from .ownfiles import is_own
from .registry import ATTACKERS, DEFAULT_ATTACKERS, EXPLAINERS, KNOWN, injector_row

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


def add_target(flags: argparse._ActionsContainer, *several: str) -> None:
    """Adds `--target`, or `--targets` where there are defaults for `several`."""
    kind = {"nargs": "+", "default": list(several)} if several else {"default": "digits"}
    flags.add_argument("--targets" if several else "--target", type=target_name, metavar="NAME", **kind,
                       help=f"{', '.join(TARGETS)}, or any folder of class folders or of arrays in --datasets "
                            f"(default: {' '.join(several) or 'digits'})")


def add_xai(flags: argparse._ActionsContainer, *several: str) -> None:
    """Adds `--xai`, which takes a name in `EXPLAINERS` or FILE.py:NAME, and several where there are defaults for `several`."""
    kind = {"nargs": "+", "default": list(several)} if several else {"default": "lrp"}
    flags.add_argument("--xai", type=maps_name, metavar="XAI", **kind,
                       help=f"explainer: {', '.join(EXPLAINERS)}, FILE.py:NAME of your own, or the name of a record's maps "
                            f"(default: {' '.join(several) or 'lrp'})")


def add_data(flags: argparse._ActionsContainer) -> None:
    """Adds the flags of the images and of what is published of them."""
    flags.add_argument("--victim", type=own_file, metavar="FILE.py:NAME",
                       help="your own function that returns the model, in place of the paper's classifier; it is not trained")
    add_layer(flags)
    flags.add_argument("--scale", choices=("absolute", "signed"), default="absolute",
                       help="of maps by your own explainer or of a record: their absolute value is shown, as in the paper, or "
                            "the sign is kept")
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
