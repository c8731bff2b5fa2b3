"""GNIME: the trained noise injector (paper, section 3)."""

from . import DefenceInputs, Protect


def gnime(inputs: DefenceInputs) -> Protect:
    """The injector's output, in [0, 1]."""
    return lambda explanation, prediction, image, rows: inputs.injector(explanation, prediction)
