"""Several seeds of one run: the verdict and the table of means beside each seed's verdict, for the terminal and as one page."""

import re
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ..config import PUBLISHED
from ..ownfiles import is_own, own_name
from ..registry import find_row
from ..store import digest_of, write_text
from .charts import Caption, draw_frontier, explained
from .html import attackers, configuration, explainer_title, fill, judged
from .points import Point, bound_of, percent, percents
from .results import aligned
from .spread import NOT_KNOWN, Seeds, by_seed, gather
from .verdict import FOLLOW, bound, lacking, published, subject, unknown

UNKNOWN = ("a row to which every leak is relative (predmi, expmi) is missing, the undefended maps leak too little, or the "
           "attackers have not converged")  # why a leak may not be known


def sentence(seeds: Seeds) -> str:
    """How much of the leak the row that the run is about leaves, and what its maps are worth."""
    name, n = subject(seeds.names), len(seeds.runs)
    if name is None:
        return "No defence was measured, so nothing can be said of what to publish."
    row, over = seeds.point(name), f"mean ± standard deviation of {n} seeds" if n > 1 else "one seed: no spread"
    if row.leak is None:
        whys = by_seed(((unknown(name, run)[0], run["seed"]) for run, _, _ in seeds.having(name)), n)
        return f"Nothing can be said of {row.title}: {_told(whys)}."
    beside = f" ({seeds.beside(name).text('%', n)} to {row.beside[0]})" if row.beside else ""
    return (f"{row.title} leaves {seeds.leak(name).text('%', n)} of the leak to the best attacker{beside}, and its maps "
            f"correlate by {seeds.kept(name).text('.2f', n)} with the true ones ({over}).")


def agreement(seeds: Seeds) -> str:
    """What the seeds' verdicts say is to be published, whether they agree, and what that row leaves and keeps."""
    n, pairs = len(seeds.runs), list(zip(seeds.verdicts, seeds.numbers, strict=True))
    said = by_seed(((verdict.publish, seed) for verdict, seed in pairs), n)
    undecided = said.pop(None, "")
    if not said:
        return _told(by_seed(((verdict.reason, seed) for verdict, seed in pairs), n))
    if len(said) > 1:
        told = [f"{_publish(name)} ({which})" for name, which in said.items()]
        told += [f"nothing yet ({undecided})"] if undecided else []
        return (f"the seeds disagree: {'; '.join(told)}. Take no single seed's verdict for another model: measure more seeds, "
                "or publish the prediction without a map.")
    ((name, which),) = said.items()
    rest = f" {undecided.capitalize()} cannot say yet." if undecided else ""
    if name == "predmi":
        return f"{_publish(name)}. This is the verdict of {which}.{rest}"
    row, leak = seeds.point(name), f"{seeds.leak(name).text('%', n)} of the leak"
    said = (f"{name} ({row.title}). This is the verdict of {which}.{rest} Its maps correlate by "
            f"{seeds.kept(name).text('.2f', n)} with the true ones.")
    if row.bits == 0:
        return f"{said} By measurement they leave {leak}, but they {FOLLOW}."
    return f"{said} They leave {leak} to the best attacker. {bound(row, published(seeds.runs[0]))}"


def _publish(name: str | None) -> str:
    return {None: "nothing yet", "predmi": "the prediction without a map"}.get(name, name)


def _told(texts: dict[str, str]) -> str:
    """Texts with the seeds that say them, where not all say the same."""
    several = "; ".join(f"{text.rstrip('.')} ({which})" for text, which in texts.items())
    return several if len(texts) > 1 else next(iter(texts))


def absent(seeds: Seeds) -> str:
    """The missing rows and seeds, as "predmi, expmi (seed 1); every row (seed 2)"."""
    return "; ".join(f"{rows} ({which})" for rows, which in seeds.missing().items())


