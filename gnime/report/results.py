"""The results as a table for the terminal and as files for everything else."""

import csv
import io
import json
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

from ..config import PUBLISHED, Run, target
from ..evaluate import Result
from ..experiment import Experiment
from ..metrics.leakage import is_possible
from ..references import scale
from ..registry import METRICS, RESIDUAL, find_row, injector_entry, injector_weights, title
from ..store import write_text
from ..system import provenance
from . import examples
from .examples import Example
from .points import bits
from .verdict import judge

COLUMNS = {name: (metric.title, metric.form) for name, metric in METRICS.items()}
OF_MAPS = [name for name, metric in METRICS.items() if "protected" in metric.takes]


def paper_table(results: dict[str, Result]) -> str:
    """What the paper's attacker recovers, one line per row; "-" where a number has no meaning."""
    return _metrics({name: result.numbers for name, result in results.items()},
                    [name for name in COLUMNS if name not in OF_MAPS])


def usefulness_table(results: dict[str, Result], references: dict[str, dict]) -> str:
    """What is left of the explanations, beside clean and random maps; see `references`."""
    return _metrics({name: result.numbers for name, result in results.items() if find_row(name).defence}
                    | {name: scale(numbers, references) for name, numbers in references.items()}, OF_MAPS)


def _metrics(lines: dict[str, dict], metrics: list[str]) -> str:
    columns = {name: COLUMNS[name] for name in metrics}
    return aligned(["setting", *(heading for heading, _ in columns.values())], [
        [name, *(_number(numbers.get(column), form) for column, (_, form) in columns.items())]
        for name, numbers in lines.items()])


def verdict_table(results: dict[str, Result]) -> str:
    """What the best attacker recovers, and the share of the leak that is left."""
    lines = []
    for name, result in results.items():
        numbers, best = result.numbers, result.numbers["best"]
        interval, share = numbers.get(f"{RESIDUAL}_interval"), _share(numbers)
        lines.append([name, best["attacker"], _number(best["mse"]), _number(best["ssim"]), _number(numbers["mse_strongest"]),
                      share, "-" if interval is None else "[{:.1%}, {:.1%}]".format(*interval),
                      _number(numbers.get(f"{RESIDUAL}_exposed"), ".1%"),
                      f"{sum(result.costs.values()):.0f} s"])
    return aligned(["setting", "best attacker", "MSE", "SSIM", "MSE, best per image", "residual leakage", "95 % (test images)",
                     "most exposed 5 %", "cost"], lines)


def of_every_row(results: dict[str, Result]) -> list[str]:
    """What the names of the paper's attackers mean, below a table that names them."""
    return ["expmi is the paper's attacker, trained anew for each row on the maps that the row publishes; predmi sees the "
            "prediction alone"] if results.keys() - {"predmi"} else []


def beside_table(results: dict[str, Result]) -> list[str]:
    """What attackers recover that know more than the data, and what the best of the others does of the same images."""
    lines = []
    for row, result in results.items():
        for name, numbers in result.numbers["beside"].items():
            interval = numbers.get(f"{RESIDUAL}_interval")
            lines.append([row, name, str(numbers["n"]), _number(numbers["mse"]), _number(numbers["best_mse"]),
                          _number(numbers.get(RESIDUAL), ".1%"),
                          "-" if interval is None else "[{:.1%}, {:.1%}]".format(*interval),
                          _number(numbers.get(f"best_{RESIDUAL}"), ".1%")])
    head = ["setting", "attacker", "images", "MSE", "the best's", "residual leakage", "95 % (test images)", "the best's"]
    title = "attackers that know more than the data, beside the best that does not:"
    return [title, aligned(head, lines), ""] if lines else []


def single_answers(results: dict[str, Result]) -> list[str]:
    """A line for each row whose noise is drawn: what it leaks holds for one answer to each image."""
    return [f"{name}: its residual leakage holds for one answer to each image, the same whenever it is asked; a service that "
            "draws anew for each answer leaks more" for name in results if find_row(name).draws]


def skipped(results: dict[str, Result]) -> list[str]:
    """A line for each row that some of the attackers cannot attack, with the reason."""
    return [f"{name}: not attacked by {attacker}: {reason}" for name, result in results.items()
            for attacker, reason in result.numbers["not_applicable"].items()]


