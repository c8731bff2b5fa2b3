"""Networks on disk.

A network's file holds only tensors and plain data, and no code in it is executed. It has a record of its making (`made_by`)
and a checksum. A file without them is foreign, that is not written by GNIME. It is used with a warning; see `foreign`.
"""

import errno
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from . import foreign
from .errors import GnimeError, printable
from .store import digest_of, open_artifact, writing
from .system import warn
from .words import difference

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
        notes: how a foreign file was read, where that is not plain.
    """

    tensors: dict
    spec: dict | None = None
    made_by: dict | None = None
    extra: dict | None = None
    digest: str = ""
    notes: str = ""

    @property
    def ours(self) -> bool:
        """Whether GNIME wrote the file."""
        return self.made_by is not None

    @property
    def origin(self) -> str:
        """Of a network of the authors' release that was converted: where it lay under the root; empty for any other."""
        return (self.made_by or {}).get("converted", {}).get("from", "")

    @property
    def trained(self) -> bool:
        """Whether GNIME trained the network."""
        return self.ours and not self.origin


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
        GnimeError: the file is damaged, cannot be read, has another layout or format, or holds something other than tensors
            and plain data.
    """
    with open_artifact(path) as file:
        content = foreign.read(file, path, os.fstat(file.fileno()).st_size)
    keys = {"gnime", "tensors", "spec", "made_by", "extra", "identity", "checksum"}
    if not isinstance(content, dict) or set(content) != keys:
        tensors, notes = foreign.state_dict(content, path)
        return Checkpoint(tensors, digest=digest_of(tensors), notes=notes)
    remedy = "move it away and run the command again"
    if content["gnime"] != LAYOUT:
        raise GnimeError(f"{path}: written in layout {printable(content['gnime'], 20)}, this version reads {LAYOUT}; {remedy}")
    try:
        identity = digest_of([LAYOUT, content["tensors"], content["spec"], content["made_by"]])
        intact = identity == content["identity"] and digest_of([identity, content["extra"]]) == content["checksum"]
    except (TypeError, ValueError, AttributeError):
        intact = False
    plain = all(isinstance(content[key], dict) for key in ("tensors", "spec", "made_by", "extra"))
    if not (intact and plain and isinstance(content["extra"].get("epochs", 0), int)):
        raise GnimeError(f"{path}: damaged (its checksum does not fit); {remedy}")
    return Checkpoint(content["tensors"], content["spec"], content["made_by"], content["extra"], identity)


FLAGS = {"target": "--target", "xai": "--xai", "layer": "--layer", "published": "--published", "seed": "--seed",
         "image_size": "--image-size", "official": "--official", "pool": "--official",
         "weight": "--weight", "stage": "--batch-size and --lr", "precision": "--precision", "width": "--width"}
WHERE_GIVEN = ("layer", "published")  # flags that a record has only where they were given


def require(path: Path, found: dict, wanted: dict) -> None:
    """Compares an artifact's record `found` with the identity `wanted` of this run.

    Keys that only the record has are allowed, but for those of `WHERE_GIVEN`.

    Raises:
        GnimeError: they differ. The message names the file, the first difference and the remedy.
    """
    for key in (*wanted, *WHERE_GIVEN):
        value = wanted.get(key)
        if found.get(key) != value:
            remedy = f"give the same {FLAGS[key]}, or " if key in FLAGS else ""
            if isinstance(value, str) and len(value) == 64:  # the digest of another artifact
                remedy = f"the {key} changed since: "
            raise GnimeError(f"{path}: made with {difference(key, found.get(key), value)}; {remedy}move it away, or choose "
                             "another --root")


def check_fit(network: torch.nn.Module, tensors: dict, path: Path) -> None:
    """Compares a file's tensors with the network that they are for, which may be on the device "meta".

    Raises:
        GnimeError: names or shapes differ from the network's, or a number is not finite in the network's type.
    """
    own = network.state_dict()
    tensors = {name: value for name, value in tensors.items() if isinstance(value, torch.Tensor)}
    for name in sorted(own.keys() | tensors.keys(), key=str):
        ours, theirs = own.get(name), tensors.get(name)
        if ours is None or theirs is None or ours.shape != theirs.shape:
            shapes = ["is missing" if t is None else f"has shape {tuple(t.shape)}" for t in (theirs, ours)]
            raise GnimeError(f"{path}: does not fit: {printable(name, 80)} {shapes[0]} there, and {shapes[1]} in this run's "
                             "network")
        if theirs.is_floating_point() and not theirs.to(ours.dtype).isfinite().all():
            raise GnimeError(f"{path}: {printable(name, 80)} holds numbers that are not finite; move the file away and make "
                             "it again")


def load_into(network: torch.nn.Module, checkpoint: Checkpoint, path: Path) -> None:
    """Loads a file's tensors into the network, in place. Raises as `check_fit` does."""
    check_fit(network, checkpoint.tensors, path)
    network.load_state_dict(checkpoint.tensors)
    if not checkpoint.ours:
        notes = f" ({checkpoint.notes})" if checkpoint.notes else ""
        warn(f"{path} has no record of how it was made; it is used as it is{notes}")
