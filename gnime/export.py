"""A defence as a file that a service runs: `python -m gnime.export --target digits --xai lrp --setting gnime OUT.onnx`."""

import json
import sys
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from .cli import guarded, own_files
from .config import OFFICIAL, TARGETS, Run, target
from .errors import GnimeError, UsageError
from .flags import Formatter, Parser, add_layer, add_published
from .flagtypes import maps_name, own_file, row_name, target_name
from .ownentries import register
from .ownfiles import is_own, own_name
from .paths import Paths
from .registry import EXPLAINERS, RESIDUAL, Row, find_row, injector_entry, takes_layer

PROGRAM = "python -m gnime.export"
FORMATS = (".onnx", ".pt2")
# flags of the scripts that files of a root tell, and those that they do not
TOLD = {"seed": "--seed", "limit": "--limit", "size": "--image-size", "width": "--width", "official": "--official"}
NOT_TOLD = ("--datasets", "--epochs", "--batch-size", "--lr", "--precision")


def parser() -> Parser:
    flags = Parser(PROGRAM, formatter_class=Formatter, allow_abbrev=False, description=(
        "Write a defence as a program: clean explanation and prediction in, protected explanation out, for any number of "
        "images. Its metadata say what it protects and how much it leaks."))
    flags.add_argument("--target", type=target_name, default="digits", metavar="NAME",
                       help=f"{', '.join(TARGETS)}, or any folder of class folders")
    flags.add_argument("--victim", type=own_file, metavar="FILE.py:NAME", help="as the scripts had it; it is not run")
    flags.add_argument("--xai", type=maps_name, default="lrp", metavar="XAI",
                       help=f"explainer: {', '.join(EXPLAINERS)}, or FILE.py:NAME or a record's name as the scripts had it; it "
                            "is not run")
    add_layer(flags)
    flags.add_argument("--setting", type=row_name, required=True, metavar="SETTING",
                       help="gnime, cond-mean, prototypes-K or cond-prototypes-K")
    add_published(flags)
    flags.add_argument("--root", type=Path, default=Path(), help="folder of models/, aux/ and figures/")
    flags.add_argument("out", type=Path, metavar="OUT", help="a file .onnx (onnxruntime runs it) or .pt2 (PyTorch runs it)")
    return flags


