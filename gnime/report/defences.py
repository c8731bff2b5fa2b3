"""What each row leaves of the leak and keeps of its maps, over seeds, for docs/results.md and README.md. Pure."""

from collections import Counter
from collections.abc import Iterator

from ..metrics.leakage import NOTHING
from ..registry import ATTACKERS, EXPLAINERS
from .groups import DEFAULT, comparable, group
from .seeds import agreement, frontier, leak_of_one, sentence, shown
from .spread import NOT_KNOWN, Seeds, by_seed, gather

SUMMARISED = "rnd", "gnime@30", "gnime", "cond-mean", "prototypes-16", "cond-prototypes-8"  # README has no room for all


def defence_tables(runs: list[dict], where: str = "", pictures: bool = False) -> list[str]:
    """For each target and explainer: residual leakage, usefulness and domination of every row, and what to publish.

    where: which runs, for the headings. pictures: whether the frontiers are beside the document.
    """
    lines = []
    for key, title, seeds in judged(runs):
        first, numbers = seeds.runs[0], ", ".join(map(str, seeds.numbers))
        attackers = [ATTACKERS[attacker].title for attacker in first["configuration"]["attackers"]]
        made = f"Seeds {numbers}, mean ± standard deviation" if len(seeds.runs) > 1 else f"Seed {numbers}, 95 % over images"
        lines += [f"### {title}: what to publish" + (f" ({where})" if where else ""), "",
                  f"{made}; {first['n']['test']} test images; attackers {', '.join(attackers)}.", "", *_rows(seeds), ""]
        if pictures and frontier(seeds)[0]:
            lines += [f"![Usefulness of the maps of each row against what they leak](figures/{name_of_frontier(*key)})", ""]
        lines += [sentence(seeds), "", f"Publish: {agreement(seeds)}", "", *_too_large(seeds)]
    return lines


def _too_large(seeds: Seeds) -> list[str]:
    """Rows whose maps add nothing to the prediction and seem to leak, by more than chance."""
    leaky = [(name, run["seed"]) for name in seeds.names for run, _, row in seeds.having(name)
             if row.bits == 0 and row.leak is not None and row.leak_span[0] >= NOTHING]
    found = by_seed(leaky, len(seeds.runs))
    return [f"Warning: the maps of {' and '.join(f'{name} ({which})' for name, which in found.items())} add nothing to the "
            "prediction, and seem to leak. Either attackers learn less from the prediction than it tells, and then the leakage "
            "of the other rows is too large too, by up to about as much; or the maps tell of the defender's images.",
            ""] if found else []


def summary_table(runs: list[dict]) -> list[str]:
    """For each target and explainer one line: residual leakage and Pearson correlation of the rows SUMMARISED."""
    table = [f"| | seeds | {' | '.join(f'`{name}`' for name in SUMMARISED)} |", "|---" * (2 + len(SUMMARISED)) + "|"]
    for _, title, seeds in judged(runs):
        cells = [_cell(seeds, name) if seeds.having(name) else "not measured" for name in SUMMARISED]
        table.append(f"| {title} | {len(seeds.runs)} | {' | '.join(cells)} |")
    return table


def _cell(seeds: Seeds, name: str) -> str:
    leak, kept = shown(seeds, name)["residual leakage"], seeds.kept(name).mean
    return f"{leak}, {NOT_KNOWN if kept is None else format(kept, '.2f')}{_fewer(seeds, name)}"


def name_of_frontier(target: str, xai: str) -> str:
    return f"frontier_{target}_{xai}.png"


def judged(runs: list[dict]) -> Iterator[tuple[tuple[str, str], str, Seeds]]:
    """(target, explainer), title and seeds of each target and explainer.

    Only of the default mode, and of the seeds that had the most attackers. Older results without a verdict are left out.
    """
    for (name, xai, official), found in sorted(group(runs).items()):
        having = [run for run in comparable(found) if "verdict" in run]
        if official == DEFAULT and having:
            yield (name, xai), f"{name}, {EXPLAINERS[xai].title}", gather(having)


def _fewer(seeds: Seeds, name: str) -> str:
    """The number of seeds that have the row, where it is not that of all."""
    return f" (n={n})" if (n := len(seeds.having(name))) < len(seeds.runs) else ""


def _rows(seeds: Seeds) -> list[str]:
    table = ["| row | residual leakage | Pearson | decisive attacker | dominated by |", "|---|---|---|---|---|"]
    for name in seeds.names:
        numbers, row = shown(seeds, name), seeds.having(name)[0][2]
        leak = numbers["residual leakage"] if len(seeds.runs) > 1 else leak_of_one(name, row)
        cells = name + _fewer(seeds, name), leak, numbers["usefulness"], seeds.point(name).attacker, _dominated(seeds, name)
        table.append(f"| {' | '.join(cells)} |")
    return table


def _dominated(seeds: Seeds, name: str) -> str:
    """The rows that dominate it with every seed (`verdict.Verdict`); else in how many seeds there is one."""
    better = [verdict.dominated.get(name, ()) for _, verdict, _ in seeds.having(name)]
    counts = Counter(row for rows in better for row in rows)
    always = [row for row in seeds.names if counts[row] == len(better)]
    some = sum(map(bool, better))
    varying = f"another row in each of {some} seeds" if some == len(better) else f"in {some} of {len(better)} seeds"
    return ", ".join(always) or (varying if some else "-")
