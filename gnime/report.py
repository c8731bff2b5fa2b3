"""The results as a table for the terminal and as files for everything else."""

import csv
import io
import json

from .artifacts import Paths, write_text
from .config import Run
from .data import Data
from .evaluation import Outcome
from .runtime import Device, provenance
from .settings import SETTINGS

COLUMNS = {"mse": "MSE", "psnr": "PSNR", "ssim": "SSIM", "accuracy": "accuracy", "tca": "TCA", "deepsim": "DeePSiM",
           "distortion": "distortion", "residual_leakage": "residual leakage"}


def table(outcomes: dict[str, Outcome]) -> str:
    """One line per setting; "-" where a number has no meaning."""
    lines = [["setting", *COLUMNS.values()]]
    for name, outcome in outcomes.items():
        lines.append([name] + [_number(column, outcome.numbers.get(column)) for column in COLUMNS])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) if i else cell.ljust(width)
                               for i, (cell, width) in enumerate(zip(line, widths, strict=True))) for line in lines)


def _number(column: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if column == "psnr" else f"{value:.1%}" if column == "residual_leakage" else f"{value:.4f}"


STAGE = ("epochs", "batch_size", "lr", "betas", "eps", "patience")


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
        stages[kind] = dict(zip(STAGE, [epochs, *found["stage"]], strict=True))
    if "injector" in networks:
        configuration["weight"] = networks["injector"].get("weight")
    return configuration


def write(run: Run, paths: Paths, device: Device, data: Data, outcomes: dict[str, Outcome], networks: dict,
          warnings: list[str], duration: str) -> None:
    """`results.json` with all that is needed to repeat the run, and the table as `results.csv`."""
    results = {
        "target": run.target.name, "xai": run.xai, "seed": run.seed,
        "n": {"images": len(data.images), "test": len(data.splits.test), "train": len(data.splits.train)},
        "configuration": _as_trained(run.describe(), networks), "precision": device.precision, "command": run.command("eval"),
        "settings": {name: {"title": SETTINGS[name].title, **outcome.numbers} for name, outcome in outcomes.items()},
        "networks": networks, "warnings": warnings, "duration": duration, **provenance(device.describe()),
    }
    write_text(paths.figures / "results.json", json.dumps(results, indent=1, allow_nan=False) + "\n")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["setting", *COLUMNS])
    for name, outcome in outcomes.items():
        writer.writerow([name] + [outcome.numbers.get(column) for column in COLUMNS])
    write_text(paths.figures / "results.csv", text.getvalue())
