"""One device at the paper's MNIST sizes: epochs through the software's own training loops, explanations, memory, and the
share of the device's matrix rate, measured beside them.

    python benchmarks/device.py --gpu 0 --json benchmarks/results/device.json

Pictures are random: what they show does not change what is computed. On a CPU (`--gpu -1`), and with `--quick`, a few
images show that it runs, nothing else.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from common import Report, options
from torch.utils.flop_counter import FlopCounterMode

from gnime.batches import AT_ONCE, cache_on_device, channels_last
from gnime.config import Run, Target, target
from gnime.device import Device, full_fp32
from gnime.networks import build, classifier_spec, injector_spec, inverter_spec
from gnime.ops import accelerate
from gnime.registry import EXPLAINERS
from gnime.resuming import StateFile
from gnime.training import MinMaxTask, TrainingTask, cross_entropy, fit, fit_minmax, mean_squared_error

MNIST, CLASSES = target("mnist"), 10
EPOCHS = 5  # the first does not count: kernels are chosen in it


def open_device(gpu: int, precision: str, deterministic: bool = False) -> Device:
    run = Run("train", MNIST, "lrp", Path(), Path(), gpu=gpu, precision=precision, deterministic=deterministic)
    return Device(run)


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


@dataclass
class Training:
    """One training as the scripts run it.

    Attributes:
        rows, images: that there are, and that it sees in an epoch.
        batch: images a step.
        train: (epochs, rows, clock) -> trains on the first `rows` rows, and calls the clock at each epoch's end.
    """

    rows: int
    images: int
    batch: int
    train: Callable[[int, int, Clock], None]

    def seconds(self, device: Device, epochs: int = EPOCHS) -> tuple[list[float], float]:
        """Seconds of each epoch after the first, and seconds until the first has ended."""
        clock, began = Clock(device), time.perf_counter()
        self.train(epochs, self.rows, clock)
        return clock.gaps(), clock.at[0] - began

    def operations(self, device: Device) -> float:
        """Additions and multiplications of an epoch's products and convolutions, counted in one step."""
        with FlopCounterMode(display=False) as counter:
            self.train(1, self.batch, Clock(device))
        return counter.get_total_flops() * self.images / self.batch


def trainings(device: Device, n: int, most: int, sizes: Target = MNIST) -> dict[str, Training]:
    """The trainings by name, on n rows in batches of `most` at most."""
    shape = sizes.channels, sizes.size
    pictures = torch.randint(0, 256, (n, shape[0], shape[1], shape[1]), dtype=torch.uint8)
    arrays = pictures, torch.rand(pictures.shape), torch.randn(n, CLASSES), torch.randint(0, CLASSES, (n,))
    images, explanations, logits, labels = (cache_on_device(array.numpy(), device.torch) for array in arrays)

    def config(kind, epochs=1):
        chosen = getattr(sizes, kind)
        return replace(chosen, epochs=epochs, batch_size=min(most, chosen.batch_size, n))

    def injector(epochs, rows, clock):
        specs = injector_spec(sizes, shape, CLASSES, 0.5, 0.3), inverter_spec("expmi", sizes, shape, CLASSES)
        networks = [accelerate(build(spec)) for spec in specs]
        sources = [explanations, logits, images]
        task = MinMaxTask(*networks, config("injector", epochs), sources, range(rows), 100.0, 0, 1, clock)
        with tempfile.TemporaryDirectory() as folder:
            fit_minmax(task, StateFile(Path(folder) / "state.pt", Path(folder), {}), device)

    def supervised(spec, kind, sources, loss):
        def train(epochs, rows, clock):
            network = accelerate(build(spec))
            task = TrainingTask("benchmark", network, config(kind, epochs), sources, range(rows), loss, clock, False, 0)
            with tempfile.TemporaryDirectory() as folder:
                fit(task, StateFile(Path(folder) / "state.pt", Path(folder), {}), device)
        return train

    predmi, expmi = (inverter_spec(kind, sizes, shape, CLASSES) for kind in ("predmi", "expmi"))
    batch = {kind: config(kind).batch_size for kind in ("injector", "inverter", "classifier")}
    return {
        "injector": Training(n, n // batch["injector"] * batch["injector"], batch["injector"], injector),
        "expmi": Training(n, n, batch["inverter"],
                          supervised(expmi, "inverter", [explanations, logits, images], mean_squared_error)),
        "predmi": Training(n, n, batch["inverter"], supervised(predmi, "inverter", [None, logits, images], mean_squared_error)),
        "victim": Training(n, n, batch["classifier"],
                           supervised(classifier_spec(sizes, CLASSES), "classifier", [images, labels], cross_entropy)),
    }


def main():
    chosen = options(__doc__, gpu=True)
    whole = chosen.gpu >= 0 and not chosen.quick
    n, most = (35_000, 1024) if whole else (64, 32)
    report = None
    for precision in ("tf32", "bf16") if chosen.gpu >= 0 else ("fp32",):
        device = open_device(chosen.gpu, precision)
        report = report or Report(chosen, device.describe())
        top = rate(device, 8192 if whole else 1024)
        report.number(f"{precision} matrix rate, G operations a second", top / 1e9)
        for name, training in trainings(device, n, most).items():
            seconds, _ = training.seconds(device)
            report.times(f"{name}, {precision}, an epoch of {training.images} images", seconds)
            share = training.operations(device) / min(seconds) / top
            report.number(f"{name}, {precision}: share of the matrix rate", share)
            if name == "injector" and whole:
                report.claim(f"injector's epoch, mnist, {precision}, seconds", min(seconds), 0.35, at_most=True)
    report.number("bandwidth of a copy, GB a second", bandwidth(device, 2**28 if whole else 2**20) / 1e9)
    victim = build(classifier_spec(MNIST, CLASSES)).eval().requires_grad_(False)
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
