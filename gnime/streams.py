"""Printing where the standard streams are closed or their readers have gone. Imports nothing heavy."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TextIO

from .errors import printable


def open_standard_streams() -> None:
    """Opens the standard streams that are closed on the null device.

    Otherwise the next file that is opened would be one of them, and whatever a library prints would be written into it.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) < 3:  # the lowest that is free
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.dup(("stdout", "stderr").index(name) + 1), "w"))
    for stream in (sys.stdout, sys.stderr):  # names may have letters that the terminal's encoding does not have
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


_told: set[str] | None = None  # by the command that runs; global, like the streams


@contextlib.contextmanager
def one_command() -> Iterator[None]:
    """What is done in it is one command. Each warning, and each line of `system.say_once`, is printed once in it."""
    global _told
    before, _told = _told, set()
    try:
        yield
    finally:
        _told = before


def is_new(line: str) -> bool:
    """Whether the command has not printed the line yet, as it now will. Outside of a command each is new."""
    if _told is None:
        return True
    new = line not in _told
    _told.add(line)
    return new


def tell(text: str, stream: TextIO | None) -> None:
    """Prints text without control characters. A closed stream, or a pipe whose reader has gone, ends no training."""
    if stream is None:
        return
    text = "\n".join(printable(line, 4000) for line in text.split("\n"))  # a table has several lines
    try:
        print(text, file=stream, flush=True)
    except BrokenPipeError:  # the next lines, and Python's own flush at the end, go nowhere
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
    except (OSError, ValueError):
        pass
