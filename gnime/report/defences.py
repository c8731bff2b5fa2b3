"""What each row leaves of the leak and keeps of its maps, over seeds, for docs/results.md. Pure."""

from collections import Counter

from ..registry import ATTACKERS, EXPLAINERS
from .groups import DEFAULT, comparable, group
from .seeds import agreement, leak_of_one, sentence, shown
from .spread import Seeds, gather


def defence_tables(runs: list[dict]) -> list[str]:
    """For each target and explainer: residual leakage, usefulness and domination of every row, and what to publish.

    Only of the default mode, and of the seeds that had the most attackers. Older results without a verdict are left out.
    """
    lines = []
    for (name, xai, official), found in sorted(group(runs).items()):
        judged = [run for run in comparable(found) if "verdict" in run]
        if official == DEFAULT and judged:
            seeds = gather(judged)
            attackers = [ATTACKERS[attacker].title for attacker in judged[0]["configuration"]["attackers"]]
            numbers = ", ".join(map(str, seeds.numbers))
            made = f"Seeds {numbers}, mean ± standard deviation" if len(judged) > 1 else f"Seed {numbers}, 95 % over images"
            lines += [f"### {name}, {EXPLAINERS[xai].title}: what to publish", "",
                      f"{made}; {judged[0]['n']['test']} test images; attackers {', '.join(attackers)}.", "", *_rows(seeds), "",
                      sentence(seeds), "", f"Publish: {agreement(seeds)}", ""]
    return lines


def _rows(seeds: Seeds) -> list[str]:
    table = ["| row | residual leakage | Pearson | decisive attacker | dominated by |", "|---|---|---|---|---|"]
    for name in seeds.names:
        numbers, row = shown(seeds, name), seeds.having(name)[0][2]
        leak = numbers["residual leakage"] if len(seeds.runs) > 1 else leak_of_one(name, row)
        fewer = f" (n={n})" if (n := len(seeds.having(name))) < len(seeds.runs) else ""
        cells = name + fewer, leak, numbers["usefulness"], seeds.point(name).attacker, _dominated(seeds, name)
        table.append(f"| {' | '.join(cells)} |")
    return table


def _dominated(seeds: Seeds, name: str) -> str:
    """The rows that leak less, and keep no less, with every seed; else the number of seeds in which there is one."""
    better = [verdict.dominated.get(name, ()) for _, verdict, _ in seeds.having(name)]
    counts = Counter(row for rows in better for row in rows)
    always = [row for row in seeds.names if counts[row] == len(better)]
    some = sum(map(bool, better))
    return ", ".join(always) or (f"in {some} of {len(better)} seeds" if some else "-")
