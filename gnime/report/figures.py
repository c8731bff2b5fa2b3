"""Pictures. Arrays in, files out; images (N, C, H, W) in [0, 1] on the CPU."""

import os
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from ..registry import colour, find_row, in_order
from ..store import digest_of, writing
from .examples import Example, drawable

_backend = os.environ.pop("MPLBACKEND", None)  # a notebook's own may not be installed here; a file needs none
import matplotlib  # noqa: E402
from matplotlib.colors import to_rgb  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.patches import Rectangle  # noqa: E402

if _backend is not None:
    os.environ["MPLBACKEND"] = _backend
NOTE = "gnime-drawn-from"  # a PNG's text chunk
our_style = matplotlib.rc_context(  # whatever the user's matplotlibrc says
    {name: value for name, value in matplotlib.rcParamsDefault.items() if name != "backend"})


def save(figure: Figure, path: Path, note: str | None = None) -> None:
    with writing(path) as part:
        figure.savefig(part, format="png", dpi=120, bbox_inches="tight", metadata={NOTE: note} if note else None)


def panels(lines: int, columns: int, size: tuple[float, float]) -> tuple[Figure, np.ndarray]:
    """A figure and its axes (lines, columns)."""
    figure = Figure(figsize=size)
    return figure, figure.subplots(lines, columns, squeeze=False)


def _grid(columns: list[tuple[str, Tensor, list[str] | None]], path: Path) -> None:
    """Columns of pictures with a title each and, under a picture, its caption."""
    rows = len(columns[0][1])
    captions = any(captions for _, _, captions in columns)
    height = 1.45 if captions else 1.25
    figure, axes = panels(rows, len(columns), (1.35 * len(columns), height * rows + 0.4))
    for j, (title, pictures, texts) in enumerate(columns):
        for i in range(rows):
            axis = axes[i, j]
            axis.imshow(drawable(pictures[i].clamp(0, 1)), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            if i == 0:
                axis.set_title(title, fontsize=8)
            if texts:
                axis.set_xlabel(texts[i], fontsize=7, labelpad=2)
    figure.tight_layout(pad=0.3)
    save(figure, path)


@our_style
def comparison(path: Path, headline: str, examples: list[Example], labels: dict[str, str]) -> None:
    """A line per row: of each example the protected map, and the best attacker's reconstruction with its MSE.

    labels: row -> what stands at the left of its line. The first line has the images and their explanations.
    """
    side = 1.15
    size = 2 * side * len(examples) + 2.2, (side + 0.22) * (len(labels) + 1) + 0.9
    figure, axes = panels(len(labels) + 1, 2 * len(examples), size)
    for j, example in enumerate(examples):
        _draw(axes[0, 2 * j], example.image, f"{example.why}: {_cut(example.name, 18)}", "private image")
        _draw(axes[0, 2 * j + 1], example.explanation, f"class {_cut(example.label, 18)}", "explanation")
        for i, name in enumerate(labels, 1):
            _draw(axes[i, 2 * j], example.maps[name], "", "no map" if example.maps[name] is None else "published")
            _draw(axes[i, 2 * j + 1], example.found[name], "", f"MSE {example.errors[name]:.4f}")
    for axis, label in zip(axes[:, 0], ["", *labels.values()], strict=True):
        axis.set_ylabel(label, fontsize=8, rotation=0, ha="right", va="center", labelpad=6)
    figure.suptitle(headline, fontsize=9, wrap=True)
    figure.tight_layout(pad=0.4, rect=(0, 0, 1, 0.985))
    save(figure, path)


def _cut(text: str, most: int) -> str:
    """Plain text for a picture: "$" starts no formula, and long names lose their beginning."""
    return ("…" + text[1 - most :] if len(text) > most else text).replace("$", r"\$")


def _draw(axis, picture: Tensor | None, title: str, caption: str) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_title(title, fontsize=7)
    axis.set_xlabel(caption, fontsize=7, labelpad=2)
    if picture is None:
        axis.spines[:].set_visible(False)
        return
    axis.imshow(drawable(picture), cmap="gray", vmin=0, vmax=255, interpolation="nearest")


@our_style
def injector_progress(path: Path, image: Tensor, explanation: Tensor, protected: Tensor, found: Tensor) -> None:
    """The defender's images in training: what the injector sends, and what its sparring inverter makes of it."""
    _grid([("original", image, None), ("explanation", explanation, None), ("protected\nexplanation", protected, None),
           ("sparring\ninverter", found, None)], path)


def _plot_losses(axis, history: list, weight: float) -> None:
    """The losses of both players, epoch by epoch."""
    epochs = np.arange(1, len(history) + 1)
    for values, label in zip(np.asarray(history).T, ("distortion D", "inversion V", "inverter V + C"), strict=True):
        axis.plot(epochs, values, label=label, marker="." if len(epochs) < 3 else None)
    axis.set_yscale("log")
    axis.set_title(f"injector against inverter, a = {weight:g}", fontsize=9)
    axis.set_xlabel("epoch", fontsize=8)
    axis.legend(fontsize=8)
    axis.tick_params(which="both", labelsize=8)


@our_style
def injector_losses(path: Path, history: list, weight: float) -> None:
    """The losses of both players, epoch by epoch."""
    figure, axes = panels(1, 1, (5.5, 3.6))
    _plot_losses(axes[0, 0], history, weight)
    figure.tight_layout()
    save(figure, path)


@our_style
def training_curves(path: Path, losses: dict[float, list], histories: dict[str, list]) -> None:
    """The losses of the injector of each weight, and after them each attacker's validation error."""
    count = len(losses) + 1
    columns = min(count, 2)
    lines = -(-count // columns)
    figure, axes = panels(lines, columns, (5.2 * columns + 1, 3.6 * lines))
    for axis, (weight, history) in zip(axes.flat, losses.items(), strict=False):
        _plot_losses(axis, history, weight)
    for axis in axes.flat[count:]:
        axis.set_axis_off()
    axis = axes.flat[count - 1]
    for i, (name, history) in enumerate(histories.items()):
        if history:
            values = np.asarray(history)[:, 1]
            axis.plot(np.arange(1, len(values) + 1), values, label=name, color=colour(find_row(name)),
                      linestyle=("-", "--", ":", "-.")[i % 4], marker="." if len(values) < 3 else None)
    axis.set_yscale("log")
    axis.set_title("the paper's attackers: validation MSE", fontsize=9)
    axis.set_xlabel("epoch", fontsize=8)
    axis.tick_params(which="both", labelsize=8)
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))  # beside the curves
    figure.tight_layout()
    save(figure, path)


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
    drawn, colours = {}, _tints({name for groups in ours.values() for bars in groups.values() for name in bars})
    for i, row in enumerate(rows):
        start = 0
        for panel in row:
            axis = figure.add_subplot(grid[i, start : start + len(ours[panel])])
            start += len(ours[panel])
            drawn |= _panel(axis, ours[panel], paper.get(panel, {}), colours)
            axis.set_title(panel, fontsize=10)
        figure.axes[-len(row)].set_ylabel("MSE (higher: safer)", fontsize=9)
    labels = in_order(drawn.keys() - {"paper"}) + [name for name in ("paper",) if name in drawn]
    figure.legend([drawn[name] for name in labels], labels, loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=8,
                  ncols=min(len(labels), 3 * most) if most > 2 else 4, frameon=False,
                  title="mean and standard deviation over seeds", title_fontsize=9)
    figure.tight_layout()
    save(figure, path, digest_of((ours, paper)))


