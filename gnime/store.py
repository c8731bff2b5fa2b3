"""Locks, and files that are written completely or not at all."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import BinaryIO

import torch

from .config import Run
from .device import Device
from .errors import GnimeError, Unfinished
from .paths import Paths
from .regular import open_regular
from .system import say, warn

LACKING = {errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF}  # of a system call that the file system does not have
NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}
PATIENCE = 0.5  # seconds for which a process waits for a lock before it says so


def prepare_root(run: Run) -> None:
    """Makes the folders models/, aux/ and figures/ under the run's root. Only prepare.py makes the root itself.

    Raises:
        GnimeError: a folder is missing, cannot be made or written, or a symbolic link leads out of the root.
    """
    root = run.root
    if run.script != "prepare" and not root.exists():
        raise Unfinished(f"--root {root}: no such folder; make it with: {run.command('prepare')}")
    for folder in ("models", "aux", "figures"):
        path = root / folder
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise GnimeError(f"--root {root}: cannot make {path} ({error.strerror})") from None
        inside(path, root)
        if not os.access(path, os.W_OK | os.X_OK):
            raise GnimeError(f"--root {root}: {path} cannot be written; choose another --root or change its permissions")
    for path in Paths(run).folders:  # before hours of training end in one of them
        inside(path, root)


def inside(path: Path, root: Path) -> Path:
    """Returns `path`.

    Raises:
        GnimeError: a symbolic link in the path leads out of the root.
    """
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
        raise GnimeError(f"{path}: a symbolic link in it leads out of --root; give the real folder as --root")
    return path


def exists(path: Path, root: Path) -> bool:
    """Whether the artifact is there. Raises as `inside` does."""
    return inside(path, root).exists()


def open_artifact(path: Path) -> BinaryIO:
    """Opens a file for reading.

    Raises:
        GnimeError: it cannot be opened, or is no regular file. The message has the system's own reason.
    """
    try:
        return open_regular(path)
    except ValueError:
        raise GnimeError(f"{path}: not a regular file; put the file itself there") from None
    except OSError as error:
        raise GnimeError(f"{path}: cannot be read ({error.strerror}); see to that, and run the command again") from None


@cache
def _warn_once(folder: Path, what: str) -> None:
    warn(f"{folder}: its file system {what}")


def reserve(file: BinaryIO, path: Path, size: int) -> None:
    """Makes room for `size` bytes in a file that is open for reading and writing. `path` is for a warning.

    Raises:
        OSError: the disk is full.
    """
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        if error.errno not in LACKING:
            raise
        _warn_once(path.parent, "cannot reserve space, so zeros are written first")
        zeros, end = bytes(1 << 20), file.seek(0, os.SEEK_END)
        for start in range(end, size, len(zeros)):
            file.write(zeros[: size - start])
        file.flush()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Yields an empty temporary file in the folder of `path`. If the block succeeds, it replaces `path` atomically.

    No link is followed: the file is new and has a random name. The folder must be proven inside the root; see `artifact_lock`.

    Raises:
        GnimeError: the file cannot be written, for example because the disk is full. `path` is unchanged.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666))
        yield part
        _sync(part)
        part.replace(path)
    except OSError as error:
        raise GnimeError(f"{path}: cannot be written ({error.strerror or error}); nothing was changed there") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    with path.open("r+b") as file:  # some file systems refuse to synchronise what is open for reading only
        try:
            os.fsync(file.fileno())
        except OSError as error:
            if error.errno not in LACKING:
                raise
            _warn_once(path.parent, "cannot synchronise files, so a loss of power can lose them")


def write_text(path: Path, text: str) -> None:
    """Writes a file of UTF-8 text. Raises as `writing` does."""
    with writing(path) as part:
        part.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def artifact_lock(path: Path, root: Path, device: Device | None = None, folder: bool = False) -> Iterator[None]:
    """Holds the lock of an artifact under `root` while this process reads or makes it. A second process waits.

    The system releases the lock when its holder dies. Temporary files that killed processes left are removed: those of
    `path`, or with `folder` all those in its folder except those of artifacts that have locks of their own. If the processes
    of `device` make the artifact together, the first of them holds the lock. On a file system without locks nothing is
    held and nothing removed, with a warning.

    Raises:
        GnimeError: the folder cannot be written, a symbolic link leads out of the root, or the lock's file is a link.
    """
    if device is not None and device.rank > 0:
        device.barrier()
        yield
        return
    inside(path, root)  # before anything is made, opened, locked or removed
    with _lock_file(path.with_name(f".{path.name}.lock")) as file:
        if _locked(file, path):
            file.truncate(0)
            file.write(str(os.getpid()).encode())
            file.flush()
            _remove_parts(path, folder)
        if device is not None:
            device.barrier()
        yield


def _lock_file(lock: Path) -> BinaryIO:
    """Opens the file of a lock. It must be a regular file of one link, because the holder's number is written into it."""
    wrong = GnimeError(f"{lock}: a lock is a regular file of one link, and this is not; move it away")
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = os.fdopen(os.open(lock, flags, 0o666), "r+b", buffering=0)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR):
            raise wrong from None
        raise GnimeError(f"{lock.parent} cannot be written ({error.strerror})") from None
    kind = os.fstat(file.fileno())
    if not stat.S_ISREG(kind.st_mode) or kind.st_nlink > 1:
        file.close()
        raise wrong
    return file


def _locked(file: BinaryIO, path: Path) -> bool:
    """Waits for the lock. False: the file system has none."""
    until = time.monotonic() + PATIENCE  # the processes of one run hold it for a moment each
    try:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if time.monotonic() > until:
                    break
                time.sleep(0.02)
        file.seek(0)
        holder = file.read(20).decode(errors="replace").strip()
        say(f"{path}: {f'process {holder}' if holder else 'another process'} is making it; waiting")
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        _warn_once(path.parent, "has no locks, so let no two runs make the same artifacts at once")
        return False
    return True


def _remove_parts(path: Path, folder: bool) -> None:
    name = rf"{re.escape(path.stem)}(\.state)?{re.escape(path.suffix)}"
    for part in path.parent.glob(".*.part"):
        other_lock = part.with_name(f"{part.name.rsplit('.', 2)[0]}.lock")
        own = re.fullmatch(rf"\.{name}\.[0-9a-f]+\.part", part.name)
        others = folder and re.fullmatch(r"\..+\.[0-9a-f]+\.part", part.name) and not other_lock.exists()
        if own or others:
            with contextlib.suppress(OSError):  # a folder of that name is nobody's leftover
                part.unlink()


def weights_digest(network: torch.nn.Module) -> str:
    """SHA-256 of the network's parameters and buffers, in hexadecimal. Their names do not count, their order does."""
    return digest_of(list(network.state_dict().values()))


def digest_of(content: object) -> str:
    """SHA-256 of nested plain data and tensors, in hexadecimal. It depends on values, shapes, types and order."""
    hasher = hashlib.sha256()

    def feed(value: object) -> None:
        if isinstance(value, torch.Tensor):
            value = value.detach().cpu().contiguous()
            feed(["tensor", str(value.dtype), list(value.shape)])
            hasher.update(value.reshape(-1).view(torch.uint8).numpy() if value.numel() else b"")
        elif isinstance(value, dict):
            feed(["dict", len(value)])
            for key, inner in value.items():
                feed(key)
                feed(inner)
        elif isinstance(value, (list, tuple)):
            hasher.update(f"list {len(value)};".encode())
            for inner in value:
                feed(inner)
        else:
            hasher.update(f"{type(value).__name__} {json.dumps(value)};".encode())

    feed(content)
    return hasher.hexdigest()