def _number(value: float | None, form: str = ".4f") -> str:
    return "-" if value is None else format(value, form)


def _share(numbers: dict) -> str:
    """Residual leakage; no percentage where it cannot be one, or the undefended leak is too small for an interval."""
    residual, interval = numbers[RESIDUAL], numbers.get(f"{RESIDUAL}_interval", ())
    if residual is None or interval is None:
        return "-"
    return _number(residual, ".1%") if is_possible(residual, interval) else "not converged"


def aligned(head: list[str], lines: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) if i else cell.ljust(width)
                               for i, (cell, width) in enumerate(zip(line, widths, strict=True))) for line in (head, *lines))


def not_measured(lacking: dict[str, str]) -> list[str]:
    """A line for each reason for which a run that lacks these inputs (see `Experiment.lacking`) does not measure metrics."""
    titles: dict[str, list[str]] = {}
    for metric in METRICS.values():
        if reason := next((lacking[what] for what in metric.takes if what in lacking), ""):
            titles.setdefault(reason, []).append(metric.title)
    return [f"not measured: {', '.join(names)}, because {reason}" for reason, names in titles.items()]


def bounds(results: dict[str, Result], published: str = "logits") -> list[str]:
    """A line for each row whose maps are known to say no more than so many bits. Rounded up: it is a bound."""
    return [f"{name}: at most {bits(bound)} {PUBLISHED[published]}"
            for name in results if (bound := find_row(name).bits) is not None]


CONFIG = ("epochs", "batch_size", "lr", "betas", "eps", "patience")


def _as_trained(configuration: dict, networks: dict) -> dict:
    """The configuration with classifiers' and injector's training as their files have it: other commands made them."""
    stages = configuration["stages"]
    classifier = "victim" if "victim" in networks else "evaluation"
    named = [("classifier", classifier), ("injector", _an_injector(networks))]
    if _otherwise(networks.get("victim", {}), networks.get("evaluation", {})):  # other commands may have made the two
        named.append(("evaluation classifier", "evaluation"))
    for kind, name in named:
        if name not in networks:
            if kind == "classifier":
                stages[kind] = None  # the run has none
            continue
        found = networks[name]
        if "stage" not in found:  # somebody else's
            stages[kind] = None
            continue
        asked = stages.get(kind, stages["classifier"])
        epochs = max(asked["epochs"], found["epochs"]) if found.get("early") else found["epochs"]
        stages[kind] = dict(zip(CONFIG, [epochs, *found["stage"]], strict=True))
    if "injector" in networks:  # of the target's weight; others are in their rows' names
        configuration["weight"] = networks["injector"].get("weight")
    return configuration


def _otherwise(one: dict, other: dict) -> bool:
    """Whether two networks of ours had another training. One that stopped early says nothing of the epochs it was given."""
    if "stage" not in one or "stage" not in other:
        return False
    told = not (one.get("early") or other.get("early"))
    return one["stage"] != other["stage"] or told and one["epochs"] != other["epochs"]


def _an_injector(networks: dict) -> str:
    """The entry of the injector of the target's weight, else of another one; empty where the run used none."""
    return next((name for name in ("injector", *networks) if name in networks and name.endswith("injector")), "")


def _commands(run: Run, networks: dict) -> list[str]:
    """The commands that repeat the run, with the epochs, batch and learning rate that classifiers and injectors had."""
    made = [run.command("eval")]
    for script, kind, name in (("train", "injector", _an_injector(networks)), ("prepare", "classifier", "evaluation")):
        found, usual = networks.get(name, {}), target(run.target.name, run.target.size)
        if kind == "injector" and not found:
            continue
        had = dict(zip(CONFIG, [found.get("epochs"), *found.get("stage", ())], strict=False))
        config = getattr(usual, kind)
        if found.get("early"):  # it would stop there again
            had["epochs"] = config.epochs
        flags = {key: had[key] for key in ("epochs", "batch_size", "lr") if had.get(key) not in (None, getattr(config, key))}
        bare = replace(run, script=script, rows=(), attackers=(), precision=None, jobs=1, epochs=None, batch_size=None, lr=None,
                       weights=run.weights or injector_weights(run.rows, run.target.inversion_weight))
        made.insert(0, replace(bare, **flags).command(script))
    return made


