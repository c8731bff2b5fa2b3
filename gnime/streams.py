"""Printing where the standard streams are closed or their readers have gone. Imports nothing heavy."""

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
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


_warned: set[str] | None = None  # by the command that runs; global, like the streams
_said: set[str] = set()  # by the command
_known: frozenset[str] = frozenset()  # said by the process that started this one


@contextlib.contextmanager
def one_command() -> Iterator[None]:
    """What is done in it is one command, which gives each warning once, whichever of its steps find it."""
    global _warned, _said
    before = _warned, _said
    _warned, _said = set(), set()
    try:
        yield
    finally:
        _warned, _said = before


def to_say(lines: Iterable[str]) -> list[str]:
    """The lines without those that the process which started this one has said."""
    new = [line for line in lines if line not in _known]
    _said.update(new)
    return new


def said() -> frozenset[str]:
    """What the command has said, for `leave_out` of a process that it starts."""
    return frozenset(_said)


def leave_out(lines: frozenset[str]) -> None:
    """This process says none of these lines."""
    global _known
    _known = lines


def is_new(warning: str) -> bool:
    """Whether the command did not give this warning before. Outside of a command each is new."""
    if _warned is None:
        return True
    new = warning not in _warned
    _warned.add(warning)
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
