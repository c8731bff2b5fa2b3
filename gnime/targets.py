"""The target of a command line. Imports nothing heavy where the target's folder has no .npy files."""

from argparse import ArgumentParser, Namespace
from dataclasses import replace

from .config import IMAGE_SIZES, TARGETS, Target, target
from .errors import GnimeError
from .filenames import IMAGES, PREDICTIONS, arrays_in, maps_file
from .ownfiles import is_own
from .registry import EXPLAINERS
from .threads import configure_threads

IN_AUX = ("imgs", "labels", "predictions")  # names of other files there


def find_target(flags: ArgumentParser, given: Namespace) -> Target:
    """The target's record. Where its folder has .npy files, they decide the images, and flags that cannot act are refused.

    given: `target`, `xai`, `victim`, `datasets` and `image_size`. What does not fit ends the process: with code 2, or with 1
    where the images' file is damaged.
    """
    folder, name = given.datasets / given.target, given.xai
    source = arrays_in(folder)
    if source != "record" and not is_own(name) and name not in EXPLAINERS:
        flags.error(f"argument --xai: {name!r} is none of {', '.join(EXPLAINERS)}, and not FILE.py:NAME; only a record has "
                    f"maps of other names, and {folder} has no {PREDICTIONS}")
    if not source:
        return target(given.target, given.image_size)
    if given.target in TARGETS:
        flags.error(f"argument --target: {given.target} is a data set that GNIME knows, and {folder} has other images "
                    f"({IMAGES}); rename the folder")
    if source == "record" and given.victim:
        flags.error(f"argument --victim: {folder} is a service's record ({PREDICTIONS}), which is audited without a model")
    if source == "record" and (is_own(name) or name in IN_AUX):
        flags.error(f"argument --xai: the maps of a record are in {maps_file(folder, 'NAME')}; give that NAME"
                    + ("" if is_own(name) else f", which may not be {name}"))
    configure_threads()
    from .npy import pictures  # here, because it imports numpy

    try:
        channels, size, _ = pictures(folder / IMAGES).shape
    except GnimeError as error:
        flags.exit(error.exit_code, f"{flags.prog}: error: {error}\n")
    least, most = IMAGE_SIZES
    if not given.image_size and not least <= size <= most:
        flags.error(f"argument --image-size: the images in {folder / IMAGES} are {size} x {size}; give a side from {least} to "
                    f"{most} to resize them to")
    return replace(target(given.target, given.image_size or size), source=source, channels=channels)
