"""GNIME: the trained noise injector (paper, section 3)."""

from . import DefenceInputs, Protect


def gnime(inputs: DefenceInputs, weight: float | None = None) -> Protect:
    """The injector's output, in [0, 1]. `inputs` has the injector that was trained with the row's weight."""
    return lambda explanation, prediction, image, rows: inputs.injector(explanation, prediction)
