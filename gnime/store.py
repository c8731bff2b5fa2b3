"""The path of every artifact, locks, and files that are written completely or not at all."""

import contextlib
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import torch

from .config import Run
from .device import Device
from .errors import GnimeError
from .ownfiles import own_name
from .system import say


class Paths:
    """The path of each artifact under the run's root. No other code builds such a path."""

    def __init__(self, run: Run):
        target = run.target.name
        answered = f"{target}_{own_name(run.victim)}" if run.victim else target  # what depends on the victim
        both = f"{answered}_{run.xai}"
        self.root, self.aux, self._models = run.root, run.root / "aux", run.root / "models"
        self._target, self._xai, self._published = answered, run.xai, run.published_part
        self.victim = self._models / "victim" / f"{target}.pt"
        self.evaluation = self._models / "eval" / f"{target}.pt"
        self.injector_folder = self._models / "def" / (both + run.published_part)
        self.injector = self.injector_folder / "injector.pt"
        self.injector_losses = self.injector_folder / "training.png"
        self.images = self.aux / f"{target}_imgs.hkl"
        self.labels = self.aux / f"{target}_labels.hkl"
        self.skipped = self.aux / f"{target}_imgs.skipped.txt"
        self.explanations = self.aux / f"{both}.hkl"
        figures = run.root / "figures" / (both + run.published_part)
        self.results, self.table = figures / "results.json", figures / "results.csv"
        self.comparison, self.metrics, self.training = (
            figures / f"{name}.png" for name in ("comparison", "metrics", "training"))

    def defence(self, row: str) -> Path:
        """A fitted defence."""
        return self.injector_folder / f"{row}.pt"

    def inverter(self, row: str, attacker: str = "expmi") -> Path:
        """An attacker's network. PredMI's input has no explanation, so its file is the same for all explainers."""
        name = f"{self._target}_{row}" + ("" if row == "predmi" else f"_{self._xai}")
        name += self._published + ("" if attacker in ("predmi", "expmi") else f"_{attacker}")
        return self._models / "inv" / f"{name}.pt"

    def injector_at(self, epoch: int) -> tuple[Path, Path]:
        """The injector's checkpoint and its picture after `epoch` epochs."""
        return tuple(self.injector_folder / f"epoch_{epoch:04d}.{suffix}" for suffix in ("pt", "png"))

    @staticmethod
    def state(network: Path) -> Path:
        """The file of the unfinished training of `network`."""
        return network.with_name(f"{network.stem}.state.pt")


def prepare_root(run: Run) -> None:
    """Makes the folders models/, aux/ and figures/ under the run's root. Only prepare.py makes the root itself.

    Raises:
        GnimeError: a folder is missing, or cannot be made or written.
    """
    root = run.root
    if run.script != "prepare" and not root.exists():
        raise GnimeError(f"--root {root}: no such folder; make it with: {run.command('prepare')}")
    for folder in ("models", "aux", "figures"):
        path = root / folder
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise GnimeError(f"--root {root}: cannot make {path} ({error.strerror})") from None
        inside(path, root)
        if not os.access(path, os.W_OK | os.X_OK):
            raise GnimeError(f"--root {root}: {path} cannot be written; choose another --root or change its permissions")


def inside(path: Path, root: Path) -> Path:
    """Returns `path`.

    Raises:
        GnimeError: a symbolic link in the path leads out of the root.
    """
    if not path.resolve().is_relative_to(root.resolve()):
        raise GnimeError(f"{path} leads out of --root to {path.resolve()}; give the real folder as --root")
    return path


def exists(path: Path, root: Path) -> bool:
    """Whether the artifact is there. Raises as `inside` does."""
    return inside(path, root).exists()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Yields a temporary path in the folder of `path`. If the block succeeds, the temporary file replaces `path` atomically.

    Raises:
        GnimeError: the file cannot be written, for example because the disk is full. `path` is unchanged.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise GnimeError(f"{path}: cannot be written ({error.strerror or error}); nothing was changed there") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a file of UTF-8 text. Raises as `writing` does."""
    with writing(path) as part:
        part.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def artifact_lock(path: Path, device: Device | None = None, folder: bool = False) -> Iterator[None]:
    """Holds the lock of an artifact while this process reads or makes it. A second process waits.

    The system releases the lock when its holder dies. Temporary files that killed processes left are removed: those of
    `path`, or with `folder` all those in its folder except those of artifacts that have locks of their own. If the processes
    of `device` make the artifact together, the first of them holds the lock.

    Raises:
        GnimeError: the folder cannot be written.
    """
    if device is not None and device.rank > 0:
        device.barrier()
        yield
        return
    lock = path.with_name(f".{path.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("a+")
    except OSError as error:
        raise GnimeError(f"{path.parent} cannot be written ({error.strerror})") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            say(f"{path}: process {file.read().strip() or '?'} is making it; waiting")
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        own = re.compile(rf"\.{re.escape(path.stem)}(\.state)?{re.escape(path.suffix)}\.\d+\.part")
        for part in path.parent.glob(".*.part"):
            other_lock = part.with_name(f"{part.name.rsplit('.', 2)[0]}.lock")
            if own.fullmatch(part.name) or (folder and not other_lock.exists()):
                part.unlink(missing_ok=True)
        if device is not None:
            device.barrier()
        yield


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
