"""Networks on disk.

A network's file holds only tensors and plain data, and no code in it is executed. It has a record of its making (`made_by`)
and a checksum. A file without them is foreign, that is not written by GNIME. It is used with a warning.
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

LAYOUT = 3  # version of the file layout; raised when files of the version before can no longer be read


@dataclass
class Checkpoint:
    """The content of a network's file.

    Attributes:
        tensors: name -> tensor.
        spec: the specification that rebuilds the network; see `networks.build`.
        made_by: the identity that it was trained with; None for a foreign file.
        extra: the report of the training.
        digest: SHA-256 of the file's content but `extra`, in hexadecimal.
    """

    tensors: dict
    spec: dict | None = None
    made_by: dict | None = None
    extra: dict | None = None
    digest: str = ""

    @property
    def ours(self) -> bool:
        """Whether GNIME wrote the file."""
        return self.made_by is not None


def save_checkpoint(path: Path, tensors: dict, spec: dict, made_by: dict, extra: dict) -> str:
    """Writes the file. Returns its digest, which does not depend on `extra` (epochs, durations, commit).

    Raises:
        GnimeError: the file cannot be written.
    """
    identity = digest_of([LAYOUT, tensors, spec, made_by])
    content = {"gnime": LAYOUT, "tensors": tensors, "spec": spec, "made_by": made_by, "extra": extra,
               "identity": identity, "checksum": digest_of([identity, extra])}
    with writing(path) as part, part.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch reports a full disk so
            raise OSError(errno.ENOSPC, "the disk is full, or the file could not be written") from error
    return identity


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads a network's file and verifies its checksum.

    Raises:
        GnimeError: the file is damaged, cannot be read, has another layout, or holds something other than tensors and plain
            data.
    """
    remedy = "remove it and run the command again"
    try:
        _check_zip(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError:
        raise GnimeError(f"{path}: cannot be read; change its permissions") from None
    except Exception as error:  # a damaged or hostile file can make the reader raise anything
        reason = "it contains code" if "Unsupported" in str(error) or "WeightsUnpickler" in str(error) else "it is damaged"
        raise GnimeError(f"{path}: not a file of tensors and plain data ({reason}); {remedy}") from None
    if isinstance(content, dict) and content and all(
            isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in content.items()):
        return Checkpoint(dict(content), digest=digest_of(_sane(dict(content), path)))
    keys = {"gnime", "tensors", "spec", "made_by", "extra", "identity", "checksum"}
    if not isinstance(content, dict) or set(content) != keys:
        raise GnimeError(f"{path}: neither a network that GNIME wrote nor a plain state dict; {remedy}")
    if content["gnime"] != LAYOUT:
        raise GnimeError(f"{path}: written in layout {content['gnime']!r}, this version reads {LAYOUT}; {remedy}")
    _sane(content["tensors"], path)
    try:
        identity = digest_of([LAYOUT, content["tensors"], content["spec"], content["made_by"]])
        intact = identity == content["identity"] and digest_of([identity, content["extra"]]) == content["checksum"]
    except (TypeError, ValueError, AttributeError, RecursionError):
        intact = False
    if not intact:
        raise GnimeError(f"{path}: damaged (its checksum does not fit); {remedy}")
    return Checkpoint(content["tensors"], content["spec"], content["made_by"], content["extra"], identity)


def _check_zip(path: Path) -> None:
    """Refuses compressed parts, which could expand to more than memory holds. torch.save does not compress."""
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"PK\x03\x04":
        raise ValueError("not a zip archive")
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        if any(p.compress_type != zipfile.ZIP_STORED for p in parts) or sum(p.file_size for p in parts) > path.stat().st_size:
            raise ValueError("compressed parts")


def _sane(content: object, path: Path) -> object:
    """Refuses tensors of more numbers than the file holds, which strides of zero make possible. Returns the content."""
    room = path.stat().st_size
    stack = [content]
    while stack:
        value = stack.pop()
        if isinstance(value, torch.Tensor):
            if value.layout != torch.strided or value.numel() * value.element_size() > room:
                raise GnimeError(f"{path}: a tensor of shape {tuple(value.shape)} is more than the file holds; remove it")
        elif isinstance(value, dict):
            stack += value.values()
        elif isinstance(value, (list, tuple)):
            stack += value
    return content


def require(path: Path, found: dict, wanted: dict) -> None:
    """Compares an artifact's record `found` with the identity `wanted` of this run. Keys that only the record has are allowed.

    Raises:
        GnimeError: they differ. The message names the file, the first difference and the remedy.
    """
    for key, value in wanted.items():
        if found.get(key) != value:
            what = f"{key} {_short(found.get(key))}, this run has {_short(value)}"
            stale = key in ("injector", "ond-defender", "defence")
            remedy = f"the {key} was trained again since, so remove this file" if stale else "give the same flags"
            raise GnimeError(f"{path}: made with {what}; {remedy}, or move it away, or choose another --root")


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:12] if len(text) == 64 else text[:200]


def load_into(network: torch.nn.Module, checkpoint: Checkpoint, path: Path) -> None:
    """Loads a file's tensors into the network, in place.

    Raises:
        GnimeError: names or shapes differ from the network's, or a number is not finite.
    """
    tensors, own = checkpoint.tensors, network.state_dict()
    for name in sorted(own.keys() | tensors.keys()):
        ours, theirs = own.get(name), tensors.get(name)
        if ours is None or theirs is None or ours.shape != theirs.shape:
            shapes = [None if t is None else tuple(t.shape) for t in (theirs, ours)]
            raise GnimeError(f"{path}: does not fit: {name} has shape {shapes[0]} there, {shapes[1]} in this run's network")
        if theirs.is_floating_point() and not theirs.isfinite().all():
            raise GnimeError(f"{path}: {name} holds numbers that are not finite; remove the file and make it again")
    network.load_state_dict(tensors)
    if not checkpoint.ours:
        warn(f"{path} has no record of how it was made; it is used as it is")
