"""Smoke checks of the arithmetic: networks and explainers on the device against the plain ones in fp32 on the CPU."""

import contextlib
import time

import env
import steps
import torch

from gnime.batches import channels_last
from gnime.config import Target
from gnime.device import Device, full_fp32
from gnime.networks import build
from gnime.registry import EXPLAINERS

BOUND = {"fp32": 5e-3, "tf32": 5e-2, "bf16": 3e-1}  # relative, of losses and gradients


def check_networks(precision: str) -> dict:
    """Loss and gradient of a small batch against the CPU; then steps at the real batch with fused Adam.

    Raises:
        AssertionError: they differ by more than `BOUND`, or a loss or weight is not finite.
    """
    torch.set_num_threads(4)
    device, figures = env.open_device(precision), {}
    for target in env.targets():
        first = target is env.targets()[0] or env.TINY
        for maps, shape in steps.sides(target).items():
            for kind in steps.BATCH:
                if maps and kind in ("predmi", "victim") or not first and (maps or kind == "predmi"):
                    continue  # CIFAR-10's are MNIST's but for the channels of the last layer
                name = f"{target.name} {kind}{maps}"
                figures[name] = {"error": _against_cpu(name, kind, target, shape, device)}
                if first:
                    figures[name] |= _at_full_batch(name, kind, target, shape, device)
    return figures


def _against_cpu(name: str, kind: str, target: Target, shape: tuple[int, int], device: Device) -> float:
    torch.backends.cudnn.benchmark = False
    cpu = torch.device("cpu")

    def loss_and_gradient(where: torch.device, autocast, plain: bool) -> tuple[torch.Tensor, torch.Tensor]:
        nets = steps.networks(kind, target, shape, where, plain)
        return steps.step(nets, steps.batch(target, shape, 8, where), autocast), steps.gradient(nets)

    expected = loss_and_gradient(cpu, contextlib.nullcontext(), plain=True)
    found = loss_and_gradient(device.torch, device.autocast(), plain=False)
    error, bound = max(map(steps.relative, found, expected)), BOUND[device.precision]
    assert error < bound, f"{name}: {error:.2e} off the CPU, {bound} allowed"
    return error


def _at_full_batch(name: str, kind: str, target: Target, shape: tuple[int, int], device: Device) -> dict:
    torch.backends.cudnn.benchmark = env.on_gpu()
    nets = steps.networks(kind, target, shape, device.torch)
    adams = [torch.optim.Adam(net.parameters(), 1e-4, fused=True) for net in nets]
    values, seconds = steps.batch(target, shape, 8 if env.TINY else steps.BATCH[kind], device.torch), []
    for _ in range(2 if env.TINY else 12):
        began = time.perf_counter()
        for adam in adams:
            adam.zero_grad()
        loss = steps.step(nets, values, device.autocast())
        for adam in adams:
            adam.step()
        if env.on_gpu():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    assert loss.isfinite() and all(p.isfinite().all() for net in nets for p in net.parameters()), f"{name}: not finite"
    memory = torch.cuda.max_memory_allocated() // 2**20 if env.on_gpu() else 0
    return {"first_step_s": seconds[0], "step_ms": 1e3 * min(seconds), "MiB": memory}


def check_explainers() -> dict:
    """Every explainer on the device, in 32 bits, against the CPU."""
    device, errors = env.open_device("tf32"), {}
    for target in env.targets():
        victim = build(steps.specs("victim", target, (1, 1))[0]).eval().requires_grad_(False)
        images = torch.rand(16, target.channels, target.size, target.size)
        for xai, explainer in EXPLAINERS.items():
            explain = explainer.load()
            expected = explain(victim.to("cpu"), images)
            victim.to(device.torch, memory_format=torch.channels_last)
            with full_fp32():
                found = explain(victim, channels_last(images.to(device.torch)))
            name = f"{target.name} {xai}"
            errors[name] = steps.relative(found, expected)
            assert errors[name] < 1e-2, f"{name}: {errors[name]:.2e} off the CPU"
    return errors
