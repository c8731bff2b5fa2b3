"""What flags take: types for argparse, which check a value and name what is wrong with it."""

import argparse
import re
import unicodedata
from collections.abc import Callable, Iterable

from .config import IMAGE_SIZES
from .filenames import layer_part
from .ownfiles import check_spec, is_own
from .registry import EXPLAINERS, find_row, injector_row

JOINERS = "\u200c\u200d"  # between letters of Persian and of Indian scripts


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


def positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of at least 0")
    return value


def rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0, up to 1")
    return value


def weight(text: str) -> float:
    value = positive(text)
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


def layer_name(text: str) -> str:
    """A type for flags: the name of a module, which can be a part of a file's name."""
    if not text.isprintable() or not 1 < len(layer_part(text)) <= 100:
        raise argparse.ArgumentTypeError(f"{text[:60]!r} is not the name of a module, as features.7")
    return text


def own_file(text: str) -> str:
    """A type for flags: FILE.py:NAME, an object in a file of the user's own."""
    if not is_own(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not FILE.py:NAME")
    try:
        check_spec(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def name_or_file(names: Iterable[str]) -> Callable[[str], str]:
    """A type for flags: one of the registry's names, or FILE.py:NAME."""
    names = list(names)

    def known(text: str) -> str:
        if text in names:
            return text
        if not is_own(text):
            raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(names)}, and not FILE.py:NAME")
        return own_file(text)

    return known


def maps_name(text: str) -> str:
    """A type for flags: an explainer as `name_or_file` takes it, or a word, which may be the name of a record's maps."""
    word = re.fullmatch(r"\w[\w+-]*", text) and len(text.encode()) <= 60
    return text if word else name_or_file(EXPLAINERS)(text)


def row_name(text: str) -> str:
    """A type for flags: the name of a row that the registry knows."""
    try:
        return find_row(text).name
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def row_or_file(text: str) -> str:
    return own_file(text) if is_own(text) else row_name(text)


def side(text: str) -> int:
    value, (least, most) = at_least(1)(text), IMAGE_SIZES
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(f"{value} is not from {least} to {most}")
    return value


def width(text: str) -> int:
    value = at_least(64)(text)
    if value % 64 or value > 65536:
        raise argparse.ArgumentTypeError(f"{value} is not a multiple of 64 up to 65536")
    return value
