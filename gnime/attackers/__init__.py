"""Attackers: methods that reconstruct an image from what a service publishes. A file each; `registry.ATTACKERS` names them.

An attacker is a function `(experiment, row, shown) -> reconstruct`: it learns from the rows `shown.train` of its own images
with the service's answers, and `reconstruct(explanation, prediction)` returns images (n, C, T, T). `explanation` is None in
rows that withhold it. Networks return a `Fitted`, which carries their training's record too.

One that knows more than the data (`Attacker.beside`) is a function `(experiment, row, shown, best) -> trials`, where `best` is
the `reconstruct` of the best attacker that knows the data alone.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from torch import Tensor

from ..data import AttackerData
from ..errors import GnimeError

Reconstruct = Callable[[Tensor | None, Tensor], Tensor]  # explanations (n, K, S, S), predictions (n, classes) -> images


@dataclass
class Fitted:
    """An attacker that has learnt: its function, its record for `results.json`, and (training, validation) error by epoch."""

    reconstruct: Reconstruct
    summary: dict = field(default_factory=dict)
    history: list = field(default_factory=list)


@dataclass
class Trial:
    """An attack by one that knows more than the data.

    Attributes:
        name: of its line in the table.
        reconstruct: the attack.
        shown: what it sees. Its test images are the first of the row's, or all of them.
        summary: its record for `results.json`.
    """

    name: str
    reconstruct: Reconstruct
    shown: AttackerData
    summary: dict = field(default_factory=dict)


class NotApplicable(Exception):
    """The attacker cannot attack the row. The message says why."""


def checked(fitted: Fitted, name: str, shape: tuple) -> Fitted:
    """An attacker of the user's own, whose reconstructions are looked at. shape: of an image, (C, T, T).

    Raises:
        GnimeError: it returned no function; or later, it reconstructs something else than finite images of that shape.
    """
    if not callable(fitted.reconstruct):
        raise GnimeError(f"{name}: its attacker returned {type(fitted.reconstruct).__name__}, not a function that reconstructs")

    def reconstruct(explanation: Tensor | None, prediction: Tensor) -> Tensor:
        images, wanted = fitted.reconstruct(explanation, prediction), (len(prediction), *shape)
        if not isinstance(images, Tensor) or images.shape != wanted:
            found = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise GnimeError(f"{name}: its attacker reconstructs {found}, not a tensor of images {wanted}")
        if not images.isfinite().all():
            raise GnimeError(f"{name}: its attacker reconstructs numbers that are not finite")
        return images

    return replace(fitted, reconstruct=reconstruct)