def lines(runs: list[dict], asked: Sequence[int] = ()) -> list[str]:
    """For the terminal: the table of means, what the seeds' verdicts say, and what is missing."""
    seeds = gather(runs, asked)
    n, first = len(runs), runs[0]
    over = f"mean ± standard deviation over {n} seeds" if n > 1 else "one seed: no spread"
    rows = [[row["row"], row["MSE"], row["residual leakage"], row["usefulness"], str(row["n"])] for row in summary(seeds)]
    table = aligned(["setting", "MSE, best attacker", "residual leakage", "Pearson", "seeds"], rows)
    warned = len({warning for run in seeds.runs for warning in run["warnings"]})
    return [f"{explained(first)}: {over}", *table.splitlines(), "", f"verdict: {sentence(seeds)}",
            f"publish: {agreement(seeds)}", *([f"missing: {absent(seeds)}"] if seeds.missing() else []),
            *([f"warnings: {warned}, listed on the page"] if warned else [])]


def summary(seeds: Seeds) -> list[dict]:
    """The rows of the first table, by the heading of the column."""
    table = []
    for name in seeds.names:
        having, row = seeds.having(name), seeds.point(name)
        n = len(having)
        words = by_seed(((judged(point, verdict), run["seed"]) for run, verdict, point in having), n)
        table.append({
            "row": name, "title": row.title, "n": n, "MSE": seeds.error(name).text(".4f", n),
            **shown(seeds, name),
            "beside": f"{row.beside[0]}: {seeds.beside(name).text('%', n)}" if row.beside and name not in lacking(()) else "",
            "judged": [(word, which) for word, which in words.items()],
            "decisive attacker": row.attacker, "bound": bound_of(row)})
    return table


def shown(seeds: Seeds, name: str) -> dict[str, str]:
    """Residual leakage and usefulness of a row. Those that are what they are by definition have no spread."""
    n, leak, kept = len(seeds.having(name)), seeds.leak(name), seeds.kept(name)
    if find_row(name).defence not in (None, "none"):
        return {"residual leakage": leak.text("%", n), "usefulness": kept.text(".2f", n)}
    return {"residual leakage": percent(leak.mean) if leak.values else NOT_KNOWN,
            "usefulness": format(kept.mean, ".2f") if kept.values else "no map"}


def frontier(seeds: Seeds) -> tuple[list[Point], Caption]:
    """What `charts.draw_frontier` draws: a point per row, a cross for its spread.

    Rows without a leak or a map have none, and rows that lack a seed, whose mean is not of the same victims.
    """
    n, first = len(seeds.runs), seeds.runs[0]
    rows = [row for row in map(seeds.point, seeds.names) if row.leak is not None and row.kept is not None]
    dominated = tuple(row.name for row in rows if all(row.name in verdict.dominated for _, verdict, of in seeds.having(row.name)
                                                      if of.leak is not None))
    published = {verdict.publish for verdict in seeds.verdicts} - {None}
    bold = published.pop() if len(published) == 1 else None
    over = f"mean and standard deviation over {n} seeds" if n > 1 else f"seed {first['seed']} alone: no spread"
    fewer = [row.name for row in rows if len(seeds.having(row.name)) < n]
    rows = [row for row in rows if row.name not in fewer]
    headline = f"{explained(first)}: {over}" + (f"; not drawn, of fewer seeds: {', '.join(fewer)}" if fewer else "")
    numbers = [[row.name, row.leak, row.leak_span, row.kept, row.kept_span, row.beside] for row in rows]
    note = digest_of([headline, dominated, bold, numbers])
    return rows, Caption(headline, dominated, "dominated in every seed", bold, note)


def frontiers(seeds: Seeds) -> dict[str, bytes]:
    """The frontier for a screen and for a telephone, as PNG. None where no row has a point."""
    rows, caption = frontier(seeds)
    if not rows:
        return {}
    pictures = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, narrow in (("frontier", False), ("frontier narrow", True)):
            file = Path(folder) / f"{name}.png"
            draw_frontier(file, rows, caption, narrow)
            pictures[name] = file.read_bytes()
    return pictures


