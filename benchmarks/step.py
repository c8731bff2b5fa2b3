"""Training steps of the injector, PredMI and the victim at the paper's width: the networks as built against accelerated ones.

The plain side is fp32 throughout, also where ours is bf16. On a processor without bf16 instructions, where nobody would
ask for it, bf16 is not measured.
"""

from contextlib import ExitStack
from functools import partial

import torch
from common import Report, options
from plain import plain_two_player_step
from torch.utils.flop_counter import FlopCounterMode

from gnime.batches import channels_last
from gnime.config import target
from gnime.models.injector import Injector, two_player_step
from gnime.models.inversion import ExpMI, PredMI
from gnime.networks import build, classifier_spec
from gnime.ops import accelerate
from gnime.products import training_products
from gnime.system import retain_freed_memory
from gnime.training import cross_entropy, mean_squared_error


def optimiser(network, ours):
    return torch.optim.Adam(network.parameters(), 1e-4, fused=ours)


def arranged(things, ours):
    """Ours: networks accelerated, networks and pictures channels last, freed memory kept."""
    if not ours:
        return things
    retain_freed_memory()
    return [accelerate(thing).to(memory_format=torch.channels_last) if isinstance(thing, torch.nn.Module)
            else channels_last(thing) if thing.ndim == 4 else thing for thing in things]


def conditions(ours, bf16):
    """What a training step runs in."""
    stack = ExitStack()
    stack.enter_context(torch.autocast("cpu", torch.bfloat16, enabled=bf16))
    if ours:
        stack.enter_context(training_products())
    return stack


def injector_step(batch, ours, bf16=False):
    eyx = arranged([torch.rand(batch, 1, 32, 32), torch.randn(batch, 10), torch.rand(batch, 1, 32, 32)], ours)
    networks = arranged([Injector(1, 32, 10), ExpMI(1, 32, 10, 1, 32)], ours)
    optimisers = [optimiser(network, ours) for network in networks]
    step = two_player_step if ours else plain_two_player_step

    def work():
        for adam in optimisers:
            adam.zero_grad()
        with conditions(ours, bf16):
            step(*networks, eyx, 100.0)
        for adam in optimisers:
            adam.step()

    return work


def supervised_step(network, loss, batch, ours, bf16):
    network, = arranged([network], ours)
    adam = optimiser(network, ours)

    def work():
        adam.zero_grad()
        with conditions(ours, bf16):
            value = loss(network, batch)
            value.backward()
        adam.step()

    return work


def predmi_step(batch, ours, bf16=False):
    y, x = arranged([torch.randn(batch, 10), torch.rand(batch, 1, 32, 32)], ours)
    return supervised_step(PredMI(10, 1, 32), mean_squared_error, [None, y, x], ours, bf16)


def small_steps(batch, ours):
    """20 steps of an attacker of the demo."""
    e, y, x = arranged([torch.rand(batch, 1, 16, 16), torch.randn(batch, 10), torch.rand(batch, 1, 16, 16)], ours)
    step = supervised_step(ExpMI(1, 16, 10, 1, 16, 256), mean_squared_error, [e, y, x], ours, False)
    return lambda: [step() for _ in range(20)]


def victim_step(batch, ours, bf16=False):
    x, label = arranged([torch.rand(batch, 1, 32, 32), torch.randint(0, 10, (batch,))], ours)
    return supervised_step(build(classifier_spec(target("mnist"), 10)), cross_entropy, [x, label], ours, bf16)


CEILING = 64, 128, 8, 256  # images, inputs, side, outputs of the convolution whose rate is taken for the processor's ceiling


def ceiling():
    """A convolution forward, which the library computes at the highest rate of all that these networks ask for."""
    n, inputs, side, outputs = CEILING
    x, weight = channels_last(torch.rand(n, inputs, side, side)), torch.rand(outputs, inputs, 3, 3)
    weight = weight.contiguous(memory_format=torch.channels_last)
    return lambda: torch.nn.functional.conv2d(x, weight, padding=1)


def products(step, batch) -> int:
    """Additions and multiplications of the plain step's matrix products and convolutions."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        step(batch, False)()
    return counter.get_total_flops()


def main():
    chosen = options(__doc__)
    batch, rounds = (32, 2) if chosen.quick else (128, 9)
    report = Report(chosen)
    print(f"batch {batch}, mnist, width 2048")
    has_bf16 = torch.cpu.get_capabilities().get("avx512_bf16", False)
    if not has_bf16:
        print("this processor has no bf16 instructions: bf16 is not measured")
    for step, goals in ((injector_step, (3.0, 5.0)), (predmi_step, (5.0, 9.5)), (victim_step, (2.5, 3.5))):
        for bf16, goal in zip((False, True), goals, strict=True):
            if bf16 and not has_bf16:
                continue
            name = f"{step.__name__.replace('_', ' ')} {'bf16' if bf16 else 'fp32'}"
            builds = partial(step, batch, False), partial(step, batch, True, bf16)
            report.compare(name, ("plain", "ours"), builds, rounds, goal)
    n, inputs, side, outputs = CEILING
    seconds = min(report.alone("convolution at the ceiling", ceiling, 20))
    report.number("ceiling, G operations a second", 2e-9 * 9 * n * inputs * side**2 * outputs / seconds)
    for step in (injector_step, predmi_step, victim_step):  # of the plain formulation
        report.number(f"{step.__name__.replace('_', ' ')}: products, G operations", products(step, batch) / 1e9)
    report.finish()


if __name__ == "__main__":
    main()
