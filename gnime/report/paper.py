"""The text of docs/results.md from runs: the paper's numbers beside ours, and what no run has measured. Pure."""

import csv
import itertools
import statistics
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from ..config import OFFICIAL
from ..registry import EXPLAINERS, METRICS, PAPER_EXPLAINERS, PAPER_ROWS, RESIDUAL, in_order
from .defences import defence_tables
from .groups import DEFAULT, RELEASE, comparable, group, settings_of, values, whole_modes

PAPER = Path("docs/table1.csv")
PAPER_METRICS = ("mse", "ssim", "tca", "deepsim")  # in every one of the paper's tables
TITLES = {name: metric.title for name, metric in METRICS.items()} | {RESIDUAL: "residual leakage"}
SIZES = {"paper": "the paper's sizes", "reduced": "reduced"}  # of presets, in headings
TARGETS = ("mnist", "cifar10", "celeba")  # of the paper's table; its ImageNet-100 is not a target of ours


def read_paper() -> dict[tuple[str, str, str, str], tuple[float, float]]:
    """(target, explainer, setting, metric) -> the paper's (mean, standard deviation); PredMI is the same for all explainers."""
    with PAPER.open(encoding="utf-8") as file:
        rows = [(row, (float(row["mean"]), float(row["std"]))) for row in csv.DictReader(file)]
    return {(row["target"], xai, row["setting"], row["metric"]): numbers for row, numbers in rows
            for xai in ([row["xai"]] if row["xai"] else PAPER_EXPLAINERS)}


def _spread(values: Iterable[float | None], digits: int = 4) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    text = f"{statistics.mean(known):.{digits}f}"
    return f"{text} ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else text


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(row) + " |" for row in rows), ""]


def _metrics(runs: list[dict]) -> list[str]:
    """Metrics that any of the runs has, in the order of the registry: a new metric adds no column to older runs' tables."""
    return [metric for metric in TITLES if any(metric in numbers for run in runs for numbers in run["settings"].values())]


def paper_tables(runs: list[dict], unmeasured: bool = True) -> list[str]:
    """Paper | ours | difference in the paper's standard deviations, cell by cell; of targets without a run if `unmeasured`."""
    paper, groups, lines = read_paper(), group(runs), []
    for official in (DEFAULT, RELEASE):
        mode = "authors' release repeated (`--official`)" if official else "default mode"
        measured = {key: seeds for key, seeds in groups.items() if key[2] == official}
        if official and not measured:
            lines += [f"### {mode}", "", "Not measured yet, in any cell.", ""] if unmeasured else []
            continue
        for name in [name for name in TARGETS if unmeasured or name in {key[0] for key in measured}]:
            rows = []
            for xai, setting in itertools.product(PAPER_EXPLAINERS, PAPER_ROWS):
                row = [xai, setting]
                for metric in PAPER_METRICS:
                    row += _cell(paper, measured.get((name, xai, official), []), name, xai, setting, metric)
                rows.append(row)
            head = ["explainer", "setting"]
            head += [f"{TITLES[metric]} {what}" for metric in PAPER_METRICS for what in ("paper", "ours", "diff/std")]
            lines += [f"### {name}, {mode}", "", *_table(head, rows)]
    return lines


def _cell(paper: dict, runs: list[dict], name: str, xai: str, setting: str, metric: str) -> list[str]:
    known = paper.get((name, xai, setting, metric))
    theirs = f"{known[0]:.4f} ± {known[1]:.4f}" if known else "-"
    ours = values(runs, setting, metric)
    if not ours:
        return [theirs, "not measured", ""]
    gap = f"{(statistics.mean(ours) - known[0]) / known[1]:+.1f}" if known and known[1] else ""
    return [theirs, f"{_spread(ours)} (n={len(ours)})", gap]


