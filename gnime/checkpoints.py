"""Networks on disk.

A network's file holds tensors and plain data only and is loaded without unpickling code. It carries a record of its making
(`made_by`) and a checksum. A file that has neither is somebody else's and is used with a warning.
"""

import errno
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch

from .errors import GnimeError
from .store import digest_of, writing
from .system import warn

LAYOUT = 3  # of a network's file; raised when an older file can no longer be read


@dataclass
class Checkpoint:
    """A network's file: `spec` rebuilds it, `made_by` says what made it, `extra` is plain data that goes along."""

    tensors: dict
    spec: dict | None = None
    made_by: dict | None = None  # None: somebody else's file
    extra: dict | None = None
    digest: str = ""

    @property
    def ours(self) -> bool:
        return self.made_by is not None


def save_checkpoint(path: Path, tensors: dict, spec: dict, made_by: dict, extra: dict) -> str:
    """Writes the file and returns its identity: a digest of everything in it but `extra` (durations, hardware)."""
    identity = digest_of([LAYOUT, tensors, spec, made_by])
    content = {"gnime": LAYOUT, "tensors": tensors, "spec": spec, "made_by": made_by, "extra": extra,
               "identity": identity, "checksum": digest_of([identity, extra])}
    with writing(path) as part, part.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # its way to report a full disk
            raise OSError(errno.ENOSPC, "the disk is full, or the file could not be written") from error
    return identity


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads a network's file.

    Raises:
        GnimeError: it is damaged, of another layout, or holds anything but tensors and plain data.
    """
    remedy = "remove it and run the command again"
    try:
        _check_zip(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError:
        raise GnimeError(f"{path}: cannot be read; mend its permissions") from None
    except Exception as error:  # whatever a damaged or hostile file makes the reader say
        reason = "it asks to run code" if "Unsupported" in str(error) or "WeightsUnpickler" in str(error) else "it is damaged"
        raise GnimeError(f"{path}: not a file of tensors and plain data ({reason}); {remedy}") from None
    if isinstance(content, dict) and content and all(
            isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in content.items()):
        return Checkpoint(dict(content), digest=digest_of(_sane(dict(content), path)))
    keys = {"gnime", "tensors", "spec", "made_by", "extra", "identity", "checksum"}
    if not isinstance(content, dict) or set(content) != keys:
        raise GnimeError(f"{path}: neither a network of ours nor a plain state dict; {remedy}")
    if content["gnime"] != LAYOUT:
        raise GnimeError(f"{path}: written in layout {content['gnime']!r}, this version reads {LAYOUT}; {remedy}")
    _sane(content["tensors"], path)
    try:
        identity = digest_of([LAYOUT, content["tensors"], content["spec"], content["made_by"]])
        whole = identity == content["identity"] and digest_of([identity, content["extra"]]) == content["checksum"]
    except (TypeError, ValueError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise GnimeError(f"{path}: damaged (its checksum does not fit); {remedy}")
    return Checkpoint(content["tensors"], content["spec"], content["made_by"], content["extra"], identity)


def _check_zip(path: Path) -> None:
    """A network's file stores its parts as they are; a compressed part could unfold into more than memory holds."""
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"PK\x03\x04":
        raise ValueError("not a zip archive")
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        if any(p.compress_type != zipfile.ZIP_STORED for p in parts) or sum(p.file_size for p in parts) > path.stat().st_size:
            raise ValueError("compressed parts")


def _sane(content: object, path: Path) -> object:
    """Refuses tensors that claim more numbers than the file holds (strides of zero can)."""
    room = path.stat().st_size
    stack = [content]
    while stack:
        value = stack.pop()
        if isinstance(value, torch.Tensor):
            if value.layout != torch.strided or value.numel() * value.element_size() > room:
                raise GnimeError(f"{path}: a tensor claims {tuple(value.shape)}, more than the file holds; remove it")
        elif isinstance(value, dict):
            stack += value.values()
        elif isinstance(value, (list, tuple)):
            stack += value
    return content


def require(path: Path, found: dict, wanted: dict) -> None:
    """Refuses an artifact that was made from something else than this run has.

    Raises:
        GnimeError: names the file, the first difference and the remedy.
    """
    for key, value in wanted.items():
        if found.get(key) != value:
            what = f"{key} {_short(found.get(key))}, this run has {_short(value)}"
            anew = key in ("injector", "ond-defender", "defence")
            again = "it was trained anew: remove this file" if anew else "give the same flags"
            raise GnimeError(f"{path}: made with {what}; {again}, or move it away, or choose another --root")


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:12] if len(text) == 64 else text[:200]


def load_into(network: torch.nn.Module, checkpoint: Checkpoint, path: Path) -> None:
    """Puts a file's tensors into the network they fit.

    Raises:
        GnimeError: names or shapes differ.
    """
    tensors, own = checkpoint.tensors, network.state_dict()
    for name in sorted(own.keys() | tensors.keys()):
        ours, theirs = own.get(name), tensors.get(name)
        if ours is None or theirs is None or ours.shape != theirs.shape:
            shapes = [None if t is None else tuple(t.shape) for t in (theirs, ours)]
            raise GnimeError(f"{path}: does not fit: {name} is {shapes[0]} there, {shapes[1]} in this run's network")
        if theirs.is_floating_point() and not theirs.isfinite().all():
            raise GnimeError(f"{path}: {name} holds numbers that are not finite; remove the file and make it again")
    network.load_state_dict(tensors)
    if not checkpoint.ours:
        warn(f"{path} does not say what made it; it is used as it is")
