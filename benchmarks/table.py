"""Writes the tables of docs/performance.md from the files in benchmarks/results/ alone. A test compares them."""

import json
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
DOCUMENT = HERE.parent / "docs/performance.md"
MARKS = "<!-- written by `python benchmarks/table.py` -->", "<!-- until here -->"
FILES = "step", "explain", "busy", "protect", "serve", "startup", "memory", "precision"
STEPS = {name: f"{name} step, batch 128, mnist, width 2048" for name in ("injector", "predmi", "victim")}
OTHERS = {"grad": "captum", "gradcam": "captum", "lrp": "zennit"}  # the library that an explainer is compared with


def tables() -> str:
    """What stands between the marks."""
    found = {name: json.loads((HERE / f"results/{name}.json").read_text(encoding="utf-8")) for name in FILES}
    steps, explanations = (found[name]["figures"] for name in ("step", "explain"))
    parts = claims(found), medians(steps, explanations), ceiling(steps), origins(found)
    return "\n\n".join("\n".join(lines) for lines in parts)


def claims(found: dict[str, dict]) -> Iterator[str]:
    yield from ("| claim | measured | target | |", "|---|---|---|---|")
    for claim in (claim for file in found.values() for claim in file["claims"]):
        target = f"{'at most' if claim['at_most'] else 'at least'} {claim['target']:g}"
        yield f"| {claim['claim']} | {claim['measured']:.2f} | {target} | {'ok' if claim['ok'] else 'short'} |"


def medians(steps: dict, explanations: dict) -> Iterator[str]:
    """Of a library that was measured with several batches, the fastest. A processor may have no bf16."""
    yield from ("| median seconds | plain, or the other library | ours | ours, bf16 |", "|---|---|---|---|")
    for name, title in STEPS.items():
        sides = (steps.get(f"{name} step {side}") for side in ("fp32: plain", "fp32: ours", "bf16: ours"))
        times = ["{median:.2f}".format(**side) if side else "-" for side in sides]
        yield f"| {title} | {' | '.join(times)} |"
    for name, library in OTHERS.items():
        theirs = min(side["median"] for key, side in explanations.items() if key.startswith(f"{name}: {library}"))
        ours = explanations[f"{name}: ours"]["median"]
        yield f"| {name}, 256 images, against {library} | {theirs:.2f} | {ours:.2f} | - |"


def origins(found: dict[str, dict]) -> Iterator[str]:
    yield "| file | commit | processor | device | PyTorch, Python | load in the 1, 5 and 15 minutes before |"
    yield "|---|---|---|---|---|---|"
    for name, file in found.items():
        versions, hardware = file["versions"], file["hardware"]
        device = hardware["device"].replace(" 1 threads", " 1 thread")  # as older versions wrote it
        yield (f"| {name}.json | {file['commit']} | {hardware['cpu']}, {hardware['cores']} cores | {device} | "
               f"{versions['torch']}, {versions['python']} | {', '.join(f'{load:.1f}' for load in file['load'])} |")


def ceiling(steps: dict) -> Iterator[str]:
    rate = steps["ceiling, G operations a second"]["value"]
    counts = {name: steps[f"{name} step: products, G operations"]["value"] for name in STEPS}
    seconds = [f"{count / rate:.2f} s ({name})" for name, count in counts.items()]
    yield f"The processor's ceiling, the rate of the library's best convolution in that run: {rate:.0f} G operations a second."
    yield f"At that rate the products of the plain formulation take {', '.join(seconds[:-1])} and {seconds[-1]}."


def document() -> str:
    """docs/performance.md with the tables of these files."""
    before, rest = DOCUMENT.read_text(encoding="utf-8").split(MARKS[0])
    return f"{before}{MARKS[0]}\n\n{tables()}\n\n{MARKS[1]}{rest.split(MARKS[1])[1]}"


if __name__ == "__main__":
    DOCUMENT.write_text(document(), encoding="utf-8")
