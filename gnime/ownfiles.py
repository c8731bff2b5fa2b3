"""Objects in files of the user's own, named FILE.py:NAME on the command line. Imports nothing heavy itself.

Such a file is run because the user named it. Nothing else in the program runs code from a file.
"""

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from .errors import USER_MODULE, GnimeError, brief, place

CHECKOUT = str(Path(__file__).resolve().parent.parent)  # or the folder of the installed packages


def is_own(name: str) -> bool:
    """Whether the name is FILE.py:NAME, not one of the registry's."""
    return name.rpartition(":")[0].endswith(".py")


def own_name(spec: str) -> str:
    """NAME of "FILE.py:NAME". It stands in tables and in names of files."""
    return spec.rpartition(":")[2]


def check_spec(spec: str) -> None:
    """Looks for the file; runs nothing.

    Raises:
        ValueError: there is no such file, or the name is none that Python has. The message says which.
    """
    file, _, name = spec.rpartition(":")
    if not Path(file).is_file():
        raise ValueError(f"{file}: no such file")
    if not name.isidentifier() or len(name.encode()) > 60:
        raise ValueError(f"{spec}: {name[:60]!r} is no name of an object in {file}")


def digest(spec: str) -> str:
    """SHA-256 of the file, in hexadecimal. Files that it imports do not count."""
    return hashlib.sha256(_read(Path(spec.rpartition(":")[0]))).hexdigest()


def load_own(spec: str) -> Callable:
    """The object NAME of FILE.py. A file is run once in a process, and again where it has changed. It can import the files
    beside it; see `_search`.

    Raises:
        GnimeError: the file cannot be read or run, or has no callable object of that name.
    """
    file, _, name = spec.rpartition(":")
    module = _module(Path(file), digest(spec))
    if not hasattr(module, name):
        there = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise GnimeError(f"{file}: has no {name}" + (f"; it has {', '.join(there)}"[:300] if there else ""))
    found = getattr(module, name)
    if not callable(found):
        raise GnimeError(f"{file}: {name} is a {type(found).__name__}, not a function")
    return found


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise GnimeError(f"{path}: cannot be read ({error.strerror})") from None


def call(spec: str, function: Callable, *arguments: object, **named: object) -> Any:
    """What an object of the user's own returns.

    Raises:
        GnimeError: it does not take these arguments. What it raises itself passes; see `errors.fixable`.
    """
    try:
        return function(*arguments, **named)
    except TypeError as error:
        if place(error):
            raise
        raise GnimeError(f"{spec}: {brief(error)}; docs/own-model.md shows how it is called") from None


def _module(path: Path, version: str) -> ModuleType:
    name = f"{USER_MODULE}{path.resolve()} {version[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    _search(str(path.resolve().parent))
    module = ModuleType(name)
    module.__file__ = str(path.resolve())
    sys.modules[name] = module  # as of every module: dataclasses and pickles look there
    try:
        exec(compile(_read(path), str(path), "exec"), vars(module))
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        line = error.lineno if isinstance(error, SyntaxError) and error.filename == str(path) else None
        where = f"{path}:{line}" if line else place(error) or path
        raise GnimeError(f"{where}: cannot be imported ({brief(error)})") from None
    return module


def _search(folder: str) -> None:
    """Lets the files in a folder be imported. It is searched after Python's own and the installed packages, so that no file
    such as torch.py hides one of these, and before a checkout of ours, whose train.py and tests/ are not what a user means."""
    if folder not in sys.path:
        ours = [path for path in sys.path if path == CHECKOUT and Path(path, "train.py").exists()]
        sys.path[:] = [path for path in sys.path if path not in ours] + [folder, *ours]