def _rows(panels: dict) -> list[list[str]]:
    """Panels in rows of at most three groups: each in the first row that has room."""
    rows: list[list[str]] = []
    for panel, groups in panels.items():
        row = next((row for row in rows if sum(len(panels[other]) for other in row) + len(groups) <= 3), None)
        if row is None:
            rows.append(row := [])
        row.append(panel)
    return rows


def _tints(names: set[str]) -> dict[str, tuple]:
    """The rows' colours. Rows of one colour, such as an injector's weights, get paler ones in their order."""
    found: dict[str, list[str]] = {}
    for name in in_order(names):
        found.setdefault(colour(find_row(name)), []).append(name)
    return {name: tuple(1 - (1 - part) * (1 - 0.75 * i / len(alike)) for part in to_rgb(base))
            for base, alike in found.items() for i, name in enumerate(alike)}


def _panel(axis, groups: dict, paper: dict, colours: dict) -> dict:
    """Draws one; returns what stands for each setting, and for the paper, in the legend."""
    drawn, at, ticks, pale = {}, 0, [], {"alpha": 0.45, "hatch": "////", "edgecolor": "white", "linewidth": 0}
    for title, bars in groups.items():
        known = paper.get(title, {})
        width = 0.45 if known else 0.9
        ticks.append(at + (len(bars) - 1) / 2)
        for name, numbers in bars.items():
            style = {"width": width, "capsize": 2, "error_kw": {"linewidth": 1}}
            spread = np.std(numbers, ddof=1) if len(numbers) > 1 else None
            style["color"] = colours[name]
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
