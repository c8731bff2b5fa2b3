"""Latency and throughput of plain and protected explanations, and what protection adds, at batches of 1, 8 and 64.

The victims have the sizes of the digits' and of MNIST's, the explainer is LRP. Plain and protected calls take turns. The
percentage is the median over neighbours. The defence alone is also timed, in PyTorch and in onnxruntime (if it is installed).
"""

import importlib.util
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from common import Report, options
from torch import Tensor

from gnime import Protected, formats
from gnime.batches import channels_last
from gnime.config import target
from gnime.defences.cond_mean import CENTRES
from gnime.explainers.lrp import lrp
from gnime.networks import build, classifier_spec, injector_spec
from gnime.ops import accelerate
from gnime.system import retain_freed_memory

CLASSES, BATCHES = 10, (1, 8, 64)
DEFENDER = {"digits": 898, "mnist": 35_000}  # images of its half
CALLS = {"digits": {1: 400, 8: 400, 64: 100}, "mnist": {1: 150, 8: 100, 64: 20}}
AT_MOST = 5.0  # percent that prototypes-16 and cond-mean may add at batch 8


def defences(name: str) -> dict[str, torch.nn.Module]:
    """The three defences in the sizes that they have for the target, with random numbers: time does not depend on them."""
    size = target(name).size
    shape, centres = [1, size, size], min(CENTRES, DEFENDER[name])
    specs = {"prototypes-16": {"network": "prototypes", "shape": shape, "prototypes": 16 * CLASSES},
             "cond-mean": {"network": "cond-mean", "shape": shape, "classes": CLASSES, "centres": centres},
             "gnime": injector_spec(target(name), (1, size), CLASSES, 0.3, 0.2)}
    networks = {row: build(spec).eval().requires_grad_(False) for row, spec in specs.items()}
    made = {"prototypes": torch.rand(16 * CLASSES, *shape), "owner": torch.arange(16 * CLASSES) % CLASSES}
    networks["prototypes-16"].load_state_dict(networks["prototypes-16"].state_dict() | made)
    mean = networks["cond-mean"]
    mean.centres.normal_(std=CLASSES**-0.5)  # as standardised logits are, so that no weight is a denormal number
    mean.scale.fill_(CLASSES**0.5)
    mean.coefficients.normal_(std=0.02)
    return networks


def in_turn(works: list[Callable[[], object]], calls: int, clock: Callable[[], float]) -> list[list[float]]:
    """Seconds of each call of each work."""
    seconds = [[] for _ in works]
    for call in range(calls + 3):
        for work, kept in zip(works, seconds, strict=True):
            began = clock()
            work()
            kept += [clock() - began] if call >= 3 else []  # the first calls do not count
    return seconds


def in_onnxruntime(network: torch.nn.Module, example: tuple[Tensor, Tensor], threads: int) -> Callable | None:
    """The defence as onnxruntime runs it, or None where that is not installed."""
    if any(importlib.util.find_spec(name) is None for name in formats.NEEDS[".onnx"]):
        return None
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    content = formats.convert(network, example, ".onnx", {})
    run = onnxruntime.InferenceSession(content, settings, providers=["CPUExecutionProvider"]).run
    return lambda *given: run(None, dict(zip(formats.INPUTS, (value.numpy() for value in given), strict=True)))


def measure(report: Report, name: str, batches: Sequence[int], calls: Mapping[int, int]) -> None:
    """calls: of each work, by batch."""
    chosen, size = report.chosen, target(name).size
    clock = time.process_time if chosen.cpu_time else time.perf_counter
    victim = build(classifier_spec(target(name), CLASSES)).eval().requires_grad_(False).to(memory_format=torch.channels_last)
    networks, example = defences(name), (torch.rand(2, 1, size, size), torch.randn(2, CLASSES))
    record = {"image": [1, size, size], "maps": [1, size, size]}
    for row, network in networks.items():
        program = in_onnxruntime(network, example, chosen.threads)
        protected = Protected(victim, lrp, accelerate(network), record)  # of the same weights, as a service has one victim
        for batch in batches:
            images, case = torch.rand(batch, 1, size, size), f"{name}, batch {batch}"
            works = [partial(plain, victim, images), partial(protected.attribute, images)]
            without, seconds = in_turn(works, calls[batch], clock)
            state(report, f"{case}: plain, beside {row}", without, batch)
            state(report, f"{case}: {row}", seconds, batch)
            added = 100 * (statistics.median(a / b for a, b in zip(seconds, without, strict=True)) - 1)
            report.number(f"{case}: {row} adds, %", added)
            if batch == 8 and row != "gnime":
                report.claim(f"{case}: {row} adds to LRP, %", added, AT_MOST, at_most=True)
            given, alone = (lrp(victim, channels_last(images)), victim(images)), {"PyTorch": network, "onnxruntime": program}
            works = {library: partial(work, *given) for library, work in alone.items() if work}
            for library, values in zip(works, in_turn(list(works.values()), calls[batch], clock), strict=True):
                state(report, f"{case}: {row} alone, {library}", values, batch)


def plain(victim: torch.nn.Module, images: Tensor) -> Tensor:
    return lrp(victim, channels_last(images))


def state(report: Report, name: str, seconds: list[float], batch: int) -> None:
    report.times(name, seconds)
    report.number(f"{name}, p99 s", statistics.quantiles(seconds, n=100, method="inclusive")[98])
    report.number(f"{name}, images/s", batch / statistics.median(seconds))


def main():
    chosen = options(__doc__)
    retain_freed_memory()
    report = Report(chosen)
    torch.set_grad_enabled(False)
    for name, calls in CALLS.items():
        measure(report, name, BATCHES[:2] if chosen.quick else BATCHES, dict.fromkeys(BATCHES, 20) if chosen.quick else calls)
    report.finish()


if __name__ == "__main__":
    main()
