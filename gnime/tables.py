"""docs/results.md from the files in `results/` alone: the paper's numbers beside ours, and what no run has measured."""

import csv
import difflib
import json
import statistics
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from .artifacts import write_text
from .errors import GnimeError
from .explainers import EXPLAINERS
from .settings import SETTINGS

DOCS = Path("docs/results.md")
PAPER = Path("docs/table1.csv")
METRICS = ("mse", "ssim", "tca", "deepsim")
REDUCED_METRICS = ("mse", "psnr", "ssim", "accuracy", "tca", "deepsim", "distortion", "residual_leakage")
TITLES = {"mse": "MSE", "psnr": "PSNR", "ssim": "SSIM", "accuracy": "accuracy", "tca": "TCA", "deepsim": "DeePSiM",
          "distortion": "distortion", "residual_leakage": "residual leakage"}
TARGETS = ("mnist", "cifar10", "celeba")  # of the paper's table; its ImageNet-100 is not a target of ours


def read_results(folder: Path) -> dict[str, list[dict]]:
    """preset -> runs, in the order of their file names."""
    found: dict[str, list[dict]] = defaultdict(list)
    for path in sorted(folder.glob("*/*.json")):
        try:
            found[path.parent.name].append(json.loads(path.read_text(encoding="utf-8")))
        except ValueError:
            raise GnimeError(f"{path}: not JSON; remove it and run python -m gnime.reproduce again") from None
    return found


def _spread(values: Iterable[float | None], digits: int = 4) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    text = f"{statistics.mean(known):.{digits}f}"
    return f"{text} ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else text


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(row) + " |" for row in rows), ""]


def _group(runs: list[dict]) -> dict[tuple, list[dict]]:
    """Runs that differ in their seed alone: (target, xai, official) -> runs."""
    groups: dict[tuple, list[dict]] = defaultdict(list)
    for run in runs:
        groups[run["target"], run["xai"], run["configuration"]["official"]].append(run)
    return groups


def _values(runs: list[dict], setting: str, metric: str) -> list[float]:
    values = [run["settings"][setting].get(metric) for run in runs if setting in run["settings"]]
    return [value for value in values if value is not None]


def paper_tables(runs: list[dict]) -> list[str]:
    """Paper | ours | difference in the paper's standard deviations, cell by cell."""
    with PAPER.open(encoding="utf-8") as file:
        paper = {(row["target"], row["xai"], row["setting"], row["metric"]): (float(row["mean"]), float(row["std"]))
                 for row in csv.DictReader(file)}
    groups, lines = _group(runs), []
    for official in (False, True):
        mode = "authors' release repeated (`--official`)" if official else "default mode"
        measured = {key: group for key, group in groups.items() if key[2] == official}
        if official and not measured:
            lines += [f"### {mode}", "", "Not measured yet, in any cell.", ""]
            continue
        for name in TARGETS:
            rows = []
            for xai in EXPLAINERS:
                for setting in ("predmi", "expmi", "rnd", "ond", "gnime"):
                    row = [xai, setting]
                    for metric in METRICS:
                        row += _cell(paper, measured.get((name, xai, official), []), name, xai, setting, metric)
                    rows.append(row)
            head = ["explainer", "setting"]
            head += [f"{TITLES[metric]} {what}" for metric in METRICS for what in ("paper", "ours", "diff/std")]
            lines += [f"### {name}, {mode}", "", *_table(head, rows)]
    return lines


def _cell(paper: dict, runs: list[dict], name: str, xai: str, setting: str, metric: str) -> list[str]:
    known = paper.get((name, "" if setting == "predmi" else xai, setting, metric))
    theirs = f"{known[0]:.4f} ± {known[1]:.4f}" if known else "-"
    values = _values(runs, setting, metric)
    if not values:
        return [theirs, "not measured", ""]
    gap = f"{(statistics.mean(values) - known[0]) / known[1]:+.1f}" if known and known[1] else ""
    return [theirs, f"{_spread(values)} (n={len(values)})", gap]


def reduced_tables(runs: list[dict]) -> list[str]:
    """Every setting, mean ± std over seeds, with the configuration beside the numbers."""
    lines = []
    for (name, xai, official), group in sorted(_group(runs).items()):
        first = group[0]
        seeds = ", ".join(str(run["seed"]) for run in group)
        lines += [f"### {name}, {EXPLAINERS[xai].title}{', official' if official else ''}", "",
                  f"Seeds {seeds}. {_configuration(first)}", ""]
        settings = [setting for setting in SETTINGS if setting in first["settings"]]
        rows = []
        for setting in settings:
            rows.append([setting] + [_spread(_values(group, setting, metric), 2 if metric == "psnr" else 4)
                                     for metric in REDUCED_METRICS])
        lines += _table(["setting", *(TITLES[m] for m in REDUCED_METRICS)], rows)
        lines += [*_observations(group), ""]
    return lines


