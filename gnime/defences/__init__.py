"""Defences: functions from an explanation to the map that the service publishes. One file each; `registry.DEFENCES` names them.

A defence is deterministic for given rows. With a new draw for each request, an attacker could average over the draws.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from ..batches import Rows
from ..device import Device
from ..errors import GnimeError
from ..ownfiles import call
from ..registry import DEFENCES, Row

# (explanations (n, K, S, S), predictions (n, classes), images (n, C, T, T), their row numbers) -> maps (n, K, S, S)
Protect = Callable[[Tensor, Tensor, Tensor, range], Tensor]


@dataclass
class DefenceInputs:
    """The inputs of a defence: the seed and the fields that its registry entry lists in `needs`. The other fields are None.

    Attributes:
        seed: of noise and permutation.
        injector: the trained noise injector, in evaluation mode.
        variance: mean squared distortion of GNIME on the test set. RND and OND have the same distortion.
        frozen_inverter: an ExpMI that was trained on the defender's half.
        class_means: (classes, K, S, S), mean explanation of the defender's images by predicted class.
        fitted: the module that the registry entry's `fit` made, (explanation, prediction) -> maps.
    """

    seed: int
    injector: nn.Module | None = None
    variance: float | None = None
    frozen_inverter: nn.Module | None = None
    class_means: Tensor | None = None
    fitted: nn.Module | None = None


@dataclass
class DefenderData:
    """What a defence is fitted on: the rows `rows` of explanations (n, K, S, S) in [0, 1] and of published predictions.

    `protects` is what its file records of the service that it is made for; see `explanations.protects`.
    """

    explanations: Rows
    predictions: Rows  # (n, classes), in the published form
    rows: range
    class_means: Tensor  # (classes, K, S, S) of these rows; the mean of all where a class has none
    seed: int
    device: Device
    protects: dict | None = None


@dataclass
class Fit:
    """A fitted defence as plain data: what `networks.build` builds it from, its buffers, and its record.

    The record's "warning", if it has one, is shown whenever the defence is loaded.
    """

    spec: dict
    tensors: dict[str, Tensor]
    report: dict


def load_defence(row: Row, inputs: DefenceInputs) -> Protect:
    """The defence, with its parameters, of a row that publishes maps.

    Raises:
        GnimeError: it returned no function.
    """
    assert row.defence is not None
    entry = DEFENCES[row.defence]
    defence = entry.load()
    protect = call(entry.function, defence, inputs, **row.parameters) if entry.own else defence(inputs, **row.parameters)
    if not callable(protect):
        raise GnimeError(f"{row.name}: its defence returned {type(protect).__name__}, not a function that protects; mend "
                         f"{entry.function}, or leave the row out")
    return protect
