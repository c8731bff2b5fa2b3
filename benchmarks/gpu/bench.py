"""The benchmark of a run. Every figure goes to OUT/bench.json at once, so a limit cuts off only what comes last.

    python bench.py epochs ways kernels pooling upsampling compiled     # all, or some, in the order given

`compiled` is last, since compiling a step takes a minute or more.
"""

import sys

import env
import kernels
import pooling
import torch
import upsampling
import ways
from device import bandwidth, rate, trainings

EPOCHS = 3
FIGURES: dict[str, object] = {}


def note(name: str, value: object) -> None:
    FIGURES[name] = value
    env.put("bench.json", FIGURES)
    env.log(f"{name:<58}", f"{value:.4g}" if isinstance(value, float) else value)


def precisions() -> list[str]:
    return [p for p in ("tf32", "bf16") if p in env.decided()["precisions"]] or ["fp32"]


def measure_epochs() -> None:
    """Epochs of the scripts' own trainings at the paper's MNIST sizes, beside the device's rates."""
    whole = env.on_gpu() and not env.TINY
    for precision in precisions() if whole else ["fp32"]:
        device = env.open_device(precision)
        note(f"{precision}: device", device.describe())
        top = rate(device, 8192 if whole else 256)
        note(f"{precision}: matrix rate, TFLOP/s", top / 1e12)
        n, most = (35_000, 1024) if whole else (8, 8)
        for name, training in trainings(device, n, most, env.targets()[0]).items():
            if env.left() < 60:
                return
            seconds, first = training.seconds(device, EPOCHS if whole else 2)
            share = training.operations(device) / min(seconds) / top
            note(f"{precision}: {name}, an epoch of {training.images} images",
                 {"seconds": round(min(seconds), 4), "share of matrix rate": round(share, 4),
                  "seconds to the end of the first": round(first, 2)})
    note("copy, GB/s", bandwidth(env.open_device("tf32"), 2**28 if whole else 2**20) / 1e9)
    if env.on_gpu():
        note("peak device memory, MiB", torch.cuda.max_memory_allocated() // 2**20)


def measure_ways(chosen: tuple[str, ...]) -> None:
    for kind in ("injector", "expmi"):
        for precision in ("tf32", "bf16"):
            if env.left() > 30:
                note(f"{kind} {precision}: a step, {' and '.join(chosen)}", ways.measure(kind, precision, chosen))


def measure_kernels() -> None:
    for kind, precision in (("injector", "tf32"), ("injector", "bf16"), ("expmi", "tf32")):
        if env.left() > 30:
            note(f"{kind} {precision}: ms and calls of the ten longest kernels", kernels.measure(kind, precision))


PARTS = {"epochs": measure_epochs, "ways": lambda: measure_ways(ways.WAYS[:2]), "kernels": measure_kernels,
         "pooling": lambda: pooling.measure(note), "upsampling": lambda: upsampling.measure(note),
         "compiled": lambda: measure_ways(ways.WAYS[2:])}


def main(names: list[str]) -> None:
    for name in names:
        try:
            PARTS[name]()
        except Exception as error:  # the rest is still worth its time
            note(f"failed: {name}", f"{type(error).__name__}: {error}"[:400])


if __name__ == "__main__":
    main(sys.argv[1:] or list(PARTS))
