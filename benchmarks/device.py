"""One device at the paper's MNIST sizes: epochs through the software's own training loops, explanations, memory, and the
share of the device's matrix rate, measured beside them.

    python benchmarks/device.py --gpu 0 --json benchmarks/results/device.json

Pictures are random: what they show does not change what is computed. On a CPU (`--gpu -1`), and with `--quick`, a few
images show that it runs, nothing else.
"""

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from common import Report, options
from torch.utils.flop_counter import FlopCounterMode

from gnime.batches import AT_ONCE, cache_on_device, channels_last
from gnime.config import Run, target
from gnime.device import Device, full_fp32
from gnime.networks import build, classifier_spec, injector_spec, inverter_spec
from gnime.ops import accelerate
from gnime.registry import EXPLAINERS
from gnime.resuming import StateFile
from gnime.training import MinMaxTask, TrainingTask, cross_entropy, fit, fit_minmax, mean_squared_error

SHAPE, CLASSES = (1, 32), 10
EPOCHS = 5  # the first does not count: kernels are chosen in it


class Clock:
    """Seconds between calls, each of which waits for the device."""

    def __init__(self, device):
        self.device, self.at = device.torch, []

    def __call__(self, *_) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.at.append(time.perf_counter())
        return -self.at[-1]  # as a validation error, one that falls

    def gaps(self) -> list[float]:
        return [after - before for before, after in zip(self.at[:-1], self.at[1:], strict=True)]


def rate(device: Device, side: int) -> float:
    """Operations a second of a square matrix product in the run's precision: the best of twenty."""
    kind = torch.bfloat16 if device.precision == "bf16" else torch.float32
    one, other = (torch.rand(side, side, device=device.torch, dtype=kind) for _ in range(2))
    clock = Clock(device)
    for _ in range(20):
        one @ other
        clock()
    return 2 * side**3 / min(clock.gaps())


def bandwidth(device: Device, numbers: int) -> float:
    """Bytes a second that a copy reads and writes: the best of twenty."""
    source = torch.rand(numbers, device=device.torch)
    into, clock = torch.empty_like(source), Clock(device)
    for _ in range(20):
        into.copy_(source)
        clock()
    return 8 * numbers / min(clock.gaps())


def trainings(device: Device, n: int, most: int):
    """Name -> (images an epoch, work): what the scripts do, on n rows in batches of `most` at most; `work(clock)` calls the
    clock at each epoch's end."""
    mnist = target("mnist")
    pictures = torch.randint(0, 256, (n, 1, 32, 32), dtype=torch.uint8)
    arrays = pictures, torch.rand(n, 1, 32, 32), torch.randn(n, CLASSES), torch.randint(0, CLASSES, (n,))
    images, explanations, logits, labels = (cache_on_device(array.numpy(), device.torch) for array in arrays)

    def stage(kind):
        chosen = getattr(mnist, kind)
        return replace(chosen, epochs=EPOCHS, batch_size=min(most, chosen.batch_size))

    def injector(clock):
        specs = injector_spec(mnist, SHAPE, CLASSES, 0.5, 0.3), inverter_spec("expmi", mnist, SHAPE, CLASSES)
        networks = [accelerate(build(spec)) for spec in specs]
        game = MinMaxTask(*networks, stage("injector"), [explanations, logits, images], range(n), 100.0, 0, 1, clock)
        with tempfile.TemporaryDirectory() as folder:
            fit_minmax(game, StateFile(Path(folder) / "state.pt", Path(folder), {}), device)

    def supervised(network, kind, sources, loss):
        def work(clock):
            task = TrainingTask("benchmark", accelerate(build(network)), stage(kind), sources, range(n), loss, clock, False, 0)
            with tempfile.TemporaryDirectory() as folder:
                fit(task, StateFile(Path(folder) / "state.pt", Path(folder), {}), device)
        return work

    predmi, expmi = (inverter_spec(kind, mnist, SHAPE, CLASSES) for kind in ("predmi", "expmi"))
    return {
        "injector": (n // stage("injector").batch_size * stage("injector").batch_size, injector),
        "expmi": (n, supervised(expmi, "inverter", [explanations, logits, images], mean_squared_error)),
        "predmi": (n, supervised(predmi, "inverter", [None, logits, images], mean_squared_error)),
        "victim": (n, supervised(classifier_spec(mnist, CLASSES), "classifier", [images, labels], cross_entropy)),
    }


def main():
    chosen = options(__doc__, gpu=True)
    whole = chosen.gpu >= 0 and not chosen.quick
    n, most = (35_000, 1024) if whole else (64, 32)
    report = None
    for precision in ("tf32", "bf16") if chosen.gpu >= 0 else ("fp32",):
        device = Device(Run("train", target("mnist"), "lrp", Path(), Path(), gpu=chosen.gpu, precision=precision))
        report = report or Report(chosen, device.describe())
        top = rate(device, 8192 if whole else 1024)
        report.number(f"{precision} matrix rate, G operations a second", top / 1e9)
        for name, (images, work) in trainings(device, n, most).items():
            clock = Clock(device)
            work(clock)
            report.times(f"{name}, {precision}, an epoch of {images} images", clock.gaps())
            with FlopCounterMode(display=False) as counter:  # once more, untimed
                work(Clock(device))
            share = counter.get_total_flops() / EPOCHS / min(clock.gaps()) / top
            report.number(f"{name}, {precision}: share of the matrix rate", share)
            if name == "injector" and whole:
                report.claim(f"injector's epoch, mnist, {precision}, seconds", min(clock.gaps()), 0.35, at_most=True)
    report.number("bandwidth of a copy, GB a second", bandwidth(device, 2**28 if whole else 2**20) / 1e9)
    victim = build(classifier_spec(target("mnist"), CLASSES)).eval().requires_grad_(False)
    victim.to(device.torch, memory_format=torch.channels_last)
    batch = channels_last(torch.rand(AT_ONCE[device.torch.type], 1, 32, 32, device=device.torch))
    for name, explainer in EXPLAINERS.items():
        explain, clock = explainer.load(), Clock(device)
        with full_fp32():
            for _ in range(10):
                explain(victim, batch)
                clock()
        report.times(f"{name}, {len(batch)} images", clock.gaps())
    if device.torch.type == "cuda":
        report.number("peak device memory, MiB", torch.cuda.max_memory_allocated(device.torch) / 2**20)
    report.finish()


if __name__ == "__main__":
    main()
