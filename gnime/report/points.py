"""The rows of `results.json` as verdict, pages and charts see them, and how their numbers are written."""

from dataclasses import dataclass

from ..metrics.leakage import CHANCE, NOTHING, is_possible
from ..registry import ATTACKERS, RESIDUAL, USEFULNESS, find_row

Interval = tuple[float, float]


@dataclass(frozen=True)
class Point:
    """A row as the verdict sees it.

    Attributes:
        leak, leak_span: residual leakage to the best attacker, and its 95 % interval; None where nothing can be said.
        kept, kept_span: usefulness, with its interval; None where no map is published.
        attacker: title of the best attacker.
        beside: of attackers that know more than the data: name, leak and interval of the strongest; None: there is none.
            Those that get several answers to one image are among them, if they were asked for.
        warnings: those that concern this row. What `beside` recovers more is in its leak already.
    """

    name: str
    title: str
    leak: float | None
    leak_span: Interval | None
    kept: float | None
    kept_span: Interval | None
    attacker: str
    beside: tuple[str, float, Interval] | None
    bits: float | None
    warnings: tuple[str, ...]

    @property
    def control(self) -> bool:
        return find_row(self.name).control

    @property
    def defended(self) -> bool:
        """Whether it is a defence that one may choose: neither undefended nor without a map nor a control."""
        return not self.control and find_row(self.name).defence not in (None, "none")

    @property
    def sound(self) -> bool:
        """A row of 0 bits warns where it leaks: that is a fault of the attackers, for its maps add nothing."""
        return self.leak is not None and (self.bits == 0 or not self.warnings)

    @property
    def ignored(self) -> bool:
        """Whether the best attacker made no use of the maps: its errors are those without them, up to rounding."""
        return self.leak is not None and all(abs(end) < 1e-4 for end in self.leak_span)

    @property
    def found(self) -> list[tuple[float, Interval]]:
        """Leaks with their intervals: to the best attacker, and to the strongest of those that know more."""
        return [(self.leak, self.leak_span), *([self.beside[1:]] if self.beside else [])]

    @property
    def worst(self) -> tuple[float, Interval]:
        """The largest of them."""
        return max(self.found)

    @property
    def leaks(self) -> bool:
        """Whether an attacker found more than in the prediction. That holds although another one has not converged."""
        return self.leak is not None and self.bits != 0 and any(low >= NOTHING for _, (low, _) in self.found)

    @property
    def tight(self) -> bool:
        """Whether no attacker found more in its maps than in the prediction: all intervals of its leak reach 0, or begin below
        `NOTHING`, and no leak is larger than what chance makes. Wide intervals of few images prove nothing."""
        return self.sound and (self.bits == 0 or not self.leaks and self.worst[0] <= CHANCE)


def percent(value: float) -> str:
    return f"{round(100 * value)} %"


def percents(span: Interval) -> str:
    return "[{}, {}]".format(*(round(100 * end) for end in span))


def bits(value: float) -> str:
    """Rounded up: it is a bound."""
    rounded = -(-100 * value // 1) / 100
    return f"{rounded:g} bit{'' if rounded == 1 else 's'}"


def bound_of(row: Point) -> str:
    """What its map can say at most beyond the prediction, for a table."""
    if row.kept is None:
        return "no map"
    return "none" if row.bits is None else bits(row.bits)


def points(content: dict) -> dict[str, Point]:
    """Every row of `results.json`."""
    found = {}
    for name, numbers in content["settings"].items():
        leak, kept, beside = _leak(numbers), numbers.get(USEFULNESS), _beside(numbers)
        found[name] = Point(
            name, numbers["title"], leak, _span(numbers, RESIDUAL, leak), kept, _span(numbers, USEFULNESS, kept),
            attacker_title(numbers["best"]["attacker"]), beside, numbers["bits"],
            tuple(warning for warning in content["warnings"]
                  if warning.startswith(f"{name}: ") and not any(trial in warning for trial in _counted(numbers))))
    return found


def _leak(numbers: dict) -> float | None:
    """Residual leakage; None where it is impossible, or the undefended leak is so small that no interval could be given."""
    leak, span = numbers.get(RESIDUAL), numbers.get(f"{RESIDUAL}_interval", ())
    return leak if span is not None and is_possible(leak, span) else None


def _span(numbers: dict, metric: str, value: float | None) -> Interval | None:
    """The interval of a number; the number itself where it is so by definition, or where no interval was found."""
    return None if value is None else tuple(numbers.get(f"{metric}_interval") or (value, value))


def _counted(numbers: dict) -> dict[str, tuple[float, Interval]]:
    """Of attackers that know more: the leak and its interval, where it can be one. Of others a warning is all that is known."""
    return {trial: (leak, _span(other, RESIDUAL, leak)) for trial, other in numbers.get("beside", {}).items()
            if (leak := _leak(other)) is not None}


def _beside(numbers: dict) -> tuple[str, float, Interval] | None:
    return max(((trial, *found) for trial, found in _counted(numbers).items()), key=lambda trial: trial[1], default=None)


def attacker_title(name: str) -> str:
    return ATTACKERS[name].title if name in ATTACKERS else name


def knows(attacker: str) -> tuple[str, ...]:
    return ATTACKERS[attacker].knows if attacker in ATTACKERS else ("not in the registry",)
