"""Attackers: methods that reconstruct an image from what a service publishes. A file each; `registry.ATTACKERS` names them.

An attacker is a function `(experiment, row, shown) -> reconstruct`: it learns from the rows `shown.train` of its own images
with the service's answers, and `reconstruct(explanation, prediction)` returns images (n, C, T, T). `explanation` is None in
rows that withhold it. Networks return a `Fitted`, which carries their training's record too.

One that knows more than the data (`Attacker.beside`) is a function `(experiment, row, shown, best) -> trials`, where `best` is
the `reconstruct` of the best attacker that knows the data alone.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from ..data import AttackerData

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
