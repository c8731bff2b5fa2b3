"""Charts of one run, drawn from `results.json` alone."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..entries import Metric
from ..registry import DEFENCES, METRICS, RESIDUAL, USEFULNESS, colour, find_row
from ..store import digest_of
from .figures import our_style, panels, save
from .points import Point, percent, percents, points
from .verdict import Verdict

MARKERS = "osD^vP*Xhp<>d8"
SHOWN_LEAK = (-0.4, 1.4)  # what lies farther out stands at the edge


def headline(content: dict) -> str:
    """Which data, how many test images, and which intervals."""
    return f"{explained(content)}, seed {content['seed']}: n = {content['n']['test']} test images, 95 % intervals over them"


def explained(content: dict) -> str:
    """The data and the explainer, with the layer where one was given."""
    layer = content["configuration"].get("layer")
    return f"{content['target']}, {content['xai']}" + (f" of {layer}" if layer else "")


def frontier_note(content: dict, verdict: Verdict) -> str:
    """The digest of what the frontier shows; the picture carries it. See `figures.drawn_from`."""
    numbers = [[name, *(numbers.get(key) for key in (RESIDUAL, f"{RESIDUAL}_interval", USEFULNESS, f"{USEFULNESS}_interval"))]
               for name, numbers in content["settings"].items()]
    return digest_of([numbers, list(verdict.dominated), verdict.publish])


@dataclass(frozen=True)
class Caption:
    """What a frontier says beside its points: which rows are hollow and why, which one is bold, whose numbers they are."""

    headline: str
    hollow: tuple[str, ...]
    why: str
    bold: str | None
    note: str  # in the file; see `figures.drawn_from`


def frontier(path: Path, content: dict, verdict: Verdict, narrow: bool = False) -> None:
    """The frontier of one run, with 95 % intervals over its test images."""
    caption = Caption(headline(content), tuple(verdict.dominated), "dominated", verdict.publish,
                      frontier_note(content, verdict))
    draw_frontier(path, list(points(content).values()), caption, narrow)


@our_style
def draw_frontier(path: Path, rows: list[Point], caption: Caption, narrow: bool = False) -> None:
    """Usefulness against residual leakage, a point per row with both spans; rows of one defence are joined.

    narrow: for a telephone's screen. Filled: not dominated. Hollow: dominated. Crosses: controls.
    """
    rows = [row for row in rows if row.leak is not None and row.kept is not None]
    floor = min((row.kept_span[0] for row in rows if not row.control), default=0.0)
    below = [row for row in rows if row.kept < floor - 0.05]  # controls that would leave no room for the others
    rows = [row for row in rows if row not in below]
    figure, axes = panels(1, 1, (3.9, 4.6) if narrow else (7.6, 4.6))
    axis = axes[0, 0]
    kinds = list(dict.fromkeys(find_row(row.name).defence for row in rows))
    for kind in kinds:
        curve = sorted((row for row in rows if find_row(row.name).defence == kind), key=lambda row: row.kept)
        if len(curve) > 1:
            axis.plot([_inside(row.leak) for row in curve], [row.kept for row in curve], color=DEFENCES[kind].colour,
                      linewidth=1, alpha=0.6, zorder=1)
        for row in curve:
            _point(axis, row, MARKERS[kinds.index(kind) % len(MARKERS)], row.name in caption.hollow)
    axis.axvline(0, color="black", linewidth=0.8, linestyle="--", zorder=0)
    axis.margins(0.06)
    _labels(axis, rows, caption.bold, 7 if narrow else 8)
    axis.xaxis.set_major_formatter(lambda value, _: percent(value))
    size = 7.5 if narrow else 9
    axis.set_xlabel("residual leakage to the best attacker\n(0 %: prediction alone, 100 %: undefended)", fontsize=size)
    axis.set_ylabel(f"usefulness: {METRICS[USEFULNESS].title} correlation with the clean map", fontsize=size)
    axis.tick_params(labelsize=size - 1)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(linewidth=0.3, alpha=0.6)
    notes = [f"better: up and left. filled: not dominated; hollow: {caption.why}; x: control"]
    notes += ["bold: what to publish"] if caption.bold in [row.name for row in rows] else []
    stronger = dict.fromkeys(row.beside[0] for row in rows if row.beside)
    notes += [f"dotted arrow: ends at the residual leakage to {' or '.join(stronger)}, which knows more than the data"
              ] if stronger else []
    notes += [f"below the picture: {', '.join(f'{row.name} {row.kept:.2f}' for row in below)}"] if below else []
    figure.suptitle(caption.headline, fontsize=size, wrap=True)
    figure.text(0.01, -0.01, "\n".join(notes), fontsize=size - 1.5, va="top", wrap=True)
    figure.tight_layout()
    save(figure, path, caption.note)


def _inside(leak: float) -> float:
    return min(max(leak, SHOWN_LEAK[0]), SHOWN_LEAK[1])


def _point(axis, row: Point, marker: str, dominated: bool) -> None:
    shade, x = colour(find_row(row.name)), _inside(row.leak)
    spans = [[abs(x - _inside(row.leak_span[0]))], [abs(_inside(row.leak_span[1]) - x)]], [
        [row.kept - row.kept_span[0]], [row.kept_span[1] - row.kept]]
    axis.errorbar(x, row.kept, np.clip(spans[1], 0, None), np.clip(spans[0], 0, None), marker="x" if row.control else marker,
                  color=shade, markerfacecolor="white" if dominated else shade, markersize=6, capsize=2, linewidth=1, zorder=3)
    if row.beside:
        axis.annotate("", (_inside(row.beside[1]), row.kept), (x, row.kept), zorder=2,
                      arrowprops={"arrowstyle": "->", "linestyle": ":", "color": shade})


def _labels(axis, rows: list[Point], publish: str | None, size: float) -> None:
    """Names at the right of the chart, as far apart as they need, each joined to its point."""
    low, high = axis.get_ylim()
    rows = sorted(rows, key=lambda row: (row.kept, row.leak))
    gap = min(0.062, 1 / max(len(rows), 1))
    heights = [(row.kept - low) / (high - low) for row in rows]
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + gap)
    top = 1.0
    for i in reversed(range(len(heights))):
        heights[i] = top = min(heights[i], top)
        top -= gap
    for row, height in zip(rows, heights, strict=True):
        axis.annotate(row.name, (_inside(row.leak), row.kept), (1.03, height), textcoords="axes fraction", fontsize=size,
                      va="center", weight="bold" if row.name == publish else "normal", annotation_clip=False,
                      arrowprops={"arrowstyle": "-", "color": "#999999", "linewidth": 0.5, "shrinkA": 1, "shrinkB": 4})


@our_style
def metric_bars(path: Path, content: dict) -> None:
    """A panel per metric of the paper's attacker, and one of residual leakage by the best attacker; a bar per row."""
    settings, columns = content["settings"], 3
    shown = {name: metric for name, metric in METRICS.items()
             if name != "psnr" and any(numbers.get(name) is not None for numbers in settings.values())}  # PSNR is MSE again
    shown[RESIDUAL] = Metric(RESIDUAL, "residual leakage, best attacker", "", form=".0%", safer="lower")
    names, lines = list(settings), -(-len(shown) // columns)
    figure, axes = panels(lines, columns, (11, (0.25 * len(names) + 0.85) * lines + 0.4))
    for axis in axes.flat[len(shown) :]:
        axis.set_axis_off()
    for axis, (name, metric) in zip(axes.flat, shown.items(), strict=False):
        values = [settings[row].get(name) for row in names]
        if name == RESIDUAL:  # a bar that no leakage can have would shrink all others to lines
            values = [points(content)[row].leak for row in names]
        spans = [value is not None and settings[row].get(f"{name}_interval") or (value or 0,) * 2
                 for row, value in zip(names, values, strict=True)]
        widths = np.array([value or 0 for value in values])
        axis.barh(names, widths, color=[colour(find_row(row)) for row in names], height=0.7)
        reach = np.abs(np.array(spans).T - widths)
        axis.errorbar(widths, names, xerr=reach, fmt="none", ecolor="black", capsize=2, linewidth=1)
        for i, (value, (_, end)) in enumerate(zip(values, spans, strict=True)):
            axis.annotate("-" if value is None else format(value, metric.form), (max(end, 0), i), (4, 0), va="center",
                          fontsize=7, textcoords="offset points")
        axis.set_title(metric.title + (f" ({metric.direction})" if metric.direction else ""), fontsize=9)
        axis.tick_params(labelsize=8)
        axis.invert_yaxis()  # the first row at the top
        if axis not in list(axes[:, 0]):
            axis.set_yticks([])
        axis.margins(x=0.22)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{headline(content)}; the paper's attacker, except where it says otherwise", fontsize=10)
    figure.tight_layout(rect=(0, 0, 1, 0.99))
    save(figure, path)


def row_labels(content: dict) -> dict[str, str]:
    """Row -> its name, its best attacker and its residual leakage with the interval."""
    labels = {}
    for row in points(content).values():
        leak = "" if row.leak is None else f"\nleak {percent(row.leak)} {percents(row.leak_span)}"
        labels[row.name] = f"{row.name}\n{row.attacker}{leak}"
    return labels
