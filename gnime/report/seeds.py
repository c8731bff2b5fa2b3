"""Several seeds of one run: of each row mean, spread and n, beside each seed's verdict, and one page of that.

Reads the contents of result files alone. A spread is the sample standard deviation, with n - 1 in its denominator. One seed has
none.
"""

import re
import shlex
import statistics
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..config import PUBLISHED
from ..ownfiles import is_own, own_name
from ..registry import in_order
from ..store import digest_of, write_text
from .charts import Caption, draw_frontier, explained
from .html import configuration, explainer_title, fill, judged
from .points import Interval, Point, bits, percent, percents, points
from .results import aligned
from .verdict import Verdict, judge, published, subject


@dataclass(frozen=True)
class Spread:
    """A number of each seed, of those that have it."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.values) if self.values else None

    @property
    def deviation(self) -> float | None:
        """The standard deviation over seeds; None of fewer than two."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def span(self) -> Interval | None:
        """A standard deviation to either side of the mean; the mean itself where there is none."""
        return (self.mean - (self.deviation or 0.0), self.mean + (self.deviation or 0.0)) if self.values else None

    def text(self, form: str, of: int) -> str:
        """Mean ± standard deviation, and n where it is not `of`. form: "%" in percent, or as `format` takes it."""
        if not self.values:
            return "-"
        numbers = [number for number in (self.mean, self.deviation) if number is not None]
        shown = [str(round(100 * number)) if form == "%" else format(number, form) for number in numbers]
        unit, fewer = " %" if form == "%" else "", f" (n={len(self.values)})" if len(self.values) != of else ""
        return " ± ".join(shown) + unit + fewer


@dataclass(frozen=True)
class Seeds:
    """What several seeds say.

    Attributes:
        runs: contents of result files of one configuration, by seed.
        verdicts, rows: of each of them, the verdict and the rows as the verdict sees them.
    """

    runs: list[dict]
    verdicts: list[Verdict]
    rows: list[dict[str, Point]]

    @property
    def numbers(self) -> list[int]:
        return [run["seed"] for run in self.runs]

    @property
    def names(self) -> list[str]:
        """Every row that a seed has."""
        return in_order({name for rows in self.rows for name in rows})

    def having(self, name: str) -> list[tuple[dict, Verdict, Point]]:
        return [(run, verdict, rows[name]) for run, verdict, rows in zip(self.runs, self.verdicts, self.rows, strict=True)
                if name in rows]

    def error(self, name: str) -> Spread:
        """MSE of the best attacker."""
        return Spread(tuple(run["settings"][name]["best"]["mse"] for run, _, _ in self.having(name)))

    def leak(self, name: str) -> Spread:
        return _known(row.leak for _, _, row in self.having(name))

    def kept(self, name: str) -> Spread:
        return _known(row.kept for _, _, row in self.having(name))

    def beside(self, name: str) -> Spread:
        """Residual leakage to the strongest of those attackers that know more than the data."""
        return _known(row.beside[1] if row.beside else None for _, _, row in self.having(name))

    def point(self, name: str) -> Point:
        """The row with its means, and their spreads in place of the intervals over images."""
        first, leak, kept, beside = self.having(name)[0][2], self.leak(name), self.kept(name), self.beside(name)
        stronger = (_several(row.beside[0] for _, _, row in self.having(name) if row.beside), beside.mean, beside.span)
        return Point(name, first.title, leak.mean, leak.span, kept.mean, kept.span,
                     _several(row.attacker for _, _, row in self.having(name)), stronger if beside.values else None,
                     first.bits, ())


def _known(values: Iterable[float | None]) -> Spread:
    return Spread(tuple(value for value in values if value is not None))


def _several(texts: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(texts))


