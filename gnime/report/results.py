"""The results as a table for the terminal and as files for everything else."""

import csv
import io
import json
import math

from ..evaluate import Result
from ..experiment import Experiment
from ..registry import METRICS, RESIDUAL, find_row, title
from ..store import write_text
from ..system import provenance

COLUMNS = {name: (metric.title, metric.form) for name, metric in METRICS.items()} | {RESIDUAL: ("residual leakage", ".1%")}


def table(results: dict[str, Result]) -> str:
    """One line per row; "-" where a number has no meaning."""
    lines = [["setting", *(heading for heading, _ in COLUMNS.values())]]
    for name, result in results.items():
        numbers = ((result.numbers.get(column), form) for column, (_, form) in COLUMNS.items())
        lines.append([name, *("-" if value is None else format(value, form) for value, form in numbers)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) if i else cell.ljust(width)
                               for i, (cell, width) in enumerate(zip(line, widths, strict=True))) for line in lines)


def bounds(results: dict[str, Result]) -> list[str]:
    """A line for each row whose maps are known to say no more than so many bits. Rounded up: it is a bound."""
    known = {name: bits for name in results if (bits := find_row(name).bits) is not None}
    return [f"{name}: at most {math.ceil(100 * bits) / 100:g} bit{'' if bits == 1 else 's'} beyond the prediction"
            for name, bits in known.items()]


CONFIG = ("epochs", "batch_size", "lr", "betas", "eps", "patience")


def _as_trained(configuration: dict, networks: dict) -> dict:
    """The configuration with classifiers' and injector's training as their files have it: other commands made them."""
    stages = configuration["stages"]
    for kind, name in (("classifier", "victim"), ("injector", "injector")):
        if name not in networks:
            continue
        found = networks[name]
        if "stage" not in found:  # somebody else's
            stages[kind] = None
            continue
        epochs = max(stages[kind]["epochs"], found["epochs"]) if found.get("early") else found["epochs"]
        stages[kind] = dict(zip(CONFIG, [epochs, *found["stage"]], strict=True))
    if "injector" in networks:
        configuration["weight"] = networks["injector"].get("weight")
    return configuration


def write(experiment: Experiment, results: dict[str, Result], warnings: list[str], duration: str) -> dict:
    """Writes `results.json`, with all that is needed to repeat the run, and the table as `results.csv`. Returns the former."""
    run, data, device = experiment.run, experiment.data, experiment.device
    networks = {"victim": experiment.victim.summary(), "evaluation": experiment.evaluation_classifier.summary()}
    if any(find_row(name).needs_injector for name in results):
        networks["injector"] = experiment.trained_injector.summary()
    networks |= {f"{name} defence": experiment.fitted_defence(find_row(name)).summary() for name in results
                 if "fitted" in find_row(name).needs}
    networks |= {name: result.attacker for name, result in results.items() if result.attacker}
    content = {
        "target": run.target.name, "xai": run.xai, "seed": run.seed,
        "n": {"images": len(data.images), "test": len(data.splits.test), "train": len(data.splits.train)},
        "configuration": _as_trained(run.describe(), networks), "precision": device.precision, "command": run.command("eval"),
        "settings": {name: {"title": title(find_row(name)), "bits": find_row(name).bits, **result.numbers}
                     for name, result in results.items()},
        "networks": networks, "warnings": warnings, "duration": duration, **provenance(device.describe()),
    }
    write_text(experiment.paths.results, json.dumps(content, indent=1, allow_nan=False) + "\n")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["setting", *COLUMNS])
    for name, result in results.items():
        writer.writerow([name] + [result.numbers.get(column) for column in COLUMNS])
    write_text(experiment.paths.table, text.getvalue())
    return content