def reduced_tables(runs: list[dict]) -> list[str]:
    """Every setting, mean ± std over seeds and the spread over images, with the configuration beside the numbers."""
    lines = []
    for (name, xai, official), seeds in sorted(whole_modes(runs).items()):
        lines += [f"### {name}, {EXPLAINERS[xai].title}{', official' if official else ''}", "",
                  f"Seeds {', '.join(str(run['seed']) for run in seeds)}. {_configuration(seeds)}", ""]
        rows, spreads, metrics = [], [], _metrics(seeds)
        for setting in settings_of(seeds):
            n = len(values(seeds, setting, "mse"))
            label = setting if n == len(seeds) else f"{setting} (n={n})"
            rows.append([label] + [_spread(values(seeds, setting, metric), 2 if metric == "psnr" else 4)
                                   for metric in metrics])
            spreads.append([label, *_over_images(seeds, setting)])
        lines += _table(["setting", *(TITLES[metric] for metric in metrics)], rows)
        if len(alike := comparable(seeds)) < len(seeds):
            lines += [f"Residual leakage: of seed {', '.join(str(run['seed']) for run in alike)}, with the attackers "
                      f"{', '.join(alike[0]['configuration']['attackers'])}; the other seeds had fewer.", ""]
        lines += _table(["setting", "MSE over images: median [5 %, 95 %]", "mean: 95 % interval"], spreads)
        lines += [*_observations(seeds), ""]
    return lines


def _over_images(runs: list[dict], setting: str) -> list[str]:
    """Quantiles of the test images' MSE, and the bootstrap interval of its mean: means over seeds."""
    quantiles, interval = ([statistics.mean(numbers) for numbers in zip(*values(runs, setting, metric), strict=True)]
                           for metric in ("mse_quantiles", "mse_interval"))
    if not quantiles or not interval:
        return ["-", "-"]
    low, _, median, _, high = quantiles
    return [f"{median:.4f} [{low:.4f}, {high:.4f}]", f"[{interval[0]:.4f}, {interval[1]:.4f}]"]


def official_tables(runs: list[dict]) -> list[str]:
    """Default mode against `--official`, seed by seed, over the seeds that both have; then its choices one by one."""
    groups, lines = group(runs), []
    for name, xai in sorted({key[:2] for key in groups}):
        default, official = ({run["seed"]: run["settings"] for run in groups.get((name, xai, mode), [])}
                             for mode in (DEFAULT, RELEASE))
        rows = []
        for setting in in_order(set().union(*default.values()) & set().union(*official.values())):
            both = [(default[seed][setting], official[seed][setting]) for seed in sorted(default.keys() & official.keys())
                    if setting in default[seed] and setting in official[seed]]
            if both:
                percent = _spread((100 * (o["mse"] / d["mse"] - 1) for d, o in both), 1)
                mse, ssim = ([_spread(side[metric] for side in sides) for sides in zip(*both, strict=True)]
                             for metric in ("mse", "ssim"))
                rows.append([setting, *mse, percent, *ssim, str(len(both))])
        if rows:
            head = ["setting", "MSE default", "MSE official", "difference, %", "SSIM default", "SSIM official", "n"]
            lines += [f"### {name}, {EXPLAINERS[xai].title}: default mode against `--official`", "", *_table(head, rows),
                      _authors_choices(name, xai), ""]
        lines += _one_by_one(name, xai, {key[2]: seeds for key, seeds in groups.items() if key[:2] == (name, xai)})
    return lines


def _one_by_one(name: str, xai: str, groups: dict[tuple, list[dict]]) -> list[str]:
    """What each of the authors' choices that was repeated alone does to each setting's MSE, and what all do together."""
    alone = [run for official, runs in groups.items() if official not in (DEFAULT, RELEASE) for run in runs]
    if not alone:
        return []
    default = {run["seed"]: run["settings"] for run in groups.get(DEFAULT, [])}
    settings, rows = settings_of(alone), []
    for official in sorted(groups.keys() - {DEFAULT}, key=lambda these: (len(these), *map(RELEASE.index, these))):
        row = ["all" if official == RELEASE else " ".join(official)]
        for setting in settings:
            change = [100 * (run["settings"][setting]["mse"] / default[run["seed"]][setting]["mse"] - 1)
                      for run in groups[official] if setting in run["settings"] and setting in default.get(run["seed"], ())]
            row.append(f"{_spread(change, 1)} (n={len(change)})" if change else "not measured")
        rows.append(row)
    sides = {"single choices": alone, "default": groups.get(DEFAULT, []), "all": groups.get(RELEASE, [])}
    made = "; ".join("{}: {}, commit {}".format(side, *reversed(_made_on(runs))) for side, runs in sides.items() if runs)
    return [f"### {name}, {EXPLAINERS[xai].title}: the authors' choices one by one", "",
            "MSE against the default mode's of the same seed, difference in %. The victim is trained alike but for optimiser's "
            "epsilon; another commit or machine can make it another network, whose spread the differences then hold too.", "",
            *_table(["choice", *settings], rows),
            "; ".join(f"{choice}: {what}" for choice, what in OFFICIAL.items()) + ".", "", f"Measured: {made}.", ""]


