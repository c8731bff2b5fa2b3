"""protect -> attack -> measure: the rows of the table, each with attackers of its own. `comparison` compares them."""

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from .arrays import scratch
from .attackers import Fitted, NotApplicable, Reconstruct, checked
from .batches import Rows, cache_on_device, iter_batches
from .data import AttackerData
from .defences import Protect, load_defence
from .device import full_fp32
from .entries import load
from .errors import GnimeError
from .experiment import Experiment
from .metrics.leakage import bootstrap_intervals, mse
from .ownfiles import call
from .registry import ATTACKERS, DEFENCES, METRICS, Row
from .victims import features

KEPT = 500  # test images whose reconstructions are kept, to choose pictures from


@dataclass
class Measured:
    """The reconstructions of one attacker: numbers, values per test image, and pictures of the first few."""

    numbers: dict[str, float | None]
    per_image: dict[str, Tensor]
    shown: Tensor  # (at most KEPT, C, S, S) uint8, reconstructions
    shown_explanation: Tensor | None  # (at most KEPT, K, h, w) uint8


@dataclass
class Result:
    """One row of the table.

    Attributes:
        numbers: every metric of the paper's attacker, and the verdict: "best" (name, MSE and SSIM of the best attacker),
            "attackers" (MSE and validation error of each), "mse_strongest" (per image the best of all, averaged), "beside"
            (the same of attackers that know more than the data; `comparison.compare_beside` adds to it).
        errors: (n,) squared error of the best attacker, per test image.
        beside: the same of each attacker that knows more, of the first of the test images or of all.
        shown, shown_explanation: the best attacker's reconstructions of the first test images, and the maps it saw; uint8.
        costs: seconds that each attacker took to learn.
        attacker, history: of the paper's attacker, the record and the errors by epoch.
    """

    numbers: dict
    errors: Tensor
    shown: Tensor
    shown_explanation: Tensor | None
    beside: dict[str, Tensor] = field(default_factory=dict)
    costs: dict[str, float] = field(default_factory=dict)
    attacker: dict = field(default_factory=dict)
    history: list = field(default_factory=list)


def protect(experiment: Experiment, row: Row) -> Rows | None:
    """The maps that the row's service publishes of the attacker's half; None where it withholds them.

    Raises:
        GnimeError: an explanation or a map is not finite, or the defence returns something else than a map for each.
    """
    clean = experiment.attacker_data.explanations
    if row.defence is None:
        return None
    maps = None if row.defence == "none" else scratch(tuple(clean.shape), np.float32, experiment.paths.aux)
    defence = _defence(experiment, row)
    with torch.no_grad(), full_fp32():
        for rows, protected in _published(experiment, row, defence):
            if maps is not None:
                maps[rows.start : rows.stop] = protected.float().cpu().numpy()
    return clean if maps is None else cache_on_device(maps, experiment.device.torch)


def try_defence(experiment: Experiment, row: Row) -> None:
    """Protects the first few images, so that a defence which fails is refused before hours are spent; see `protect`."""
    if row.defence is not None:
        defence = _defence(experiment, row)
        with torch.no_grad(), full_fp32():
            next(_published(experiment, row, defence))


def _defence(experiment: Experiment, row: Row) -> Protect:
    """The row's defence. What it needs may be trained here: not under `no_grad`, and in the run's own precision."""
    return load_defence(row, experiment.defence_inputs(row))


def _published(experiment: Experiment, row: Row, defence: Protect) -> Iterator[tuple[range, Tensor]]:
    """Batch by batch, rows of the attacker's half and the maps of them that the row's service publishes."""
    clean = experiment.attacker_data
    sources = [clean.explanations, clean.predictions, clean.images]
    for rows, (explanation, prediction, image) in iter_batches(sources, range(len(clean.images)), experiment.device.torch):
        if not explanation.isfinite().all():
            raise GnimeError(f"{row.name}: {experiment.paths.explanations} holds numbers that are not finite; move it away and "
                             "run prepare.py again")
        protected = defence(explanation, prediction, image, rows)
        fault = ""
        if not isinstance(protected, Tensor):
            fault = f"returned {type(protected).__name__}, not a tensor"
        elif protected.shape != explanation.shape:
            fault = f"returned maps {tuple(protected.shape)} of explanations {tuple(explanation.shape)}"
        elif not protected.isfinite().all():
            fault = "returned numbers that are not finite"
        if fault:
            raise GnimeError(f"{row.name}: its defence {fault}; mend {DEFENCES[row.defence].function}, or leave the row out")
        yield rows, protected


