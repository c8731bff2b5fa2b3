"""What follows from the numbers: a sentence, what to publish, and what to do about each row. Reads `results.json` alone."""

from collections.abc import Iterable
from dataclasses import dataclass

from ..config import PUBLISHED
from ..metrics.leakage import NOTHING
from ..registry import DEFENCES, METRICS, RESIDUAL, USEFULNESS, find_row, injector_row
from .points import Point, bits, percent, percents, points

FOLLOW = ("follow from what is published of the prediction: they tell neither an attacker nor a user more about the image than "
          "that does")  # said of maps of 0 bits
ENDS = "predmi", "expmi"  # the rows to which every leak is relative: 0 and 100 %
LITTLE = "the undefended maps help the attackers too little to measure a leak"
KINDS = {"unsound": "cannot be trusted yet", "dominated": "dominated", "unsafe": "leaks"}


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
        return [f"verdict: {self.sentence}.", f"publish: {self.reason}",
                *(f"{KINDS[advice.kind]}: {advice.text}" for advice in self.advice)]


def subject(names: list[str]) -> str | None:
    """The row that the run is about: GNIME's, or the first defended one."""
    rows = [find_row(name) for name in names if not find_row(name).control]
    usual = [row.name for row in rows if row.name == "gnime"] or [row.name for row in rows if row.defence == "gnime"]
    return next(iter(usual or [row.name for row in rows if row.defence not in (None, "none")]), None)


def published(content: dict) -> str:
    """The form of the predictions that the service publishes, a name in `PUBLISHED`. A record has its own."""
    return content["record"]["published"] if "record" in content else content["configuration"].get("published", "logits")


def judge(content: dict) -> Verdict:
    """The verdict of `results.json`."""
    rows = points(content)
    dominated = {row.name: better for row in rows.values() if row.defended and (better := _dominators(row, rows))}
    name = subject(list(rows))
    publish, reason = _choose(rows, content)
    unlearnt = _unlearnt(rows, content)
    if publish in unlearnt and publish != "predmi":
        reason += " But its attacker was still learning: see below."
    advice = [*_unsound(rows, unlearnt, content), *_worse(rows, dominated, publish)]
    sentence = _sentence(rows.get(name), rows, content)
    return Verdict(sentence[0].upper() + sentence[1:], publish, reason, tuple(advice), dominated)


def _dominators(row: Point, rows: dict[str, Point]) -> list[str]:
    """Rows that leak no more and keep no less, one of the two beyond both 95 % intervals; the most useful first.

    Maps of 0 bits leak nothing, whatever attackers learn from the defender's images in them. So none leaks less than they do.
    """
    if row.leak is None or row.kept is None:
        return []
    better = []
    for other in rows.values():
        if other.defended and other.sound and other.kept is not None and other.name != row.name:
            (_, span), (_, others) = row.worst, other.worst
            leaks_less = others[1] < span[0] and row.bits != 0
            keeps_more = other.kept_span[0] > row.kept_span[1]
            leaks_more, keeps_less = others[0] > span[1], other.kept_span[1] < row.kept_span[0]
            if (leaks_less or keeps_more) and not (leaks_more or keeps_less):
                better.append(other)
    return [other.name for other in sorted(better, key=lambda other: -other.kept)]


def _sentence(row: Point | None, rows: dict[str, Point], content: dict) -> str:
    if row is None:
        return "no defence was measured: nothing can be said of what to publish"
    if row.leak is None:
        why, remedy = unknown(row.name, content)
        return f"nothing can be said of {row.title}: {why}" + (f"; {remedy}" if remedy else "")
    count = len(content["settings"][row.name]["attackers"])
    attackers = f"the best of {count} attackers" if count > 1 else row.attacker
    beside = f" ({percent(row.beside[1])} {percents(row.beside[2])} to {row.beside[0]})" if row.beside else ""
    attackers += ", which made no use of its maps" if row.ignored else ""
    return (f"{row.title} leaves {percent(row.leak)} {percents(row.leak_span)} of the leak to {attackers}{beside}, "
            f"and {_worth(row, rows.get('cond-mean'))}")


def lacking(names: Iterable[str]) -> list[str]:
    """The rows, of the two to which every leak is relative, that are not among these."""
    return [name for name in ENDS if name not in names]


def unknown(name: str, content: dict) -> tuple[str, str]:
    """Why the leak of a row is not known, and what to do about that where something can be done."""
    missing, settings = lacking(content["settings"]), content["settings"]
    if missing:
        rows, are, them = ("rows", "are", "them") if len(missing) > 1 else ("row", "is", "it")
        unfinished = set(missing) <= set(content["configuration"].get("settings", ()))
        why = f"the {rows} {' and '.join(missing)}, to which every leak is relative, {are} not "
        if unfinished:
            return f"{why}finished", "run the same command again"
        return f"{why}measured", f"add {them} to --settings"
    leak = settings[name].get(RESIDUAL)
    if leak is None or settings[name].get(f"{RESIDUAL}_interval", ()) is None:
        return LITTLE, ""
    why = f"its residual leakage would be {percent(leak)}, which no leak can be: its attackers have not converged"
    return why, "train longer"


def _worth(row: Point, mean: Point | None) -> str:
    """What the maps are worth, beside those that follow from the prediction alone."""
    said = f"its maps correlate by {row.kept:.2f} with the true ones"
    if mean is None or mean is row:
        return said
    if row.kept_span[0] > mean.kept_span[1]:
        return f"{said}, more than maps made from the prediction alone ({mean.kept:.2f})"
    told = ", as far as these images can tell" if row.kept > mean.kept else ""
    return f"{said}, which is no more than maps made from the prediction alone do ({mean.kept:.2f}){told}"


