"""What follows from the numbers: a sentence, what to publish, and what to do about each row. Reads `results.json` alone."""

from dataclasses import dataclass

from ..config import PUBLISHED
from ..metrics.leakage import CHANCE, NOTHING, is_possible
from ..registry import ATTACKERS, DEFENCES, METRICS, RESIDUAL, USEFULNESS, find_row, injector_row

Interval = tuple[float, float]
KINDS = {"unsound": "cannot be trusted yet", "dominated": "dominated", "unsafe": "leaks"}


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
    def spans(self) -> list[Interval]:
        """Intervals of residual leakage, of the best attacker and of the strongest of those that know more."""
        return [self.leak_span, *([self.beside[2]] if self.beside else [])]

    @property
    def tight(self) -> bool:
        """Whether no attacker found more in its maps than in the prediction: all intervals of its leak reach 0, or begin below
        `NOTHING`, and no leak is larger than what chance makes. Wide intervals of few images prove nothing."""
        leaks = [self.leak, *([self.beside[1]] if self.beside else [])]
        return self.sound and (self.bits == 0 or all(low < NOTHING for low, _ in self.spans) and max(leaks) <= CHANCE)


@dataclass(frozen=True)
class Advice:
    """What to do about some rows, and why: `kind` is of `KINDS`."""

    rows: tuple[str, ...]
    kind: str
    text: str


@dataclass(frozen=True)
class Verdict:
    """Attributes:
        sentence: of the row that the run is about: how much of the leak it leaves, and what its maps are worth.
        publish: name of the row to publish; "predmi": no map.
        reason: why, and how far that holds.
        advice: on the other rows.
        dominated: row -> rows that leak no more and keep no less.
    """

    sentence: str
    publish: str | None
    reason: str
    advice: tuple[Advice, ...]
    dominated: dict[str, list[str]]

    def plain(self) -> dict:
        return {"sentence": self.sentence, "publish": self.publish, "reason": self.reason, "dominated": self.dominated,
                "advice": [{"rows": list(advice.rows), "kind": advice.kind, "text": advice.text} for advice in self.advice]}

    def lines(self) -> list[str]:
        """For the terminal."""
        return [f"verdict: {self.sentence}", f"publish: {self.reason}",
                *(f"{KINDS[advice.kind]}: {advice.text}" for advice in self.advice)]


def percent(value: float) -> str:
    return f"{round(100 * value)} %"


def percents(span: Interval) -> str:
    return "[{}, {}]".format(*(round(100 * end) for end in span))


def subject(names: list[str]) -> str | None:
    """The row that the run is about: GNIME's, or the first defended one."""
    rows = [find_row(name) for name in names if not find_row(name).control]
    usual = [row.name for row in rows if row.name == "gnime"] or [row.name for row in rows if row.defence == "gnime"]
    return next(iter(usual or [row.name for row in rows if row.defence not in (None, "none")]), None)


def points(content: dict) -> dict[str, Point]:
    """Every row of `results.json`."""
    found = {}
    for name, numbers in content["settings"].items():
        leak, kept, beside = _leak(numbers), numbers.get(USEFULNESS), _beside(numbers)
        found[name] = Point(
            name, numbers["title"], leak, _span(numbers, RESIDUAL, leak), kept, _span(numbers, USEFULNESS, kept),
            attacker_title(numbers["best"]["attacker"]), beside, numbers["bits"],
            tuple(warning for warning in content["warnings"]
                  if warning.startswith(f"{name}: ") and not (beside and beside[0] in warning)))
    return found


def _leak(numbers: dict) -> float | None:
    """Residual leakage; None where it is impossible, or the undefended leak is so small that no interval could be given."""
    leak, span = numbers.get(RESIDUAL), numbers.get(f"{RESIDUAL}_interval", ())
    return leak if span is not None and is_possible(leak, span) else None


def _span(numbers: dict, metric: str, value: float | None) -> Interval | None:
    """The interval of a number; the number itself where it is so by definition, or where no interval was found."""
    return None if value is None else tuple(numbers.get(f"{metric}_interval") or (value, value))


def _beside(numbers: dict) -> tuple[str, float, Interval] | None:
    found = [(trial, leak, _span(other, RESIDUAL, leak)) for trial, other in numbers.get("beside", {}).items()
             if (leak := _leak(other)) is not None]
    return max(found, key=lambda trial: trial[1], default=None)


