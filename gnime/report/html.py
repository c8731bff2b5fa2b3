"""`report.html`: one file that needs nothing else. Its numbers are those of `results.json`."""

import base64
import io
import tempfile
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image
from torch import Tensor

from ..config import PUBLISHED
from ..registry import ATTACKERS, EXPLAINERS, METRICS, RESIDUAL, ROWS, find_row
from ..store import write_text
from ..words import counted
from . import charts
from .examples import Example, drawable
from .points import Point, attacker_title, bound_of, knows, percent, percents, points
from .results import not_measured
from .verdict import KINDS, Verdict, judge, lacking, published

KNOWLEDGE = {"data": "other images of the same kind, with the service's answers to them", "victim": "the victim's weights",
             "defence": "the defence", "answers": "several answers to one image"}
LEAST = 96  # pixels: smaller pictures are enlarged by whole numbers, so that no viewer blurs them


def write(path: Path, content: dict, examples: list[Example]) -> None:
    """Writes the report of a run whose charts lie in its folder already.

    Raises:
        GnimeError: the file cannot be written.
    """
    with tempfile.TemporaryDirectory() as folder:
        narrow = Path(folder) / "frontier.png"
        charts.frontier(narrow, content, judge(content), narrow=True)
        pictures = {"frontier": path.with_name("frontier.png").read_bytes(), "frontier narrow": narrow.read_bytes(),
                    "training": path.with_name("training.png").read_bytes()}
    for i, example in enumerate(examples):
        pictures |= {f"{i} image": _png(example.image), f"{i} explanation": _png(example.explanation)}
        for name in example.found:
            pictures |= {f"{i} found {name}": _png(example.found[name])}
            pictures |= {f"{i} map {name}": _png(seen) for seen in [example.maps[name]] if seen is not None}
    write_text(path, render(content, pictures))


def _png(picture: Tensor) -> bytes:
    """(C, S, S) uint8 -> a PNG."""
    image = Image.fromarray(drawable(picture))
    scale = max(1, LEAST // image.width)
    file = io.BytesIO()
    image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST).save(file, "PNG", optimize=True)
    return file.getvalue()


def render(content: dict, pictures: dict[str, bytes]) -> str:
    """The page of `results.json`. pictures: name -> PNG, as `write` names them; those that are missing are left out."""
    verdict, rows, form = judge(content), points(content), published(content)
    return fill(
        "report.html.j2", pictures, content=content, verdict=verdict, kinds=KINDS,
        data_alone=all(knows(name) == ("data",) for name in _used(content)), published=form,
        bound=f"bound {PUBLISHED[form]}",
        explainer=explainer_title(content), record=content.get("record"),
        not_measured=not_measured(content.get("record", {}).get("lacking", {})),
        summary=[_summary(row, content, verdict) for row in rows.values()],
        attackers=attackers(content).items(), attacked=_attacked(content), metrics=_metrics(content), beside=_beside(content),
        untried=_untried(content),
        leak=_leak(content, rows), configuration=configuration(content))


def fill(template: str, pictures: dict[str, bytes], **values: object) -> str:
    """A page: the template with these values. pictures: name -> PNG, which the page contains."""
    environment = Environment(loader=PackageLoader("gnime.report", ""), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True)
    uris = {name: "data:image/png;base64," + base64.b64encode(png).decode() for name, png in pictures.items()}
    return environment.get_template(template).render(pictures=uris, **values)


def explainer_title(content: dict) -> str:
    """In words, with the layer where one was given."""
    name, layer = content["xai"], content["configuration"].get("layer")
    known = name in EXPLAINERS and "record" not in content  # whose maps may be anybody's
    return (EXPLAINERS[name].title if known else name) + (f" of {layer}" if layer else "")


def _summary(row: Point, content: dict, verdict: Verdict) -> dict:
    """A row of the first table, by the heading of the column."""
    numbers = content["settings"][row.name]
    span = numbers.get(f"{RESIDUAL}_interval")
    exposed = numbers.get(f"{RESIDUAL}_exposed")
    beside = row.beside if row.name not in lacking(()) else None  # of which it is so by definition
    return {
        "row": row.name, "title": row.title, "judged": judged(row, verdict),
        "residual leakage": "not known" if row.leak is None else percent(row.leak) + (f" {percents(span)}" if span else ""),
        "beside": f"{beside[0]}: {percent(beside[1])} {percents(beside[2])}" if beside else "",
        "decisive attacker": row.attacker + (" (maps not used)" if row.ignored and row.defended else ""),
        "most exposed 5 %": "-" if exposed is None else percent(exposed),
        "usefulness": "no map" if row.kept is None else f"{row.kept:.2f}" + _span_of(numbers, "pearson", ".2f"),
        "bound": bound_of(row),
        "MSE": f"{numbers['best']['mse']:.4f}"}


def _span_of(numbers: dict, metric: str, form: str) -> str:
    span = numbers.get(f"{metric}_interval")
    return " [{}, {}]".format(*(format(end, form) for end in span)) if span else ""


