"""The numbers of several seeds of one run: of each row mean, spread and n.

Reads the contents of result files alone. A spread is the sample standard deviation, with n - 1 in its denominator. One seed has
none.
"""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..registry import in_order
from .points import Interval, Point, points
from .verdict import Verdict, judge, lacking, subject

NOT_KNOWN = "not known"


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
            return NOT_KNOWN
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
        asked: seeds that were asked for, also those that have no result yet.
    """

    runs: list[dict]
    verdicts: list[Verdict]
    rows: list[dict[str, Point]]
    asked: tuple[int, ...] = ()

    @property
    def numbers(self) -> list[int]:
        return [run["seed"] for run in self.runs]

    @property
    def names(self) -> list[str]:
        """Every row that a seed has."""
        return in_order({name for rows in self.rows for name in rows})

    @property
    def wanted(self) -> list[str]:
        """Every row that a seed has or was asked for, and those to which a leak is relative."""
        asked = {name for run in self.runs for name in run["configuration"].get("settings", ())}
        return in_order({*self.names, *asked, *(lacking(()) if subject(self.names) else ())})

    def missing(self) -> dict[str, str]:
        """Rows that are wanted and not there, and the seeds that lack them."""
        of_runs = [(", ".join(name for name in self.wanted if name not in rows), seed)
                   for rows, seed in zip(self.rows, self.numbers, strict=True)]
        unmeasured = [("every row", seed) for seed in self.everyone if seed not in self.numbers]
        return by_seed([pair for pair in of_runs + unmeasured if pair[0]], len(self.everyone))

    @property
    def everyone(self) -> list[int]:
        """The seeds that there are or that were asked for."""
        return sorted({*self.numbers, *self.asked})

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


def by_seed(texts: Iterable[tuple[str | None, int]], of: int) -> dict[str | None, str]:
    """Text -> the seeds that say it, of `of`: "all 3 seeds", "seeds 0, 2" or "seed 1"."""
    found: dict[str | None, list[int]] = {}
    for text, seed in texts:
        found.setdefault(text, []).append(seed)
    everyone = _all(of)
    return {text: everyone if len(which) == of > 1 else f"seed{'s' * (len(which) > 1)} {', '.join(map(str, which))}"
            for text, which in found.items()}


def _all(of: int) -> str:
    return "both seeds" if of == 2 else f"all {of} seeds"


def gather(runs: list[dict], asked: Sequence[int] = ()) -> Seeds:
    """runs: contents of result files of one configuration, one a seed. asked: the seeds that there shall be."""
    runs = sorted(runs, key=lambda run: run["seed"])
    return Seeds(runs, [judge(run) for run in runs], [points(run) for run in runs], tuple(asked))