def attacker_title(name: str) -> str:
    return ATTACKERS[name].title if name in ATTACKERS else name


def knows(attacker: str) -> tuple[str, ...]:
    return ATTACKERS[attacker].knows if attacker in ATTACKERS else ("not in the registry",)


def published(content: dict) -> str:
    """The form of the predictions that the service publishes, a name in `PUBLISHED`. A record has its own."""
    return content["record"]["published"] if "record" in content else content["configuration"].get("published", "logits")


def judge(content: dict) -> Verdict:
    """The verdict of `results.json`."""
    rows = points(content)
    dominated = {row.name: better for row in rows.values() if row.defended and (better := _dominators(row, rows))}
    name = subject(list(rows))
    publish, reason = _choose(rows, published(content))
    unlearnt = _unlearnt(rows, content)
    if publish in unlearnt:
        reason += " But its attacker was still learning: see below."
    advice = [*_unsound(rows, unlearnt, content), *_worse(rows, dominated, publish)]
    return Verdict(_sentence(rows.get(name), rows, content), publish, reason, tuple(advice), dominated)


def _dominators(row: Point, rows: dict[str, Point]) -> list[str]:
    """Rows that leak no more and keep no less, one of the two beyond both 95 % intervals; the most useful first."""
    if row.leak is None or row.kept is None:
        return []
    better = []
    for other in rows.values():
        if other.defended and other.sound and other.kept is not None and other.name != row.name:
            leaks_less, keeps_more = other.leak_span[1] < row.leak_span[0], other.kept_span[0] > row.kept_span[1]
            leaks_more, keeps_less = other.leak_span[0] > row.leak_span[1], other.kept_span[1] < row.kept_span[0]
            if (leaks_less or keeps_more) and not (leaks_more or keeps_less):
                better.append(other)
    return [other.name for other in sorted(better, key=lambda other: -other.kept)]


def _sentence(row: Point | None, rows: dict[str, Point], content: dict) -> str:
    if row is None:
        return "no defence was measured: nothing can be said of what to publish"
    if row.leak is None:
        missing = " and ".join(name for name in ("predmi", "expmi") if name not in rows)
        why = f"without the row {missing} no leak is known" if missing else "the undefended maps leak too little"
        return f"nothing can be said of {row.title}: {why}"
    count = len(content["settings"][row.name]["attackers"])
    attackers = f"the best of {count} attackers" if count > 1 else row.attacker
    beside = f" ({percent(row.beside[1])} {percents(row.beside[2])} to {row.beside[0]})" if row.beside else ""
    return (f"{row.title} leaves {percent(row.leak)} {percents(row.leak_span)} of the leak to {attackers}{beside}, "
            f"and {_worth(row, rows.get('cond-mean'))}")


def _worth(row: Point, mean: Point | None) -> str:
    """What the maps are worth, beside those that follow from the prediction alone."""
    said = f"its maps correlate by {row.kept:.2f} with the true ones"
    if mean is None or mean is row:
        return said
    if row.kept_span[0] > mean.kept_span[1]:
        return f"{said}, more than maps made from the prediction alone ({mean.kept:.2f})"
    return f"{said}, which is no more than maps made from the prediction alone do ({mean.kept:.2f})"


def _choose(rows: dict[str, Point], published: str) -> tuple[str | None, str]:
    """Of the rows in whose maps nothing was found beyond the prediction, the one that keeps most; none: no map."""
    defended = [row for row in rows.values() if row.defended and row.sound]
    tight = [row for row in defended if row.tight]
    if tight:
        row = max(tight, key=lambda row: row.kept)
        return row.name, (f"{row.name} ({row.title}). Of the rows in whose maps the attackers found no more than in the "
                          f"prediction, or cannot find more, it keeps most: {METRICS[USEFULNESS].title} {row.kept:.2f}, where "
                          f"the clean map has 1. {_assurance(row, published)}")
    untried = [name for name in ("cond-mean", "prototypes-16") if name not in rows]
    measure = f" Not measured here, and bounded: {' and '.join(untried)} (eval.py --settings)." if untried else ""
    if not defended:
        return None, f"nothing yet, because no defence has numbers that hold.{measure}"
    least = min(defended, key=lambda row: row.leak)
    return "predmi", (f"the prediction without a map. Every defended row leaks. The least is {least.name} ({least.title}) with "
                      f"{percent(least.leak)} {percents(least.leak_span)}.{measure}")