def attack(experiment: Experiment, row: Row, attacker: str, shown: AttackerData) -> Fitted:
    """The attacker of that name, after it has learnt from `shown`."""
    entry, arguments = ATTACKERS[attacker], (experiment, row, shown)
    fitted = call(entry.function, entry.load(), *arguments) if entry.own else entry.load()(*arguments)
    fitted = fitted if isinstance(fitted, Fitted) else Fitted(fitted)
    return checked(fitted, attacker, shown.images.shape[1:]) if entry.own else fitted


def validation_error(experiment: Experiment, reconstruct: Reconstruct, shown: AttackerData) -> float:
    """Mean squared error on the validation images, clipped to [0, 1]: it decides which attacker counts."""
    total = 0.0
    sources = [shown.explanations, shown.predictions, shown.images]
    with torch.no_grad(), full_fp32():
        for _, (explanation, prediction, image) in iter_batches(sources, shown.validation, experiment.device.torch):
            total += mse(image, reconstruct(explanation, prediction).float().clamp(0, 1)).double().sum().item()
    return total / len(shown.validation)


class _Batch:
    """What metrics may take of some test images; see `registry.Metric`. Classifiers run only where a metric asks for them."""

    def __init__(self, experiment: Experiment, rows: list, reconstruction: Tensor):
        self.protected, self.clean, self.prediction, self.image, self.label = rows
        self.image, self.reconstruction, self._experiment = self.image.contiguous(), reconstruction, experiment

    victim = property(lambda self: self._experiment.victim.network)
    victim_logits = cached_property(lambda self: self.victim(self.reconstruction))
    evaluation_logits = cached_property(lambda self: self._experiment.evaluation_classifier.network(self.reconstruction))
    image_features = cached_property(lambda self: features(self.victim, self.image))
    reconstruction_features = cached_property(lambda self: features(self.victim, self.reconstruction))


def measure(experiment: Experiment, reconstruct: Reconstruct, shown: AttackerData, names: Iterable[str]) -> Measured:
    """Those of these metrics for which there is everything that they take. Of the test set, always in 32-bit arithmetic."""
    missing = {*experiment.lacking, *(() if shown.explanations is not None else ("protected",))}
    metrics = {name: METRICS[name] for name in names if not missing & {*METRICS[name].takes}}
    functions = {name: metric.load() for name, metric in metrics.items()}
    per_image: dict[str, Tensor] = {}
    pictures, maps, test = [], [], shown.test
    clean = experiment.attacker_data.explanations
    sources = [shown.explanations, clean, shown.predictions, shown.images, shown.labels]
    with torch.no_grad(), full_fp32():
        for rows, values in iter_batches(sources, test, experiment.device.torch):
            protected, prediction = values[0], values[2]
            reconstruction = reconstruct(protected, prediction).float().clamp(0, 1).contiguous()
            batch = _Batch(experiment, values, reconstruction)
            for name, metric in metrics.items():  # into one tensor: nothing of a batch outlives it
                found = functions[name](*(getattr(batch, what) for what in metric.takes))
                if name not in per_image:
                    per_image[name] = torch.empty(len(test), dtype=found.dtype)
                per_image[name][rows.start - test.start : rows.stop - test.start] = found
            if (room := KEPT - sum(map(len, pictures))) > 0:
                pictures.append(as_bytes(reconstruction[:room]))
                maps += [] if protected is None else [as_bytes(protected[:room])]
    numbers = {name: _over_images(METRICS[name].total, values) for name, values in per_image.items()}
    return Measured(numbers, per_image, torch.cat(pictures), torch.cat(maps) if maps else None)


def as_bytes(pictures: Tensor) -> Tensor:
    """Numbers in [0, 1] as uint8 on the CPU; others are cut to that range."""
    return pictures.float().clamp(0, 1).mul(255).round().to(torch.uint8).cpu()


