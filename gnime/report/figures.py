"""Pictures. Arrays in, files out; images (N, C, H, W) in [0, 1] on the CPU."""

import os
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from ..entries import Metric
from ..metrics.leakage import is_possible
from ..registry import METRICS, RESIDUAL, colour, find_row, in_order
from ..store import digest_of, writing

_backend = os.environ.pop("MPLBACKEND", None)  # a notebook's own may not be installed here; a file needs none
import matplotlib  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.patches import Rectangle  # noqa: E402

if _backend is not None:
    os.environ["MPLBACKEND"] = _backend
NOTE = "gnime-drawn-from"  # a PNG's text chunk
our_style = matplotlib.rc_context(  # whatever the user's matplotlibrc says
    {name: value for name, value in matplotlib.rcParamsDefault.items() if name != "backend"})


def _save(figure: Figure, path: Path, note: str | None = None) -> None:
    with writing(path) as part:
        figure.savefig(part, format="png", dpi=120, bbox_inches="tight", metadata={NOTE: note} if note else None)


def _panels(lines: int, columns: int, size: tuple[float, float]) -> tuple[Figure, np.ndarray]:
    """A figure and its axes (lines, columns)."""
    figure = Figure(figsize=size)
    return figure, figure.subplots(lines, columns, squeeze=False)


def _grid(columns: list[tuple[str, Tensor, list[str] | None]], path: Path) -> None:
    """Columns of pictures with a title each and, under a picture, its caption."""
    rows = len(columns[0][1])
    captions = any(captions for _, _, captions in columns)
    height = 1.45 if captions else 1.25
    figure, axes = _panels(rows, len(columns), (1.35 * len(columns), height * rows + 0.4))
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


@our_style
def comparison(path: Path, image: Tensor, explanation: Tensor, results: dict) -> None:
    """Per test image: original, explanation, GNIME's protected explanation, each row's best reconstruction with its MSE."""
    columns = [("original", image, None), ("explanation", explanation, None)]
    if "gnime" in results:
        columns.append(("protected\nexplanation", results["gnime"].shown_explanation, None))
    for name, result in results.items():
        texts = [f"MSE {value:.4f}" for value in result.errors[: len(image)].tolist()]
        columns.append((f"{name}\n({result.numbers['best']['attacker']})", result.shown, texts))
    _grid(columns, path)


@our_style
def injector_progress(path: Path, image: Tensor, explanation: Tensor, protected: Tensor, found: Tensor) -> None:
    """The defender's images in training: what the injector sends, and what its sparring inverter makes of it."""
    _grid([("original", image, None), ("explanation", explanation, None), ("protected\nexplanation", protected, None),
           ("sparring\ninverter", found, None)], path)


@our_style
def metric_bars(path: Path, results: dict) -> None:
    """A panel per metric of the paper's attacker, and one of residual leakage by the best attacker; a bar per setting."""
    panels = {name: metric for name, metric in METRICS.items() if name != "psnr"}  # MSE again, on another scale
    panels[RESIDUAL] = Metric(RESIDUAL, "residual leakage by the best attacker", "", safer="lower")
    names, columns = list(results), 3
    lines = -(-len(panels) // columns)
    figure, axes = _panels(lines, columns, (max(9.0, 1.7 * len(names)), 2.8 * lines))
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, (name, metric) in zip(axes.flat, panels.items(), strict=False):
        values = [results[row].numbers.get(name) for row in names]
        if name == RESIDUAL:  # a height that no leakage can have would shrink all others to lines
            values = [value if is_possible(value, results[row].numbers.get(f"{name}_interval")) else None
                      for row, value in zip(names, values, strict=True)]
        heights = [value or 0 for value in values]
        bars = axis.bar(names, heights, color=[colour(find_row(row)) for row in names])
        spans = [results[row].numbers.get(f"{name}_interval") if value is not None else None
                 for row, value in zip(names, values, strict=True)]
        if any(spans):
            spans = [span or (height, height) for span, height in zip(spans, heights, strict=True)]
            errors = np.array([[v - low, high - v] for v, (low, high) in zip(heights, spans, strict=True)]).T.clip(0)
            axis.errorbar(names, heights, errors, fmt="none", ecolor="black", capsize=2, linewidth=1)
            bars = axis.bar(names, [high for _, high in spans], alpha=0)  # labels stand above the intervals
        axis.bar_label(bars, ["-" if value is None else f"{value:.3g}" for value in values], fontsize=7, padding=2)
        title = metric.title + (", 95 % interval" if any(spans) else "")
        axis.set_title(title + (f" ({metric.safer}: safer)" if metric.safer else ""), fontsize=9)
        axis.tick_params(labelsize=8)
        if len(names) > 4:
            axis.set_xticks(range(len(names)), names, rotation=35, ha="right", rotation_mode="anchor")
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


@our_style
def injector_losses(path: Path, history: list, weight: float) -> None:
    """The losses of both players, epoch by epoch."""
    figure, axes = _panels(1, 1, (5.5, 3.6))
    _plot_losses(axes[0, 0], history, weight)
    figure.tight_layout()
    _save(figure, path)


@our_style
def training_curves(path: Path, losses: list, histories: dict[str, list], weight: float) -> None:
    """The injector's losses beside each attacker's validation error."""
    figure, axes = _panels(1, 2 if losses else 1, (10 if losses else 5.5, 3.8))
    if losses:
        _plot_losses(axes[0, 0], losses, weight)
    axis = axes[0, -1]
    for name, history in histories.items():
        if history:
            values = np.asarray(history)[:, 1]
            axis.plot(np.arange(1, len(values) + 1), values, label=name, color=colour(find_row(name)),
                      marker="." if len(values) < 3 else None)
    axis.set_yscale("log")
    axis.set_title("the paper's attackers: validation MSE", fontsize=9)
    axis.set_xlabel("epoch", fontsize=8)
    axis.tick_params(labelsize=8)
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))  # beside the curves
    figure.tight_layout()
    _save(figure, path)


