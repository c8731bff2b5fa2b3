"""ReLU and 2x2 max pooling, plain and by the fused kernels, at the shapes of the injector's step; that step without these."""

from unittest import mock

import env
import torch
import ways
from timing import milliseconds
from torch import Tensor

from gnime.batches import channels_last
from gnime.ops import pooling

SHAPES = [(n, 2048 // side, side) for n in (1024, 2048) for side in (32, 16, 8, 4)]  # of the injector, and of its inverter


def _fused(x: Tensor) -> tuple[Tensor, Tensor]:
    from gnime.ops.fused import FusedReluAndPool

    return FusedReluAndPool.apply(x)


FORMS = {"plain": pooling.plain_relu_and_pool, "fused": _fused}


def measure(note) -> None:
    """Calls `note` with a name and the figures of each form, then with the injector's step without the fused kernels."""
    for precision in ("tf32", "bf16"):
        for shape in [(2, 3, 4)] if env.TINY else SHAPES:
            if env.left() > 30:
                figures = {name: _measure(form, precision, shape) for name, form in FORMS.items()}
                note("{} ReLU and pooling of {}x{} at {}: ms forward, both; GB/s".format(precision, *shape), figures)
        if env.left() > 30:
            with mock.patch.object(pooling, "fused_serves", lambda x: False):
                note(f"injector {precision}: without fused pooling", ways.measure("injector", precision, ways.WAYS[:2]))


def _map(precision: str, n: int, channels: int, side: int) -> Tensor:
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    return channels_last(torch.randn(n, channels, side, side, device=env.open_device(precision).torch, dtype=kind))


def _both(form, x: Tensor, cotangents: list[Tensor]) -> list[Tensor]:
    """Outputs for a copy of x, which the form overwrites, and the gradient for x."""
    outputs = form(x.clone())
    return [*outputs, *torch.autograd.grad(outputs, x, cotangents)]


def _measure(form, precision: str, shape: tuple[int, int, int]) -> list[float] | str:
    """Milliseconds of the forward pass, and of a copy of the map with both passes; GB/s of either.

    All forms are counted with the bytes that none can do without, so a copy's rate is the most. On a GPU each is one CUDA
    graph, since a kernel takes less time than Python to launch it.
    """
    try:
        x = _map(precision, *shape)
        cotangents = [torch.randn_like(x), torch.randn_like(x[:, :, ::2, ::2])]
        overwritten, wanted = x.clone(), x.requires_grad_()
        works = (lambda: form(overwritten)[1]), (lambda: _both(form, wanted, cotangents)[2])
        spent = [milliseconds(ways.capture(work)[0] if env.on_gpu() else work, 0.05) for work in works]
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:200]
    moved = x.numel() * x.element_size()  # forward: reads it, writes it and a quarter; a copy and backward: 4.25 more
    rates = [maps * moved / ms / 1e6 for maps, ms in zip((2.25, 6.5), spent, strict=True)]
    return [*(round(ms, 4) for ms in spent), *(round(rate, 1) for rate in rates)]


def check_pooling() -> str:
    """The fused kernels serve the maps of the injector's step, and their results are the plain form's, all digits.

    Raises:
        AssertionError: they do not serve them (the warning in this check's .err says why), or their results differ.
    """
    for precision in ("tf32", "bf16"):
        for _, channels, side in SHAPES:
            x = _map(precision, 16, channels, side).requires_grad_()
            assert pooling.fused_serves(x), f"{precision}, {channels} channels at {side}: not used"
            cotangents = [torch.randn_like(x), torch.randn_like(x[:, :, ::2, ::2])]
            for found, expected in zip(*(_both(form, x, cotangents) for form in FORMS.values()), strict=True):
                assert torch.equal(found, expected), f"{precision}, {channels} channels at {side}: results differ"
    return "equal"