def judged(row: Point, verdict: Verdict) -> str:
    """One word or two for the table."""
    if row.name == verdict.publish:
        return "publish"
    if row.control:
        return "control"
    kinds = [KINDS[advice.kind] for advice in verdict.advice if row.name in advice.rows]
    if row.defended:
        return ", ".join(dict.fromkeys(kinds)) or ("no leak found" if row.leak is not None else "not known")
    return "undefended" if find_row(row.name).defence else "no map"


def _used(content: dict) -> list[str]:
    """Names of the attackers that attacked a row."""
    return list(dict.fromkeys(name for numbers in content["settings"].values() for name in (
        *numbers["attackers"], *(trial["attacker"] for trial in numbers.get("beside", {}).values()))))


def attackers(content: dict) -> dict[str, list[str]]:
    """Knowledge -> titles of the attackers that have it."""
    found: dict[str, list[str]] = {}
    for name in _used(content):
        found.setdefault(_knows(name), []).append(attacker_title(name))
    return found


def _knows(name: str) -> str:
    return "; ".join(KNOWLEDGE.get(what, what) for what in knows(name))


def _attacked(content: dict) -> tuple[list[str], list[tuple[str, list[tuple[str, bool]]]]]:
    """The attackers, and of each row their MSE, with whether that attacker decided; "-" where it did not attack."""
    names = list(dict.fromkeys(name for numbers in content["settings"].values() for name in numbers["attackers"]))
    lines = [(row, [(f"{numbers['attackers'][name]['mse']:.4f}" if name in numbers["attackers"] else "-",
                     name == numbers["best"]["attacker"]) for name in names]) for row, numbers in content["settings"].items()]
    return [attacker_title(name) for name in names], lines


def _beside(content: dict) -> list[tuple[str, str, str, str, str]]:
    """Row, attacker, number of images, MSE and residual leakage, of attackers that know more than the data."""
    lines = []
    for row, numbers in content["settings"].items():
        for name, trial in numbers.get("beside", {}).items():
            leak, span = trial.get(RESIDUAL), trial.get(f"{RESIDUAL}_interval")
            shown = "-" if leak is None else percent(leak) + (f" {percents(span)}" if span else "")
            lines.append((row, name, str(trial.get("n", content["n"]["test"])), f"{trial['mse']:.4f}", shown))
    return lines


def _metrics(content: dict) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Titles with the direction, and of each row every metric of the paper's attacker; "-" where it has no meaning."""
    titles = [metric.title + (f" ({metric.direction})" if metric.direction else "") for metric in METRICS.values()]
    return titles, [(row, ["-" if numbers.get(name) is None else format(numbers[name], metric.form)
                           for name, metric in METRICS.items()]) for row, numbers in content["settings"].items()]


def _untried(content: dict) -> dict[str, list[str]]:
    """What this run did not do, by the registry and by the results."""
    used = _used(content)
    known = {"none", *(find_row(name).defence for name in content["settings"])}
    return {
        "attackers": [f"{attacker.title} ({name}; it knows {_knows(name)})" for name, attacker in ATTACKERS.items()
                      if name not in used],
        "skipped": [f"{row}: {attacker_title(name)} did not attack, because {reason}"
                    for row, numbers in content["settings"].items() for name, reason in numbers["not_applicable"].items()],
        "rows": [name for name, row in ROWS.items() if row.defence not in known and not row.control]}


def _leak(content: dict, rows: dict[str, Point]) -> dict | None:
    """The undefended leak: errors with and without the explanation."""
    if not {"predmi", "expmi"} <= rows.keys():
        return None
    without, undefended = (content["settings"][name]["best"]["mse"] for name in ("predmi", "expmi"))
    measurable = all(numbers.get(f"{RESIDUAL}_interval", ()) is not None for numbers in content["settings"].values())
    return {"without": f"{without:.4f}", "undefended": f"{undefended:.4f}", "times": f"{without / undefended:.1f}",
            "leaks": undefended < without and measurable, "attacker": rows["expmi"].attacker}


def configuration(content: dict) -> list[tuple[str, str]]:
    """What decides the numbers, beside the commands."""
    n, hardware = content["n"], content["hardware"]
    trained = [(f"training of the {kind}",
                f"at most {counted(stage['epochs'], 'epoch')}, batch {stage['batch_size']}, learning rate {stage['lr']:g}")
               for kind, stage in content["configuration"]["stages"].items() if stage]
    return [("images", f"{n['images']}; half are the defender's; attackers train on {n['train']}; {n['test']} are tested"),
            ("seed", str(content["seed"])), *trained,
            ("width", str(content["configuration"]["width"])), ("precision", content["precision"]),
            ("departures", " ".join(content["configuration"]["official"]) or "none: the paper's text, see README"),
            ("hardware", f"{hardware['device']}; {hardware['cpu']}, {counted(hardware['cores'], 'core')}"),
            ("versions", ", ".join(f"{name} {version}" for name, version in content["versions"].items())),
            ("commit", content["commit"] or "unknown"), ("duration of eval.py", content["duration"])]