def _by_seed(texts: Iterable[tuple[str, int]], of: int) -> dict[str, str]:
    """Text -> the seeds that say it, of `of`: "all 3 seeds", "seeds 0, 2" or "seed 1"."""
    found: dict[str, list[int]] = {}
    for text, seed in texts:
        found.setdefault(text, []).append(seed)
    everyone = _all(of)
    return {text: everyone if len(which) == of else f"seed{'s' * (len(which) > 1)} {', '.join(map(str, which))}"
            for text, which in found.items()}


def _all(of: int) -> str:
    return {1: "the one seed", 2: "both seeds"}.get(of, f"all {of} seeds")


def gather(runs: list[dict]) -> Seeds:
    """runs: contents of result files of one configuration, one a seed."""
    runs = sorted(runs, key=lambda run: run["seed"])
    return Seeds(runs, [judge(run) for run in runs], [points(run) for run in runs])


def sentence(seeds: Seeds) -> str:
    """How much of the leak the row that the run is about leaves, and what its maps are worth."""
    name, n = subject(seeds.names), len(seeds.runs)
    if name is None:
        return "No defence was measured: nothing can be said of what to publish."
    row, over = seeds.point(name), f"mean ± standard deviation of {n} seeds" if n > 1 else "one seed: no spread"
    if row.leak is None:
        return f"Nothing can be said of {row.title}: no seed has a residual leakage of it."
    beside = f" ({seeds.beside(name).text('%', n)} to {row.beside[0]})" if row.beside else ""
    return (f"{row.title} leaves {seeds.leak(name).text('%', n)} of the leak to the best attacker{beside}, and its maps "
            f"correlate by {seeds.kept(name).text('.2f', n)} with the true ones ({over}).")


def agreement(seeds: Seeds) -> str:
    """What the seeds' verdicts say is to be published, and whether they agree."""
    n = len(seeds.runs)
    said = _by_seed(((_publish(verdict), seed) for verdict, seed in zip(seeds.verdicts, seeds.numbers, strict=True)), n)
    if all(verdict.publish is None for verdict in seeds.verdicts):
        return "No seed says yet what to publish."
    if len(said) == 1:
        (what,) = said
        return f"Publish {what}. " + (f"{_all(n).capitalize()} say so." if n > 1 else "This is the verdict of one seed.")
    return (f"The seeds disagree on what to publish: {'; '.join(f'{what} ({which})' for what, which in said.items())}. "
            "Take no single seed's verdict for another model: measure more seeds, or publish the prediction without a map.")


def _publish(verdict: Verdict) -> str:
    return {None: "nothing yet", "predmi": "the prediction without a map"}.get(verdict.publish, verdict.publish)


def lines(runs: list[dict]) -> list[str]:
    """For the terminal: the table of means, and what the seeds' verdicts say."""
    seeds = gather(runs)
    n, first = len(runs), runs[0]
    over = f"mean ± standard deviation over {n} seeds" if n > 1 else "one seed: no spread"
    rows = [[row["row"], row["MSE"], row["residual leakage"], row["usefulness"], str(row["n"])] for row in summary(seeds)]
    table = aligned(["setting", "MSE, best attacker", "residual leakage", "Pearson", "n"], rows)
    return [f"{explained(first)}: {over}", *table.splitlines(), "", f"verdict: {sentence(seeds)}",
            agreement(seeds)]


def summary(seeds: Seeds) -> list[dict]:
    """The rows of the first table, by the heading of the column."""
    table = []
    for name in seeds.names:
        having, row = seeds.having(name), seeds.point(name)
        n = len(having)
        words = _by_seed(((judged(point, verdict), run["seed"]) for run, verdict, point in having), n)
        table.append({
            "row": name, "title": row.title, "n": n, "MSE": seeds.error(name).text(".4f", n),
            "residual leakage": seeds.leak(name).text("%", n), "usefulness": seeds.kept(name).text(".2f", n),
            "beside": f"{row.beside[0]}: {seeds.beside(name).text('%', n)}" if row.beside else "",
            "judged": [(word, which) for word, which in words.items()],
            "decisive attacker": row.attacker, "bound": "none" if row.bits is None else bits(row.bits)})
    return table