def render(runs: list[dict], pictures: dict[str, bytes], asked: Sequence[int] = ()) -> str:
    """The page. pictures: as `frontiers` makes them; those that are missing are left out. asked: as `gather` takes it."""
    return fill("seeds.html.j2", pictures, **page_values(runs, asked))


def page_values(runs: list[dict], asked: Sequence[int] = ()) -> dict:
    """What the page says, by the names of its template."""
    seeds = gather(runs, asked)
    first, n = runs[0], len(runs)
    warnings = by_seed(((warning, run["seed"]) for run in seeds.runs for warning in run["warnings"]), n)
    tested = list(dict.fromkeys(run["n"]["test"] for run in seeds.runs))
    return {
        "seeds": seeds.numbers, "n": n, "target": first["target"], "explainer": explainer_title(first),
        "sentence": sentence(seeds), "agreement": agreement(seeds), "summary": summary(seeds),
        "bound": f"bound {PUBLISHED[published(first)]}",
        "tested": " or ".join(map(str, tested)), "warnings": warnings, "missing": absent(seeds), "not_known": UNKNOWN,
        "published": published(first), "attackers": _attackers(runs).items(),
        "verdicts": [(run["seed"], verdict.sentence, _publish(verdict.publish))
                  for run, verdict in zip(seeds.runs, seeds.verdicts, strict=True)],
        "leaks": [(name, [leak_of_one(name, rows.get(name)) for rows in seeds.rows]) for name in seeds.names],
        "own_victim": first["configuration"].get("victim"), "record": "record" in first,
        "victims": len({run["networks"].get("victim", {}).get("digest") for run in seeds.runs}),
        "uncertain": percent((2 * max(n - 1, 1)) ** -0.5), "command": command(seeds), "configuration": _configuration(seeds)}


def leak_of_one(name: str, row: Point | None) -> str:
    """Of one seed, with the interval over its test images where it is not so by definition."""
    if row is None or row.leak is None:
        return "not measured" if row is None else NOT_KNOWN
    return percent(row.leak) + ("" if name in lacking(()) else f" {percents(row.leak_span)}")


def _attackers(runs: list[dict]) -> dict[str, list[str]]:
    """What attackers know -> titles of those that know it, of any seed."""
    found: dict[str, list[str]] = {}
    for known, titles in (pair for run in runs for pair in attackers(run).items()):
        found[known] = list(dict.fromkeys([*found.get(known, ()), *titles]))
    return found


def command(seeds: Seeds) -> str:
    """The command of all seeds and rows, also of those that are missing."""
    specs = {own_name(spec): spec for run in seeds.runs for _, spec in run["configuration"].get("files", ())}
    specs |= {own_name(word): word for run in seeds.runs for word in shlex.split(run["command"]) if is_own(word)}
    rows = " ".join(shlex.quote(specs.get(name, name)) for name in seeds.wanted)
    numbers = " ".join(map(str, seeds.everyone))
    line = re.sub("--seeds [0-9]+", f"--seeds {numbers}", seeds.runs[0]["command"], count=1)
    return re.sub("--settings .*?(?= --|$)", lambda _: f"--settings {rows}", line, count=1)


def _configuration(seeds: Seeds) -> list[tuple[str, str]]:
    """What decides the numbers; where seeds differ in it, all that they had."""
    found: dict[str, list[str]] = {}
    for run in seeds.runs:
        for name, text in configuration(run):
            found.setdefault(name, []).append(text)
    return [(name, "; ".join(dict.fromkeys(texts))) for name, texts in found.items()]


def write(path: Path, runs: list[dict], asked: Sequence[int] = ()) -> None:
    """Writes the page of these runs. asked: as `gather` takes it.

    Raises:
        GnimeError: the file cannot be written.
    """
    write_text(path, render(runs, frontiers(gather(runs)), asked))