def _authors_choices(name: str, xai: str) -> str:
    """Which choices of the authors' release can have acted on which rows (`config.official_config`)."""
    both = "predmi and expmi also twice the batch and betas (0.5, 0.999), rnd twice the batch"
    batches = both if name in ("mnist", "cifar10") else "predmi also betas (0.5, 0.999)"
    pooled = "; all but predmi also Grad-CAM's channel weights averaged over a batch" if xai == "gradcam" else ""
    return ("Can have acted on every row: one fixed order for attackers, the test set as validation set (the "
            f"default's validation images are trained on), Adam's epsilon. On some: {batches}{pooled}; gnime also the "
            "standardised clean explanation in the injector's training, and with it rnd, rnd-4 and ond, whose distortion "
            "is gnime's.")


def _made_on(runs: list[dict]) -> tuple[str, str]:
    """Their commits, and those that trained their networks where those say so; and their machines."""
    found = [str(made["commit"]) for run in runs for made in (run, *run.get("networks", {}).values()) if "commit" in made]
    commits = ", ".join(dict.fromkeys(found))
    return commits, "; or ".join(dict.fromkeys(f"{run['hardware']['cpu']}, {run['hardware']['device']}" for run in runs))


def _configuration(runs: list[dict]) -> str:
    run = runs[0]
    commits, hardware = _made_on(runs)
    configuration, n = run["configuration"], run["n"]
    stages = "; ".join(f"{name}: " + (f"at most {stage['epochs']} epochs, batch {stage['batch_size']}, Adam {stage['lr']:g}"
                                      if stage else "not trained here") for name, stage in configuration["stages"].items())
    weight = "not known" if configuration["weight"] is None else format(configuration["weight"], "g")
    shape, command = "x".join(map(str, configuration["image"])), run["command"].replace(f" --seeds {run['seed']}", "")
    return (f"{n['images']} images of {shape}; attackers train on {n['train']} and are tested on {n['test']}. Width "
            f"{configuration['width']}, a = {weight}. {stages}. {hardware}, "
            f"torch {run['versions']['torch']}, commit {commits}. `{command} --seeds ...`")


def _observations(runs: list[dict]) -> list[str]:
    """In how many of the runs that have the settings the comparisons that matter came out as they should."""

    def having(*names: str) -> list[dict]:
        return [run["settings"] for run in runs if run["settings"].keys() >= {*names}]

    def held(*order: str, metric: str = "mse") -> str:
        """Runs whose settings rise strictly in this order."""
        found = having(*order)
        rising = sum(all(r[low][metric] < r[high][metric] for low, high in itertools.pairwise(order)) for r in found)
        return f"{rising} of {len(found)} runs."

    def ratio(name: str, other: str) -> str:
        return _spread([r[name]["mse"] / r[other]["mse"] for r in having(name, other)], 3)

    lines = []
    if having("expmi", "rnd", "gnime"):
        lines.append(f"- MSE expmi < rnd < gnime: {held('expmi', 'rnd', 'gnime')}")
        lines += [f"- {TITLES[metric]} expmi > rnd > gnime: {held('gnime', 'rnd', 'expmi', metric=metric)}"
                  for metric in ("ssim", "tca")]
    if having("rnd-0", "expmi"):
        lines.append(f"- Control no noise: MSE {ratio('rnd-0', 'expmi')} times expmi's (the same data: 1 but for first "
                     "weights and order).")
    if having("rnd-4", "rnd"):
        lines.append(f"- Control noise of 4 times the distortion, MSE rnd < rnd-4: {held('rnd', 'rnd-4')}")
    for name, what, kind, how in (("negative", "1 - e", "centred", "that subtracts the mean of what it sees"),
                                  ("permutation", "pixel permutation", "dense", "with a dense front end")):
        if found := having(name):
            plain, other = (_spread(_mse_by(r[name], attacker) for r in found) for attacker in ("expmi", kind))
            leak = _spread((r[name]["residual_leakage"] for r in found), 3)
            lines.append(f"- Control {what}: MSE {plain} for the paper's attacker, {other} for one {how}; the one with the "
                         f"better validation error recovers {leak} of the leak.")
    if having("class-mean", "predmi"):
        than_blank = f", {ratio('class-mean', 'blank')} times the blank one's" if having("class-mean", "blank") else ""
        lines.append(f"- Control class mean: MSE {ratio('class-mean', 'predmi')} times PredMI's{than_blank}. Of the single "
                     "image it says nothing, of the class what the defender's images tell.")
    if having("blank", "predmi"):
        lines.append(f"- Control blank explanation: MSE {ratio('blank', 'predmi')} times PredMI's (the same to see: what "
                     "differs is what the two networks make of it).")
    return [*lines, _warnings(runs)]


