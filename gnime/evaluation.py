"""The settings side by side: for each, an attacker of its own trained on what it would see, and what it recovers."""

import itertools
import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from . import metrics
from .arrays import scratch
from .config import Run
from .data import Splits, resident
from .defences import DEFENCES, Means
from .explaining import moments
from .networks import Trained, inverter_spec, obtain
from .runtime import Device
from .settings import SETTINGS, Setting
from .training import Task, fit, mean_squared_error, through

SHOWN = 5  # test images in the pictures: they fit a screen


@dataclass
class Attacker:
    """The attacker's half: rows of images, labels, predictions and clean explanations, split from row 0 on."""

    images: np.ndarray | Tensor
    labels: np.ndarray | Tensor
    predictions: np.ndarray | Tensor
    explanations: np.ndarray | Tensor
    train: range
    validation: range
    test: range

    @classmethod
    def of(cls, splits: Splits, images, labels, predictions, explanations) -> "Attacker":
        half = splits.attacker
        local = [range(part.start - half.start, part.stop - half.start)
                 for part in (splits.train, splits.validation, splits.test)]
        return cls(*(array[half.start : half.stop] for array in (images, labels, predictions, explanations)), *local)


@dataclass
class Outcome:
    """What one setting's attacker recovered: numbers, values per test image, and pictures of the first few."""

    numbers: dict
    per_image: dict[str, Tensor]
    shown: Tensor  # (SHOWN, C, S, S) reconstructions
    shown_explanation: Tensor | None
    attacker: dict = field(default_factory=dict)
    history: list = field(default_factory=list)


def mean_distortion(attacker: Attacker, injector: nn.Module, device: Device) -> float:
    """mean((e' - e)^2) of GNIME over the test set: the variance of RND's noise."""
    total = 0.0
    for _, (clean, prediction) in through([attacker.explanations, attacker.predictions], attacker.test, device):
        with torch.no_grad():
            squared = (injector(clean, prediction) - clean).square().flatten(1).mean(1)
        total += squared.double().sum().item()
    return total / len(attacker.test)


def class_means(explanations: np.ndarray | Tensor, logits: np.ndarray | Tensor, rows: range, device: Device) -> Tensor:
    """(classes, K, S, S): mean explanation of these rows by predicted class; of all of them where a class has none."""
    totals = torch.zeros(logits.shape[1], *explanations.shape[1:], device=device.torch)
    counts = torch.zeros(logits.shape[1], device=device.torch)
    for _, (explanation, prediction) in through([explanations, logits], rows, device):
        totals.index_add_(0, prediction.argmax(1), explanation)
        counts += torch.bincount(prediction.argmax(1), minlength=len(counts))
    overall = totals.sum(0) / counts.sum()
    return torch.where(counts.view(-1, 1, 1, 1) > 0, totals / counts.clamp(min=1).view(-1, 1, 1, 1), overall)


def protect(setting: Setting, attacker: Attacker, means: Means, device: Device, folder: Path) -> np.ndarray | Tensor | None:
    """What the setting's attacker sees of the explanations of its half; None where they are withheld."""
    if setting.defence is None:
        return None
    if setting.defence == "none":
        return attacker.explanations
    variance = None if means.variance is None else setting.level * means.variance
    defence = DEFENCES[setting.defence](replace(means, variance=variance))
    clean = attacker.explanations
    seen = scratch(tuple(clean.shape), np.float32, folder)
    sources = [clean, attacker.predictions, attacker.images]
    for rows, (explanation, prediction, image) in through(sources, range(len(clean)), device):
        with torch.no_grad():
            seen[rows.start : rows.stop] = defence(explanation, prediction, image, rows).float().cpu().numpy()
    return resident(seen, device.torch)


def attack(name: str, kind: str, run: Run, attacker: Attacker, seen: np.ndarray | Tensor | None, identity: dict,
           path: Path, classes: int, device: Device) -> Trained:
    """An inverter of this kind (a name in `NETWORKS`) for the setting `name`: trained on the attacker's rows, or found."""
    stage = run.stage(name)
    shape = tuple(attacker.explanations.shape[1:3])
    sources = [seen, attacker.predictions, attacker.images]

    def validate(network: nn.Module) -> float:
        total = sum(mean_squared_error(network, batch).double().item() * len(rows)
                    for rows, batch in through(sources, attacker.validation, device))
        return total / len(attacker.validation)

    def make(network: nn.Module, state: Path) -> dict:
        task = Task(name, network, stage, sources, attacker.train, mean_squared_error, validate, higher=False,
                    seed=run.seed, shuffle=not run.repeats("order"))
        return fit(task, state, run.root, identity | {"spec": spec}, device)

    identity = identity | {"setting": name, "seed": run.seed, "stage": stage.identity(),
                           "official": run.repeats("order", "validation", "optimiser"), "precision": device.precision}
    spec = inverter_spec(kind, run.target, shape, classes)
    if kind == "centred":
        spec |= {"mean": moments(seen, attacker.train)[0]}
    return obtain(path, run.root, spec, identity, stage, run.seed, device, path.stem.removeprefix(f"{run.target.name}_"), make)


