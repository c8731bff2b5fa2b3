"""Attackers that train an inversion network (Zhao et al., ICCV 2021), and two that learn what a plain one cannot."""

from dataclasses import replace

from ..batches import mean_std
from ..data import AttackerData
from ..experiment import Experiment
from ..registry import ROWS, Row
from . import Fitted


def predmi(experiment: Experiment, row: Row, shown: AttackerData) -> Fitted:
    """From the prediction alone. The network of the row that withholds explanations serves every row."""
    return fit_inverter("predmi", experiment, ROWS["predmi"], replace(shown, explanations=None))


def expmi(experiment: Experiment, row: Row, shown: AttackerData) -> Fitted:
    """The paper's: from explanation and prediction."""
    return fit_inverter("expmi", experiment, row, shown)


def centred(experiment: Experiment, row: Row, shown: AttackerData) -> Fitted:
    """Subtracts the mean of the maps: the paper's network learns slowly where maps are far from zero."""
    return fit_inverter("centred", experiment, row, shown, mean=mean_std(shown.explanations, shown.train)[0])


def dense(experiment: Experiment, row: Row, shown: AttackerData) -> Fitted:
    """Mixes all pixels first: a convolution cannot undo a permutation, although it is invertible."""
    return fit_inverter("dense", experiment, row, shown)


def fit_inverter(name: str, experiment: Experiment, row: Row, shown: AttackerData, **how: object) -> Fitted:
    """The network of that name, found or trained; see `Experiment.inverter_task`."""
    model = experiment.load_or_train(experiment.inverter_task(name, row, shown, **how))
    return Fitted(model.network, model.summary(), model.report.get("history", []))