def _assurance(row: Point, published: str) -> str:
    """How far it holds that a row does not leak."""
    seen = f"Its measured residual leakage is {percent(row.leak)} {percents(row.leak_span)}"
    if row.beside:
        seen += f", and {percent(row.beside[1])} {percents(row.beside[2])} to {row.beside[0]}"
    if row.bits == 0:
        return (f"{seen}, but its maps follow from what is published of the prediction: they tell neither an attacker nor a "
                "user more about the image than that does.")
    seen += f", so {percent(max(high for _, high in row.spans))} cannot be ruled out"
    if find_row(row.name).draws:
        seen += ". This holds for one answer to each image, with a secret seed"
    if row.bits is None:
        return f"{seen}. It has no bound: a better attacker may recover more."
    return f"{seen}. No attacker can learn more than {bits(row.bits)} about an image from its map, {PUBLISHED[published]}."


def bits(value: float) -> str:
    """Rounded up: it is a bound."""
    rounded = -(-100 * value // 1) / 100
    return f"{rounded:g} bit{'' if rounded == 1 else 's'}"


def _unlearnt(rows: dict[str, Point], content: dict) -> list[str]:
    """Rows whose network was still improving when its epochs were over."""
    made = {name: content["networks"].get(name, {}) for name, row in rows.items() if not row.control and row.bits != 0}
    return [name for name, report in made.items()
            if report.get("early") is False and report["best_epoch"] >= report["epochs"] - 1]


def _unsound(rows: dict[str, Point], unlearnt: list[str], content: dict) -> list[Advice]:
    """Rows with a warning, and those of `unlearnt`. A warning of a row of 0 bits is about all the others."""
    advice = [Advice((row.name,), "unsound", warning) for row in rows.values() if row.bits != 0 for warning in row.warnings]
    if unlearnt:
        epochs = content["configuration"]["stages"]["inverter"]["epochs"]
        advice.append(Advice(tuple(unlearnt), "unsound", (
            f"{', '.join(unlearnt)}: the paper's attacker was still improving when its epochs were over. If it comes to beat "
            f"the best one, the row leaks more; train it longer: eval.py --epochs {2 * epochs}")))
    return advice


def _worse(rows: dict[str, Point], dominated: dict[str, list[str]], publish: str | None) -> list[Advice]:
    """Rows that another one beats, and rows that leak."""
    advice = []
    for row in rows.values():
        if not row.defended or row.leak is None or row.name == publish:
            continue
        better = dominated.get(row.name, [])
        other = rows.get(publish if publish in better else next(iter(better), ""))
        if other:
            worse = other.leak > row.leak, other.kept < row.kept
            leak, kept = (" that these images could tell" if is_worse else "" for is_worse in worse)
            advice.append(Advice((row.name,), "dominated", (
                f"{row.name}: {_leaks(row)}. {other.name} leaks no more{leak} ({percent(other.leak)} "
                f"{percents(other.leak_span)}) and keeps no less{kept} ({other.kept:.2f} against {row.kept:.2f}): "
                f"take {other.name}")))
        elif row.bits != 0 and any(low >= NOTHING for low, _ in row.spans):
            advice.append(Advice((row.name,), "unsafe", f"{row.name}: {_leaks(row)}: {_instead(row, publish)}"))
    return advice


def _leaks(row: Point) -> str:
    said = f"{row.attacker} gets {percent(row.leak)} {percents(row.leak_span)} of the leak"
    return said + (f", and {row.beside[0]} gets {percent(row.beside[1])} {percents(row.beside[2])}" if row.beside else "")


def _instead(row: Point, publish: str | None) -> str:
    """What to do about a row that leaks."""
    if publish not in (None, "predmi"):
        return f"publish {publish}"
    if find_row(row.name).defence == "gnime":
        return f"withhold the map, or train with a larger weight: train.py --weight A, then the row {injector_row(0)[:-1]}A"
    if DEFENCES[find_row(row.name).defence].number and row.bits is not None:
        return "withhold the map, or take fewer prototypes"
    return "withhold the map"