def measure(inverter: nn.Module, attacker: Attacker, seen: np.ndarray | Tensor | None, victim: nn.Module,
            evaluation: nn.Module, device: Device) -> Outcome:
    """The attacker's reconstructions of the test set against its images. Always in 32-bit arithmetic."""
    per_image: dict[str, Tensor] = {}
    shown, shown_explanation, squared = [], [], 0.0
    sources = [seen, attacker.explanations, attacker.predictions, attacker.images, attacker.labels]
    for rows, (protected, clean, prediction, image, label) in through(sources, attacker.test, device):
        with torch.no_grad():
            found = inverter(protected, prediction).float().clamp(0, 1).contiguous()
            image = image.contiguous()
            values = {"mse": metrics.mse(image, found), "psnr": metrics.psnr(image, found),
                      "ssim": metrics.ssim(image, found),
                      "accuracy": metrics.correct(victim(found), label), "tca": metrics.correct(evaluation(found), label)}
            if protected is not None:
                values["distortion"] = metrics.mse(clean, protected)
            squared += (victim.features(found).double() - victim.features(image).double()).square().sum().item()
        for name, value in values.items():  # into one place: nothing of a batch outlives it
            if name not in per_image:
                per_image[name] = torch.empty(len(attacker.test), dtype=value.dtype)
            per_image[name][rows.start - attacker.test.start : rows.stop - attacker.test.start] = value
        if (missing := SHOWN - sum(map(len, shown))) > 0:
            shown.append(found[:missing].cpu().clone())
            if protected is not None:
                shown_explanation.append(protected[:missing].cpu().clone())
    numbers = {name: _plain(value.double().mean().item()) for name, value in per_image.items()}
    numbers["deepsim"] = metrics.deepsim_of(squared, len(attacker.test))
    quantiles = torch.quantile(per_image["mse"].double(), torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.double))
    numbers["mse_interval"] = list(metrics.bootstrap_interval(per_image["mse"]))
    numbers["mse_quantiles"] = quantiles.tolist()
    return Outcome(numbers, per_image, torch.cat(shown), torch.cat(shown_explanation) if shown_explanation else None)


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None


SAME = 0.1  # MSE, relative: two attackers of the same data may differ so much by their weights at the start


def compare(outcomes: dict[str, Outcome]) -> list[str]:
    """Adds residual leakage to each outcome's numbers; returns warnings where the evaluation itself looks unsound."""
    mse = {name: outcome.numbers["mse"] for name, outcome in outcomes.items()}
    interval = {name: outcome.numbers["mse_interval"] for name, outcome in outcomes.items()}
    warnings = []
    for name, outcome in outcomes.items():
        both = {"predmi", "expmi"} <= mse.keys()
        outcome.numbers["residual_leakage"] = (
            metrics.residual_leakage(mse[name], mse["predmi"], mse["expmi"]) if both else None)
        if name != "predmi" and "predmi" in mse and interval[name][0] > interval["predmi"][1]:
            warnings.append(f"{name}: its attacker does worse (MSE {mse[name]:.4f}) than one without explanations "
                            f"({mse['predmi']:.4f}), which it could imitate: it has not converged; train it longer")
        if name != "expmi" and "expmi" in mse and outcome.numbers.get("distortion", 1.0) < 1e-9:
            if abs(mse[name] / mse["expmi"] - 1) > SAME:
                warnings.append(f"{name}: distorts nothing, but its attacker's MSE is {mse[name]:.4f} and the undefended "
                                f"one's {mse['expmi']:.4f}: one of them has not converged; train them longer")
    noisy = [name for name in outcomes if SETTINGS[name].defence in ("none", "rnd")]
    noisy.sort(key=lambda name: outcomes[name].numbers["distortion"])
    for less, more in itertools.pairwise(noisy):
        if interval[more][1] < interval[less][0] and mse[more] < (1 - SAME) * mse[less]:
            warnings.append(f"{more}: more noise than {less}, but its attacker recovers more (MSE {mse[more]:.4f} and "
                            f"{mse[less]:.4f}): {less}'s has not converged; train it longer")
    return warnings
