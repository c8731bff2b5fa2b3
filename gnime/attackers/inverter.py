"""Attackers that train an inversion network (Zhao et al., ICCV 2021), and two that learn what a plain one cannot."""

from dataclasses import replace

from ..data import AttackerData
from ..experiment import Experiment
from ..registry import ROWS, Row
from . import Fitted


def predmi(experiment: Experiment, row: Row, shown: AttackerData) -> Fitted:
    """From the prediction alone. The network of the row that withholds explanations serves every row."""
    return _fit("predmi", experiment, ROWS["predmi"], replace(shown, explanations=None))


def expmi(experiment: Experiment, row: Row, shown: AttackerData) -> Fitted:
    """The paper's: from explanation and prediction."""
    return _fit("expmi", experiment, row, shown)


def centred(experiment: Experiment, row: Row, shown: AttackerData) -> Fitted:
    """Subtracts the mean of the maps: the paper's network learns slowly where maps are far from zero."""
    return _fit("centred", experiment, row, shown)


def dense(experiment: Experiment, row: Row, shown: AttackerData) -> Fitted:
    """Mixes all pixels first: a convolution cannot undo a permutation, although it is invertible."""
    return _fit("dense", experiment, row, shown)


def _fit(name: str, experiment: Experiment, row: Row, shown: AttackerData) -> Fitted:
    model = experiment.load_or_train(experiment.inverter_task(name, row, shown))
    return Fitted(model.network, model.summary(), model.report.get("history", []))
