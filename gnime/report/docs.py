"""docs/results.md, its charts and a table of README.md from the files in `results/` alone: written, or compared with what is
there."""

import difflib
import json
import shlex
from collections import Counter, defaultdict
from pathlib import Path

from ..config import OFFICIAL
from ..errors import GnimeError
from ..ownentries import OWN_KINDS
from ..ownfiles import own_name
from ..registry import EXPLAINERS, find_row
from ..store import digest_of, write_text
from . import figures
from .charts import Caption, draw_frontier
from .defences import judged, name_of_frontier, summary_table
from .groups import settings_of, values, whole_modes
from .paper import document, read_paper
from .points import Point
from .seeds import frontier, page_values

DOCS = Path("docs/results.md")
README = Path("README.md")
MARKS = "<!-- written by `python -m gnime.reproduce --docs` -->", "<!-- until here -->"  # before and after README's table
PRESETS = ("paper", "reduced")  # folders of results/
# of a run's file, what the tables read
KINDS = {"target": str, "xai": str, "seed": int, "command": str, "commit": (str, type(None)), "settings": dict,
         "warnings": list, "precision": str}
PARTS = {"n": {"images", "train", "test"}, "configuration": {"official", "image", "width", "weight", "stages"},
         "versions": {"torch"}, "hardware": {"cpu", "device"}}
NUMBERS = {"mse", "ssim", "tca", "residual_leakage"}


def read_result(path: Path) -> dict:
    """One run's file.

    Raises:
        GnimeError: it cannot be read, is damaged, or no result, or has objects of the user's own that are not registered.
    """
    own = []
    try:
        run = json.loads(_text(path))
        own = [f"--{flag} {spec}" for flag, spec in run["configuration"].get("files", ())
               if own_name(spec) not in OWN_KINDS[flag]]
        record = "record" in run  # of a service: its maps have any name, and it may be without labels
        whole = (all(isinstance(run[key], kind) for key, kind in KINDS.items()) and (record or run["xai"] in EXPLAINERS)
                 and all(run[key].keys() >= names for key, names in PARTS.items())
                 and run["configuration"]["official"] == [name for name in OFFICIAL if name in run["configuration"]["official"]]
                 and all(find_row(setting) and numbers.keys() | ({"tca"} if record else set()) >= NUMBERS and numbers["mse"] > 0
                         for setting, numbers in run["settings"].items()))
        if whole and "verdict" in run:  # a page shows it: what that lacks is raised. Older ones are in no page
            page_values([run])
            whole = "attackers" in run["configuration"]
    except (ValueError, LookupError, TypeError, AttributeError):
        whole = False
    if own:
        raise GnimeError(f"{path}: measured with {' '.join(own)}; give the same flags again, or another --results and --root")
    if not whole:
        raise GnimeError(f"{path}: damaged, or not a run's result; move it away and measure the run again")
    run["hardware"]["device"] = str(run["hardware"]["device"]).replace(" 1 threads", " 1 thread")  # as older versions wrote it
    return run


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise GnimeError(f"{path}: cannot be read ({error.strerror}); mend that, or move it away") from None


def read_results(folder: Path) -> dict[str, list[dict]]:
    """preset -> runs, in the order of their file names.

    Runs of two precisions never stand in one table: "paper" has the precision of most, "paper_bf16" that of others. Rehearsals
    and runs with another `--published` are left out.

    Raises:
        GnimeError: a file is damaged, or a rehearsal or a run of another published form lies among a preset's results.
    """
    found: dict[str, list[dict]] = {}
    for preset in PRESETS:
        runs = [read_result(path) for path in sorted((folder / preset).glob("*.json"))]
        for run in runs:
            if preset == "paper" and run["configuration"].get("limit") is not None:
                raise GnimeError(f"{folder / preset}: a run of {run['target']} on {run['n']['images']} images is a rehearsal; "
                                 f"move it away")
            if "published" in run["configuration"]:
                raise GnimeError(f"{folder / preset}: a run of {run['target']} with --published "
                                 f"{run['configuration']['published']} is not comparable with the others; move it away")
        counts = Counter(run["precision"] for run in runs)
        for i, (precision, _) in enumerate(counts.most_common()):
            name = f"{preset}_{precision}" if i else preset
            found[name] = [run for run in runs if run["precision"] == precision]
    return found