def export(run: Run, row: Row, out: Path) -> list[str]:
    """Writes the row's defence to `out`, whole or not at all. Returns warnings about the evaluation in its metadata.

    Raises:
        UsageError: the row's maps do not follow from explanation and prediction, or `out` has another suffix.
        GnimeError: the defence is missing or of an older version, a package is missing, or `out` cannot be written.
    """
    if not {"injector", "fitted"} & set(row.needs):
        raise UsageError(f"--setting {row.name}: cannot be exported; give gnime, cond-mean, prototypes-K or cond-prototypes-K")
    if out.suffix not in FORMATS:
        raise UsageError(f"OUT {out}: give a name that ends with {' or '.join(FORMATS)}")
    if out.is_dir():
        raise UsageError(f"OUT {out}: is a folder")
    from . import formats  # these import torch
    from .protected import load_defence
    from .store import writing
    from .system import commit

    formats.require_packages(out.suffix)
    run, paths = replace(run, rows=("predmi", "expmi", row.name)), Paths(run)  # the rows that residual leakage needs
    path = paths.injector(row.weight(run.target.inversion_weight)) if "injector" in row.needs else paths.defence(row.name)
    if not path.exists():
        script = "train" if "injector" in row.needs else "eval"
        raise GnimeError(f"{path} is missing; make it with: {command(run, script)}")
    network, record = load_defence(path)
    leakage, notes = evaluation(run, row, record["digest"])
    metadata = {"setting": row.name, "bits": row.bits, **record, **leakage,
                "date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "commit": commit()}
    content = formats.convert(network, _example(network, record), out.suffix, metadata)
    with writing(out) as part:
        part.write_bytes(content)
    return notes


def command(run: Run, script: str) -> str:
    """The command of a script, with the flags that the files of the root tell, and the names of those that they do not."""
    told = _told(Paths(run))
    others = [*(flag for name, flag in TOLD.items() if name not in told), *NOT_TOLD]
    others += ["--attackers"] if script == "eval" else []
    sizes = {name: told.pop(name) for name in ("width", "size") if name in told}
    run = replace(run, target=replace(run.target, **sizes), **told)
    return f"{run.command(script)} (and {', '.join(others)}, where the run had them)"


def _told(paths: Paths) -> dict:
    """What the results, or else the images, say of the run's flags, by the names in `TOLD`. Nothing where they are damaged."""
    from . import arrays

    try:
        found = json.loads(paths.results.read_text(encoding="utf-8"))["configuration"]
        limit = None if found["limit"] is None else int(found["limit"])
        return {"seed": int(found["seed"]), "limit": limit, "size": int(found["image"][1]), "width": int(found["width"]),
                "official": tuple(name for name in OFFICIAL if name in found["official"])}
    except (OSError, ValueError, LookupError, TypeError):
        pass
    try:
        labels = arrays.load(paths.labels)
        n, record = len(labels.rows), labels.record or {}
        return {"seed": record["seed"], "limit": n if n < record["available"] else None, "size": record["image_size"]}
    except (GnimeError, OSError, LookupError, TypeError):
        return {}


def evaluation(run: Run, row: Row, digest: str) -> tuple[dict, list[str]]:
    """What `results.json` says of the row's leakage, and notes where it says nothing of this defence or warns of this row.

    run: its rows are those of the command that measures the leakage.
    digest: of the defence's file. The numbers are None where the evaluation is missing or of another file.
    """
    unknown: dict = {RESIDUAL: None, "interval": None, "best": None, "attackers": None, "evaluated": None, "warnings": []}
    path, remedy = Paths(run).results, command(run, "eval")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found, networks = content["settings"].get(row.name), content["networks"]
    except FileNotFoundError:
        found = None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return unknown, [f"{path}: cannot be read, so the leakage is not in the file; make it again with {remedy}"]
    if found is None:
        return unknown, [f"{path}: {row.name} is not evaluated, so the leakage is not in the file; measure it with {remedy}"]
    usual = run.target.inversion_weight
    name = injector_entry(row.weight(usual), usual) if "injector" in row.needs else f"{row.name} defence"
    if networks.get(name, {}).get("digest") != digest:
        return unknown, [f"{path}: older than the defence, which was made again since, so the leakage is not in the file; "
                         f"measure it with {remedy}"]
    leakage = {RESIDUAL: found.get(RESIDUAL), "interval": found.get(f"{RESIDUAL}_interval"), "best": found.get("best"),
               "attackers": found.get("attackers"), "evaluated": content.get("commit"), "warnings": content.get("warnings", [])}
    notes = [f"{path}: the evaluation warns: {warning}" for warning in leakage["warnings"]
             if warning.startswith((f"{row.name}: ", f"{name}: "))]
    if leakage["interval"] is None:
        leakage[RESIDUAL] = None
        notes.append(f"{path}: residual leakage is not known: the undefended maps leak too little, or the rows predmi and "
                     f"expmi are missing; those are measured with {remedy}")
    return leakage, notes


def _example(network, record: dict) -> tuple:
    """Explanations and predictions of three images, of random numbers that are always the same."""
    import torch

    chance = torch.Generator().manual_seed(0)
    maps = torch.rand(3, *record["maps"], generator=chance)
    return maps, 3 * torch.randn(3, record["classes"], generator=chance)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command. Returns the exit code as `cli.main` does."""
    register(())  # what an earlier run in this process registered
    flags = parser()
    given = flags.parse_args(arguments)
    if given.target in TARGETS and given.xai not in EXPLAINERS and not is_own(given.xai):
        flags.error(f"argument --xai: {given.xai!r} is none of {', '.join(EXPLAINERS)}, and not FILE.py:NAME")
    if given.layer and not takes_layer(given.xai):
        flags.error(f"argument --layer: {given.xai} does not take a layer; the flag is for --xai gradcam")
    run = Run("eval", target(given.target), own_name(given.xai), given.root, given.root / "datasets", gpu=-1,
              published=given.published, victim=given.victim or "", layer=given.layer or "",
              files=own_files(flags, {"xai": [given.xai]}))

    def work() -> None:
        from .system import say, warn

        for note in export(run, find_row(given.setting), given.out):
            warn(note)
        say(f"{given.setting}: {given.out}, explanation and prediction in, protected explanation out")

    return guarded(PROGRAM, work)


if __name__ == "__main__":
    sys.exit(main())