@our_style
def seed_bars(path: Path, ours: dict, paper: dict) -> None:
    """MSE over seeds: a panel per target, a group per explainer, a bar per setting, the paper's paler beside it.

    ours: panel -> group -> setting -> numbers, one a seed. paper: likewise, (mean, standard deviation), or nothing.
    The picture carries the digest of `(ours, paper)`; see `drawn_from`.
    """
    rows = _rows(ours)
    most = max(sum(len(ours[panel]) for panel in row) for row in rows)
    figure = Figure(figsize=(max(5.5, 3.4 * most), 2.7 * len(rows) + 0.7))
    grid = figure.add_gridspec(len(rows), most)
    drawn = {}
    for i, row in enumerate(rows):
        start = 0
        for panel in row:
            axis = figure.add_subplot(grid[i, start : start + len(ours[panel])])
            start += len(ours[panel])
            drawn |= _panel(axis, ours[panel], paper.get(panel, {}))
            axis.set_title(panel, fontsize=10)
        figure.axes[-len(row)].set_ylabel("MSE (higher: safer)", fontsize=9)
    labels = in_order(drawn.keys() - {"paper"}) + [name for name in ("paper",) if name in drawn]
    figure.legend([drawn[name] for name in labels], labels, loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=8,
                  ncols=len(labels) if most > 2 else 4, frameon=False, title="mean and standard deviation over seeds",
                  title_fontsize=9)
    figure.tight_layout()
    _save(figure, path, digest_of((ours, paper)))


def _rows(panels: dict) -> list[list[str]]:
    """Panels in rows of at most three groups: each in the first row that has room."""
    rows: list[list[str]] = []
    for panel, groups in panels.items():
        row = next((row for row in rows if sum(len(panels[other]) for other in row) + len(groups) <= 3), None)
        if row is None:
            rows.append(row := [])
        row.append(panel)
    return rows


def _panel(axis, groups: dict, paper: dict) -> dict:
    """Draws one; returns what stands for each setting, and for the paper, in the legend."""
    drawn, at, ticks, pale = {}, 0, [], {"alpha": 0.45, "hatch": "////", "edgecolor": "white", "linewidth": 0}
    for title, bars in groups.items():
        known = paper.get(title, {})
        width = 0.45 if known else 0.9
        ticks.append(at + (len(bars) - 1) / 2)
        for name, numbers in bars.items():
            style = {"width": width, "capsize": 2, "error_kw": {"linewidth": 1}}
            spread = np.std(numbers, ddof=1) if len(numbers) > 1 else None
            style["color"] = colour(find_row(name))
            drawn[name] = axis.bar(at - (0.225 if known else 0), np.mean(numbers), yerr=spread, **style)
            if name in known:
                mean, spread = known[name]
                axis.bar(at + 0.225, mean, yerr=spread, **pale, **style)
                drawn["paper"] = Rectangle((0, 0), 1, 1, facecolor="black", **pale)
            at += 1
        at += 1.5
    axis.set_xticks(ticks, list(groups), fontsize=9)
    axis.tick_params(axis="x", length=0)
    axis.tick_params(axis="y", labelsize=8)
    axis.grid(axis="y", linewidth=0.4, alpha=0.6)
    axis.margins(x=0.02)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    return drawn


def drawn_from(path: Path) -> str | None:
    """The digest of the numbers that a chart was drawn from; None where there is no such chart."""
    try:
        with Image.open(path) as picture:
            return picture.info.get(NOTE)
    except (OSError, ValueError):
        return None
