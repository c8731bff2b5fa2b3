"""Attackers: methods that reconstruct an image from what a service publishes. A file each; `registry.ATTACKERS` names them.

An attacker is a function `(experiment, row, shown) -> reconstruct`: it learns from the rows `shown.train` of its own images
with the service's answers, and `reconstruct(explanation, prediction)` returns images (n, C, T, T). `explanation` is None in
rows that withhold it. Networks return a `Fitted`, which carries their training's record too.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

Reconstruct = Callable[[Tensor | None, Tensor], Tensor]  # explanations (n, K, S, S), predictions (n, classes) -> images


@dataclass
class Fitted:
    """An attacker that has learnt: its function, its record for `results.json`, and (training, validation) error by epoch."""

    reconstruct: Reconstruct
    summary: dict = field(default_factory=dict)
    history: list = field(default_factory=list)