def _configuration(run: dict) -> str:
    configuration, n, hardware = run["configuration"], run["n"], run["hardware"]
    stages = "; ".join(f"{name}: at most {stage['epochs']} epochs, batch {stage['batch_size']}, Adam {stage['lr']:g}"
                       for name, stage in configuration["stages"].items())
    shape = "x".join(map(str, configuration["image"]))
    command = run["command"].replace(f" --seeds {run['seed']}", "")
    return (f"{n['images']} images of {shape}; attackers train on {n['train']} and are tested on {n['test']}. Width "
            f"{configuration['width']}, a = {configuration['weight']:g}. {stages}. {hardware['cpu']}, {hardware['device']}, "
            f"torch {run['versions']['torch']}, commit {run['commit']}. `{command} --seeds ...`")


def _observations(group: list[dict]) -> list[str]:
    """In how many runs the comparisons that matter came out as they should."""
    n, lines = len(group), []
    runs = [run["settings"] for run in group]
    have = set.intersection(*(set(run["settings"]) for run in group))
    if {"expmi", "rnd", "gnime"} <= have:
        held = sum(r["expmi"]["mse"] < r["rnd"]["mse"] < r["gnime"]["mse"] for r in runs)
        lines.append(f"- MSE expmi < rnd < gnime: {held} of {n} runs.")
        for metric in ("ssim", "tca"):
            held = sum(r["expmi"][metric] > r["rnd"][metric] > r["gnime"][metric] for r in runs)
            lines.append(f"- {TITLES[metric]} expmi > rnd > gnime: {held} of {n} runs.")
    if {"negative", "expmi"} <= have:
        leak = _spread([r["negative"]["residual_leakage"] for r in runs], 3)
        lines.append(f"- Control 1 - e: residual leakage {leak} (undefended: 1 by definition).")
    if "permutation" in have:
        plain, dense = (_spread([r["permutation"]["attackers"][kind] for r in runs]) for kind in ("expmi", "dense"))
        leak = _spread([r["permutation"]["residual_leakage"] for r in runs], 3)
        lines.append(f"- Control pixel permutation: MSE {plain} for the convolutional attacker, {dense} with a dense front "
                     f"end; the better one recovers {leak} of the leak.")
    if {"class-mean", "predmi"} <= have:
        ratio = [r["class-mean"]["mse"] / r["predmi"]["mse"] for r in runs]
        lines.append(f"- Control class mean: MSE {_spread(ratio, 3)} times PredMI's.")
    warned = sum(bool(run["warnings"]) for run in group)
    lines.append(f"- Runs with a warning that an attacker has not converged: {warned} of {n}.")
    return lines


def document(results: Path) -> str:
    """The whole of docs/results.md."""
    found = read_results(results)
    lines = [
        "# Results", "",
        "Written by `python -m gnime.reproduce --docs` from the files in `results/`, one per run. Mean ± standard deviation",
        "over seeds (victim, evaluation classifier, injector and attackers all reseeded). \"Not measured\": no run exists.", "",
        "## The paper's table", "",
        "Paper: Table 1 of Jeong et al., NeurIPS 2022, mean ± standard deviation of five runs. diff/std: ours minus the",
        "paper's, in the paper's standard deviations. Only runs at the paper's sizes and epochs appear here.", "",
        *paper_tables(found.get("paper", [])),
        "## Reduced configurations", "",
        "Smaller networks, fewer images and epochs, a larger learning rate: what a CPU can do. They show order and direction",
        "on real data and are not comparable with the paper's table.", "",
        *(reduced_tables(found.get("reduced", [])) or ["Not measured yet.", ""]),
    ]
    return "\n".join(lines).rstrip() + "\n"


def write_docs(results: Path) -> int:
    write_text(DOCS, document(results))
    print(f"{DOCS} written from {sum(map(len, read_results(results).values()))} runs")
    return 0


def check_docs(results: Path) -> int:
    """0 where docs/results.md is what the results say, else 1 with the difference."""
    committed = DOCS.read_text(encoding="utf-8") if DOCS.exists() else ""
    measured = document(results).splitlines()
    difference = list(difflib.unified_diff(committed.splitlines(), measured, str(DOCS), str(results), lineterm=""))
    for line in difference[:20]:
        print(line)
    if difference:
        print(f"{DOCS} differs from {results}/; run python -m gnime.reproduce --docs")
    return 1 if difference else 0
