"""Pictures. Arrays in, files out; images (N, C, H, W) in [0, 1] on the CPU."""

from pathlib import Path

import matplotlib
import numpy as np
from torch import Tensor

from .artifacts import writing

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  the backend comes first: there may be no screen

COLOURS = {"predmi": "#7f7f7f", "expmi": "#d62728", "rnd": "#ff7f0e", "ond": "#9467bd", "gnime": "#1f77b4",
           "rnd-0": "#f5c6a0", "rnd-4": "#a04000", "negative": "#8c564b", "permutation": "#e377c2", "class-mean": "#17becf"}


def _save(figure, path: Path) -> None:
    try:
        with writing(path) as part:
            figure.savefig(part, format="png", dpi=120, bbox_inches="tight")
    finally:
        plt.close(figure)


def _grid(columns: list[tuple[str, Tensor, list[str] | None]], path: Path) -> None:
    """Columns of pictures with a title each and, under a picture, its caption."""
    rows = len(columns[0][1])
    captions = any(captions for _, _, captions in columns)
    height = 1.45 if captions else 1.25
    figure, axes = plt.subplots(rows, len(columns), figsize=(1.35 * len(columns), height * rows + 0.4), squeeze=False)
    for j, (title, pictures, texts) in enumerate(columns):
        for i in range(rows):
            axis = axes[i, j]
            picture = pictures[i].clamp(0, 1).permute(1, 2, 0).numpy()
            axis.imshow(picture[..., 0] if picture.shape[2] == 1 else picture, cmap="gray", vmin=0, vmax=1,
                        interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            if i == 0:
                axis.set_title(title, fontsize=8)
            if texts:
                axis.set_xlabel(texts[i], fontsize=7, labelpad=2)
    figure.tight_layout(pad=0.3)
    _save(figure, path)


def comparison(path: Path, image: Tensor, explanation: Tensor, outcomes: dict) -> None:
    """Per test image: original, explanation, GNIME's protected explanation, each attacker's reconstruction with its MSE."""
    columns = [("original", image, None), ("explanation", explanation, None)]
    if "gnime" in outcomes:
        columns.append(("protected\nexplanation", outcomes["gnime"].shown_explanation, None))
    for name, outcome in outcomes.items():
        texts = [f"MSE {value:.4f}" for value in outcome.per_image["mse"][: len(image)].tolist()]
        columns.append((f"attacker:\n{name}", outcome.shown, texts))
    _grid(columns, path)


def injector_progress(path: Path, image: Tensor, explanation: Tensor, protected: Tensor, found: Tensor) -> None:
    """The defender's images in training: what the injector sends, and what its sparring inverter makes of it."""
    _grid([("original", image, None), ("explanation", explanation, None), ("protected\nexplanation", protected, None),
           ("sparring\ninverter", found, None)], path)


def metric_bars(path: Path, outcomes: dict) -> None:
    """A panel per metric, a bar per setting."""
    panels = {"mse": "MSE, 95 % interval (higher: safer)", "ssim": "SSIM (lower: safer)",
              "accuracy": "reclassification accuracy", "tca": "TCA",
              "deepsim": "DeePSiM", "distortion": "explanation distortion"}
    names = list(outcomes)
    figure, axes = plt.subplots(2, 3, figsize=(max(9.0, 1.7 * len(names)), 5.6))
    for axis, (metric, title) in zip(axes.flat, panels.items(), strict=True):
        values = [outcomes[name].numbers.get(metric) for name in names]
        bars = axis.bar(names, [value or 0 for value in values], color=[COLOURS[name] for name in names])
        tops = bars
        if metric == "mse":
            spans = [outcomes[name].numbers["mse_interval"] for name in names]
            errors = np.array([[v - low, high - v] for v, (low, high) in zip(values, spans, strict=True)]).T.clip(0)
            axis.errorbar(names, values, errors, fmt="none", ecolor="black", capsize=2, linewidth=1)
            tops = axis.bar(names, [high for _, high in spans], alpha=0)  # labels stand above the intervals
        axis.bar_label(tops, ["-" if value is None else f"{value:.3g}" for value in values], fontsize=7, padding=2)
        axis.set_title(title, fontsize=9)
        axis.tick_params(labelsize=8)
        axis.tick_params(axis="x", rotation=30 if len(names) > 4 else 0)
        axis.margins(y=0.15)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    _save(figure, path)


def _plot_losses(axis, history: list, weight: float) -> None:
    epochs = np.arange(1, len(history) + 1)
    for values, label in zip(np.asarray(history).T, ("distortion D", "inversion V", "inverter V + C"), strict=True):
        axis.plot(epochs, values, label=label, marker="." if len(epochs) < 3 else None)
    axis.set_yscale("log")
    axis.set_title(f"injector against inverter, a = {weight:g}", fontsize=9)
    axis.set_xlabel("epoch", fontsize=8)
    axis.legend(fontsize=8)
    axis.tick_params(labelsize=8)


def injector_losses(path: Path, history: list, weight: float) -> None:
    """The losses of both players, epoch by epoch."""
    figure, axis = plt.subplots(figsize=(5.5, 3.6))
    _plot_losses(axis, history, weight)
    figure.tight_layout()
    _save(figure, path)


def training_curves(path: Path, losses: list, histories: dict[str, list], weight: float) -> None:
    """The injector's losses beside each attacker's validation error."""
    figure, axes = plt.subplots(1, 2 if losses else 1, figsize=(10 if losses else 5.5, 3.8), squeeze=False)
    if losses:
        _plot_losses(axes[0, 0], losses, weight)
    axis = axes[0, -1]
    for name, history in histories.items():
        if history:
            values = np.asarray(history)[:, 1]
            axis.plot(np.arange(1, len(values) + 1), values, label=name, color=COLOURS[name],
                      marker="." if len(values) < 3 else None)
    axis.set_yscale("log")
    axis.set_title("attackers: validation MSE", fontsize=9)
    axis.set_xlabel("epoch", fontsize=8)
    axis.tick_params(labelsize=8)
    axis.legend(fontsize=8)
    figure.tight_layout()
    _save(figure, path)