def _choose(rows: dict[str, Point], content: dict) -> tuple[str | None, str]:
    """Of the rows in whose maps nothing was found beyond the prediction, the one that keeps most; none: no map."""
    defended = [row for row in rows.values() if row.defended]
    tight = [row for row in defended if row.tight]
    row = max(tight, key=lambda row: row.kept, default=None)
    if row and row.kept_span[0] <= 0:
        return "predmi", (f"the prediction without a map. In the maps of {row.name} the attackers found no more than in the "
                          f"prediction, but these maps do not correlate with the true ones ({row.kept:.2f}).")
    if row:
        return row.name, (f"{row.name} ({row.title}). Of the rows in whose maps the attackers found no more than in the "
                          f"prediction, or cannot find more, it keeps most: {METRICS[USEFULNESS].title} {row.kept:.2f}, where "
                          f"the clean map has 1. {_assurance(row, published(content))}{_others(row, tight)}")
    untried = [name for name in ("cond-mean", "prototypes-16") if name not in rows]
    measure = f" Not measured here, and bounded: {' and '.join(untried)} (eval.py --settings)." if untried else ""
    known = [row for row in defended if row.sound or row.leaks]
    if not known:
        return None, f"nothing yet, because {_nothing_known(defended, content, measure)}"
    least = min(known, key=lambda row: row.worst[0])
    which = "" if len(known) == len(defended) else " whose numbers hold"
    return "predmi", (f"the prediction without a map. Every defended row{which} leaks. The least is {least.name} "
                      f"({least.title}): {_leaks(least)}.{measure}")


def _nothing_known(defended: list[Point], content: dict, measure: str) -> str:
    """Why nothing is known of any of these rows, and what to do; `measure` where other rows may help."""
    if missing := lacking(content["settings"]):
        return f"no leak is known without {' and '.join(missing)}.{measure}"
    if defended and all(row.leak is None and unknown(row.name, content)[0] == LITTLE for row in defended):
        return f"{LITTLE}. More images may show one."
    return f"no defence {'has numbers that hold' if defended else 'was measured'}.{measure}"


def _others(row: Point, tight: list[Point]) -> str:
    """Why a row of 0 bits is taken, and not one in which less was found."""
    names = [other.name for other in tight if other.bits != 0]
    if row.bits != 0 or not names:
        return ""
    return f" In the maps of {' and '.join(names)} no leak was found either, but they may say more than the prediction."


def _assurance(row: Point, published: str) -> str:
    """How far it holds that a row does not leak."""
    seen = f"Its measured residual leakage is {percent(row.leak)} {percents(row.leak_span)}"
    if row.ignored:
        seen += ", because the best attacker made no use of its maps"
    if row.beside:
        seen += f", and {percent(row.beside[1])} {percents(row.beside[2])} to {row.beside[0]}"
    if row.bits == 0:
        return f"{seen}, but its maps {FOLLOW}."
    if (most := max(high for _, (_, high) in row.found)) >= NOTHING:
        seen += f", so {percent(most)} cannot be ruled out"
    if find_row(row.name).draws:
        seen += ". This holds for one answer to each image, with a secret seed"
    return f"{seen}. {bound(row, published)}"


def bound(row: Point, published: str) -> str:
    """What attackers that nobody tried can learn."""
    if row.bits is None:
        return "It has no bound: a better attacker may recover more."
    return f"No attacker can learn more than {bits(row.bits)} about an image from its map, {PUBLISHED[published]}."


def _unlearnt(rows: dict[str, Point], content: dict) -> list[str]:
    """Rows whose network was still improving when its epochs were over."""
    made = {name: content["networks"].get(name, {}) for name, row in rows.items() if not row.control and row.bits != 0}
    return [name for name, report in made.items()
            if report.get("early") is False and report["best_epoch"] >= report["epochs"] - 1]


def _unsound(rows: dict[str, Point], unlearnt: list[str], content: dict) -> list[Advice]:
    """Rows with a warning, and those of `unlearnt`. A warning of a row of 0 bits is about all the others."""
    advice = [Advice((row.name,), "unsound", warning) for row in rows.values() if row.bits != 0 for warning in row.warnings]
    epochs = content["configuration"]["stages"]["inverter"]["epochs"]
    for names, then in (([name for name in unlearnt if name not in ENDS], "the row leaks more"),
                        ([name for name in unlearnt if name in ENDS], "the other rows' leakage is smaller")):
        if names:
            advice.append(Advice(tuple(names), "unsound", (
                f"{', '.join(names)}: the paper's attacker was still improving when its epochs were over. If it comes to beat "
                f"the best one, {then}; train it longer: eval.py --epochs {2 * epochs}")))
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
            (found, span), worse = other.worst, (other.worst[0] > row.worst[0], other.kept < row.kept)
            leak, kept = (", as far as these images can tell" if is_worse else "" for is_worse in worse)
            advice.append(Advice((row.name,), "dominated", (
                f"{row.name}: {_leaks(row)}. {other.name} leaks no more{leak} ({percent(found)} "
                f"{percents(span)}), and keeps no less{kept} ({other.kept:.2f} against {row.kept:.2f}): "
                f"take {other.name}")))
        elif row.leaks:
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