def frontiers(seeds: Seeds) -> dict[str, bytes]:
    """The frontier for a screen and for a telephone: a point per row, a cross for its spread."""
    n, first = len(seeds.runs), seeds.runs[0]
    rows = [seeds.point(name) for name in seeds.names]
    dominated = tuple(name for name in seeds.names if all(name in verdict.dominated for _, verdict, _ in seeds.having(name)))
    published = {verdict.publish for verdict in seeds.verdicts}
    over = f"mean and standard deviation over {n} seeds" if n > 1 else f"seed {first['seed']} alone: no spread"
    note = digest_of([[row.name, row.leak, row.leak_span, row.kept, row.kept_span] for row in rows])
    caption = Caption(f"{explained(first)}: {over}", dominated, "dominated in every seed",
                      published.pop() if len(published) == 1 else None, note)
    pictures = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, narrow in (("frontier", False), ("frontier narrow", True)):
            file = Path(folder) / f"{name}.png"
            draw_frontier(file, rows, caption, narrow)
            pictures[name] = file.read_bytes()
    return pictures


def render(runs: list[dict], pictures: dict[str, bytes]) -> str:
    """The page. pictures: as `frontiers` makes them; those that are missing are left out."""
    seeds = gather(runs)
    first, n = runs[0], len(runs)
    warnings = _by_seed(((warning, run["seed"]) for run in seeds.runs for warning in run["warnings"]), n)
    tested = list(dict.fromkeys(run["n"]["test"] for run in seeds.runs))
    return fill("seeds.html.j2", pictures, runs=seeds.runs, seeds=seeds.numbers, n=n, target=first["target"],
                explainer=explainer_title(first), sentence=sentence(seeds), agreement=agreement(seeds), summary=summary(seeds),
                bound=f"bound {PUBLISHED[published(first)]}", tested=" or ".join(map(str, tested)), warnings=warnings,
                verdicts=[(run["seed"], verdict.sentence, _publish(verdict))
                          for run, verdict in zip(seeds.runs, seeds.verdicts, strict=True)],
                leaks=[(name, [_leak(rows.get(name)) for rows in seeds.rows]) for name in seeds.names],
                own_victim=first["configuration"].get("victim"), record="record" in first,
                victims=len({run["networks"].get("victim", {}).get("digest") for run in seeds.runs}),
                uncertain=percent((2 * max(n - 1, 1)) ** -0.5),
                command=_command(seeds), configuration=_configuration(seeds))


def _leak(row: Point | None) -> str:
    """Of one seed, with the interval over its test images."""
    return "-" if row is None or row.leak is None else f"{percent(row.leak)} {percents(row.leak_span)}"


def _command(seeds: Seeds) -> str:
    """The command of all seeds, with the rows that any of them has."""
    specs = {own_name(word): word for run in seeds.runs for word in shlex.split(run["command"]) if is_own(word)}
    rows = " ".join(shlex.quote(specs.get(name, name)) for name in seeds.names)
    command = re.sub("--seeds [0-9]+", f"--seeds {' '.join(map(str, seeds.numbers))}", seeds.runs[0]["command"], count=1)
    return re.sub("--settings .*?(?= --|$)", lambda _: f"--settings {rows}", command, count=1)


def _configuration(seeds: Seeds) -> list[tuple[str, str]]:
    """What decides the numbers; where seeds differ in it, all that they had."""
    found: dict[str, list[str]] = {}
    for run in seeds.runs:
        for name, text in configuration(run):
            found.setdefault(name, []).append(text)
    return [(name, "; ".join(dict.fromkeys(texts))) for name, texts in found.items()]


def write(path: Path, runs: list[dict]) -> None:
    """Writes the page of these runs.

    Raises:
        GnimeError: the file cannot be written.
    """
    write_text(path, render(runs, frontiers(gather(runs))))