def _mse_by(numbers: dict, attacker: str) -> float | None:
    """Of one attacker of a row; results of earlier versions have a number in place of a record."""
    found = numbers.get("attackers", {}).get(attacker)
    return found["mse"] if isinstance(found, dict) else found


def _warnings(runs: list[dict]) -> str:
    """How many runs warn of themselves, and of which settings (`evaluate.compare`: "<setting>: ...")."""
    counts = Counter(warning.split(":")[0] for run in runs for warning in run["warnings"])
    names = ", ".join(f"{setting} {counts[setting]}" for setting in settings_of(runs) if counts[setting])
    return (f"- Runs with a warning: {sum(bool(run['warnings']) for run in runs)} of {len(runs)}"
            + (f" (warnings: {names})." if names else "."))


def document(found: dict[str, list[dict]]) -> str:
    """The whole of docs/results.md from preset -> runs."""
    paper, reduced = found.get("paper", []), found.get("reduced", [])
    return "\n".join([
        "# Results", "",
        "Written by `python -m gnime.reproduce --docs` from the files in `results/`, one per run. Mean ± standard deviation",
        "over seeds (victim, evaluation classifier, injector and attackers all reseeded). \"Not measured\": no run exists.", "",
        "Residual leakage: what the best attacker recovers beyond the prediction; 0 % nothing, 100 % as much as from",
        "undefended maps. Pearson: correlation of the published maps with the true ones. A row is dominated if another one is",
        "better in one of the two beyond both intervals over test images, and not worse in the other beyond them. Maps of 0",
        "bits leak nothing, so no row counts as better there. Named are those that dominate a row with every seed. Hollow",
        "points are dominated in every seed, by the same row or another.", "",
        f"## The paper's table{_in_precision(paper)}", "",
        "Paper: Table 1 of Jeong et al., NeurIPS 2022, mean ± standard deviation of five runs. diff/std: ours minus the",
        "paper's, in the paper's standard deviations. Only runs at the paper's sizes and epochs appear here.", "",
        *_chart("paper", paper), *paper_tables(paper),
        *defence_tables(paper, SIZES["paper"] + _in_precision(paper)), *official_tables(paper),
        *_other_precisions(found, "paper", "The paper's table", partial(paper_tables, unmeasured=False)),
        f"## Reduced configurations{_in_precision(reduced)}", "",
        "Smaller networks, fewer images and epochs, a larger learning rate: what a CPU can do. They show order and direction",
        "on real data and are not comparable with the paper's table. Over images: quantiles of the test images' MSE and the",
        "bootstrap interval of their mean, each averaged over seeds.", "",
        *_chart("reduced", reduced), *defence_tables(reduced, SIZES["reduced"] + _in_precision(reduced), pictures=True),
        *(reduced_tables(reduced) or ["Not measured yet.", ""]), *official_tables(reduced),
        *_other_precisions(found, "reduced", "Reduced configurations", reduced_tables),
    ]).rstrip() + "\n"


def _in_precision(runs: list[dict]) -> str:
    """Runs in one table have one precision; see `docs.read_results`."""
    return f", {runs[0]['precision']}" if runs else ""


def _other_precisions(found: dict[str, list[dict]], preset: str, heading: str, tables: Callable) -> list[str]:
    lines = []
    for name, runs in found.items():
        if name.startswith(f"{preset}_"):
            lines += [f"## {heading}{_in_precision(runs)}", "", *_chart(name, runs), *tables(runs),
                      *defence_tables(runs, SIZES[preset] + _in_precision(runs))]
    return lines


def _chart(preset: str, runs: list[dict]) -> list[str]:
    text = "Mean squared error of what each setting's attacker recovers, by target and explainer"
    return [f"![{text}](figures/bars_{preset}.png)", ""] if whole_modes(runs) else []