SOMEWHERE = Path("/path/to")  # in commands that are shown: a folder of the machine that ran them


def portable(run: Run, folder: Path = Path()) -> Run:
    """The run with the last part of absolute paths, in `folder`: a result names no place of one machine."""
    def last(path: str | Path) -> Path:
        return folder / Path(path).name if Path(path).is_absolute() else Path(path)

    root, datasets = last(run.root), last(run.datasets)
    files = tuple((flag, str(last(spec))) for flag, spec in run.files)
    return replace(run, root=root, datasets=root / "datasets" if run.datasets == run.root / "datasets" else datasets,
                   victim=str(last(run.victim)) if run.victim else "", files=files)


def networks_of(experiment: Experiment, results: dict[str, Result]) -> dict[str, dict]:
    """The records of all networks that the results come from: classifiers, injectors, defences, attackers."""
    networks = {name: classifier.summary() for name, classifier in experiment.classifiers.items()}
    usual = experiment.run.target.inversion_weight
    for weight in injector_weights(results, usual):
        networks[injector_entry(weight, usual)] = experiment.injector_of(weight).summary()
    networks |= {f"{name} defence": experiment.fitted_defence(find_row(name)).summary() for name in results
                 if "fitted" in find_row(name).needs}
    return networks | {name: result.attacker for name, result in results.items() if result.attacker}


def write(experiment: Experiment, results: dict[str, Result], references: dict, warnings: list[str], duration: str,
          chosen: tuple[str, list[Example]]) -> dict:
    """Writes `results.json`, with all that is needed to repeat the run, `results.csv` and `per_image.csv`. Returns the first.

    Its "references" are the numbers of `references.references` as measured, not scaled. chosen: the rule of the pictures and
    the images; see `examples.choose`.
    """
    data, device = experiment.data, experiment.device
    run = replace(portable(experiment.run), drop_duplicates=data.dropped)
    shown = replace(portable(experiment.run, SOMEWHERE), drop_duplicates=data.dropped)
    networks = networks_of(experiment, results)
    content = {
        "target": run.target.name, "xai": run.xai, "seed": run.seed,
        "source": data.source,
        "n": {"images": len(data.images), "test": len(data.splits.test), "train": len(data.splits.train)},
        "configuration": _as_trained(run.describe(), networks), "precision": device.precision,
        "command": shown.command("eval"), "commands": _commands(shown, networks),
        "settings": {name: {"title": title(find_row(name)), "bits": find_row(name).bits,
                            "answers": 1 if find_row(name).draws else None, **result.numbers}
                     for name, result in results.items()},
        "references": references, "networks": networks, "costs": {name: result.costs for name, result in results.items()},
        "pictures": {"rule": chosen[0], "images": [example.plain() for example in chosen[1]]},
        **experiment.about, "warnings": warnings, "duration": duration, **provenance(device.describe()),
    }
    content["verdict"] = judge(content).plain()
    write_text(experiment.paths.results, json.dumps(content, indent=1, allow_nan=False) + "\n")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    best, leak = ("attacker", "mse", "ssim"), (RESIDUAL, f"{RESIDUAL}_exposed")
    writer.writerow(["setting", *COLUMNS, *(f"best_{name}" for name in best), *leak])
    for name, result in results.items():
        numbers = result.numbers
        writer.writerow([name, *(numbers.get(column) for column in COLUMNS), *(numbers["best"][column] for column in best),
                         *(numbers.get(column) for column in leak)])
    write_text(experiment.paths.table, text.getvalue())
    _write_per_image(experiment, results)
    return content


def _write_per_image(experiment: Experiment, results: dict[str, Result]) -> None:
    """`per_image.csv`: of each test image its file or number, its class, and the MSE of every row's best attacker."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "class", *results])
    errors = [result.errors.tolist() for result in results.values()]
    for first in zip_longest(examples.names(experiment), examples.labels(experiment), *errors):
        writer.writerow(first)
    write_text(experiment.paths.per_image, text.getvalue())