def charts(found: dict[str, list[dict]]) -> dict[Path, tuple[dict, dict]]:
    """Path of a preset's chart -> (ours, paper), each panel -> group -> setting -> MSE.

    Ours are one number a seed; the paper's, beside runs at its sizes only, are mean and standard deviation.
    """
    made = {}
    for preset, runs in found.items():
        if not whole_modes(runs):
            continue
        paper = read_paper() if preset.startswith("paper") else {}
        ours, theirs = defaultdict(dict), defaultdict(dict)
        for (name, xai, official), seeds in sorted(whole_modes(runs).items(), key=lambda item: (item[0][2], item[0])):
            panel, title = name + (", official" if official else ""), EXPLAINERS[xai].title
            bars = {setting: values(seeds, setting, "mse") for setting in settings_of(seeds)}
            ours[panel][title] = {setting: numbers for setting, numbers in bars.items() if numbers}
            known = {setting: paper.get((name, xai, setting, "mse")) for setting in ours[panel][title]}
            theirs[panel][title] = {setting: numbers for setting, numbers in known.items() if numbers}
        made[DOCS.parent / "figures" / f"bars_{preset}.png"] = dict(ours), dict(theirs)
    return made


def frontiers(found: dict[str, list[dict]]) -> dict[Path, tuple[list[Point], Caption]]:
    """Path -> what its frontier shows, for each target and explainer of the reduced runs whose rows have points."""
    folder = DOCS.parent / "figures"
    shown = {folder / name_of_frontier(*key): frontier(seeds) for key, _, seeds in judged(found.get("reduced", []))}
    return {path: (rows, caption) for path, (rows, caption) in shown.items() if rows}


def texts(found: dict[str, list[dict]]) -> dict[Path, str]:
    """docs/results.md, and README.md where it has a place for the table of the reduced runs, as the results make them.

    Raises:
        GnimeError: README.md is no UTF-8, or has one of the marks around the table alone, several times or in another order.
    """
    made = {DOCS: document(found)}
    try:
        readme = README.read_text(encoding="utf-8") if README.exists() else ""
    except UnicodeDecodeError as error:
        raise GnimeError(f"{README}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error
    begin, end = MARKS
    counts = [readme.count(mark) for mark in MARKS]
    if counts == [1, 1] and readme.index(begin) < readme.index(end):
        before, after = readme.split(begin)[0], readme.split(end)[1]
        made[README] = "\n".join([before + begin, "", *summary_table(found.get("reduced", [])), "", end + after])
    elif counts != [0, 0]:
        raise GnimeError(f"{README}: the place of its table is one line {begin!r}, and one line {end!r} below it; it has "
                         f"{counts[0]} of the first and {counts[1]} of the second")
    return made


def write_docs(results: Path) -> int:
    """Writes docs/results.md, its charts and frontiers, and README's table.

    Raises:
        GnimeError: a result is damaged or of another kind, there is none, or README's marks are; see `texts`.
    """
    found = read_results(results)
    if not any(found.values()):
        raise GnimeError(f"--results: {results} has no results in {' or '.join(f'{preset}/' for preset in PRESETS)}; give the "
                         "folder that has them")
    written, drawn, curves = texts(found), charts(found), frontiers(found)
    for path, (ours, theirs) in drawn.items():
        figures.seed_bars(path, ours, theirs)
    for path, (rows, caption) in curves.items():
        draw_frontier(path, rows, caption)
    for path, text in written.items():
        write_text(path, text)
    print(*[f"{path} written" for path in (*written, *drawn, *curves)], f"from {sum(map(len, found.values()))} runs", sep="\n")
    return 0


def check_docs(results: Path) -> int:
    """0 where docs/results.md, the charts and README's table are what the results say, else 1 with the differences."""
    found, difference, wrong = read_results(results), [], []
    for path, text in texts(found).items():
        there = path.read_text(encoding="utf-8") if path.exists() else ""
        changed = list(difflib.unified_diff(there.splitlines(), text.splitlines(), str(path), str(results), lineterm=""))
        difference += changed[:20]
        wrong += [f"{path} differs from {results}/"] if changed else []
    notes = {path: digest_of(numbers) for path, numbers in charts(found).items()}
    notes |= {path: caption.note for path, (_, caption) in frontiers(found).items()}
    wrong += [f"{path} is missing, or drawn from other results" for path, note in notes.items()
              if figures.drawn_from(path) != note]
    wrong += [f"{path} shows no result of {results}/" for path in sorted((DOCS.parent / "figures").glob("frontier_*.png"))
              if path not in notes]
    for line in difference + wrong:
        print(line)
    if wrong:
        where = f" --results {shlex.quote(str(results))}" if results != Path("results") else ""
        print(f"run python -m gnime.reproduce --docs{where}")
    return 1 if wrong else 0