def _intervals(per_image: dict[str, Tensor]) -> dict[str, list[float]]:
    """95 % intervals over test images of each metric of one attacker, as `<metric>_interval`."""
    found = {}
    for name, (low, high) in zip(per_image, bootstrap_intervals(list(per_image.values())), strict=True):
        if total := METRICS[name].total:  # monotone in the sum
            n = len(per_image[name])
            low, high = sorted(load(total)(mean * n, n) for mean in (low, high))
        if math.isfinite(low) and math.isfinite(high) and not METRICS[name].scaled:
            found[f"{name}_interval"] = [low, high]
    return found


def _over_images(total: str, values: Tensor) -> float | None:
    values = values.double()
    if total:
        number = load(total)(values.sum().item(), len(values))
    else:
        number = values.mean().item()
    return number if math.isfinite(number) else None


def train_attackers(experiment: Experiment, row: Row) -> None:
    """Leaves the row's attackers that are files, the networks, on disk."""
    shown = _shown(experiment, row)
    for name in row.attackers(experiment.run.attackers)[0]:
        stored = ATTACKERS[name].stored
        if stored == "row" or stored and row.defence is None:
            attack(experiment, row, name, shown)


def _shown(experiment: Experiment, row: Row) -> AttackerData:
    return replace(experiment.attacker_data, explanations=protect(experiment, row))


def evaluate_row(experiment: Experiment, row: Row) -> Result:
    """All attackers of the row. The one with the lowest validation error gives the verdict, the paper's the paper's numbers.

    Those that know more than the data attack after them, and stand beside the verdict.
    """
    shown = _shown(experiment, row)
    applicable, reasons = row.attackers(experiment.run.attackers)
    names = [name for name in applicable if not ATTACKERS[name].beside]
    fitted, costs, errors, measured = {}, {}, {}, {}
    for name in names:
        began = time.monotonic()
        fitted[name] = attack(experiment, row, name, shown)
        costs[name] = round(fitted[name].summary.get("seconds", time.monotonic() - began), 2)
        errors[name] = validation_error(experiment, fitted[name].reconstruct, shown)
        metrics = METRICS if name == row.paper_attacker else VERDICT_METRICS
        measured[name] = measure(experiment, fitted[name].reconstruct, shown, metrics)
    best, paper = min(errors, key=errors.get), row.paper_attacker
    beside = {}
    for name in (name for name in applicable if ATTACKERS[name].beside):
        began = time.monotonic()
        try:
            beside |= _attack_beside(experiment, row, name, shown, fitted[best].reconstruct)
        except NotApplicable as error:
            reasons[name] = str(error)
        costs[name] = round(time.monotonic() - began, 2)
    mse_of = {name: found.per_image["mse"] for name, found in measured.items()}
    numbers = measured[paper].numbers | _intervals(measured[paper].per_image) | {
        "mse_quantiles": torch.quantile(mse_of[paper].double(), torch.tensor(QUANTILES, dtype=torch.double)).tolist(),
        "best": {"attacker": best} | {name: measured[best].numbers[name] for name in VERDICT_METRICS},
        "attackers": {name: {"mse": measured[name].numbers["mse"], "validation": errors[name]} for name in names},
        "not_applicable": reasons, "beside": {name: numbers for name, (numbers, _) in beside.items()},
        "mse_strongest": torch.stack(list(mse_of.values())).amin(0).double().mean().item()}
    return Result(numbers, mse_of[best], measured[best].shown, measured[best].shown_explanation,
                  {name: found for name, (_, found) in beside.items()}, costs, fitted[paper].summary, fitted[paper].history)


def _attack_beside(experiment: Experiment, row: Row, attacker: str, shown: AttackerData,
                   best: Reconstruct) -> dict[str, tuple[dict, Tensor]]:
    """Of each trial of an attacker that knows more than the data, its numbers and squared errors per image."""
    if "victim" in ATTACKERS[attacker].knows and "victim" in experiment.lacking:
        raise NotApplicable(f"it needs the victim: {experiment.lacking['victim']}")
    found = {}
    for trial in ATTACKERS[attacker].load()(experiment, row, shown, best):
        measured = measure(experiment, trial.reconstruct, trial.shown, VERDICT_METRICS)
        found[trial.name] = {"attacker": attacker, **measured.numbers, **trial.summary}, measured.per_image["mse"]
    return found


VERDICT_METRICS = ("mse", "ssim")  # of every attacker
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
