"""Matrix products of 32-bit numbers on a CPU, at the processor's full rate."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

from .processor import capabilities

FEW = 1 << 20  # multiplications up to which oneDNN is slower to start than MKL is to finish
# PyTorch's `@` takes MKL for 32-bit numbers. On a processor that is not Intel's, MKL computes 8 of them at once. oneDNN, which
# PyTorch's convolutions take, computes 16 where there is AVX-512. PyTorch has no public function for its products.
_ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b, up to rounding. a (M, K), b (K, N), of any strides -> (M, N). Differentiable as `a @ b` is."""
    return _ONEDNN(a, b.T, None, "none", [], "") if _for_onednn(a, b) else a @ b


def products(a: Tensor, b: Tensor, out: Tensor, add: bool = False) -> None:
    """out = a @ b, or out += a @ b, matrix by matrix, not differentiable. a (P, M, K), b (P, K, N), out (P, M, N)."""
    if one_call():
        with _less_precise_allowed():
            torch.baddbmm(out, a, b, beta=int(add), out=out)
    elif not _for_onednn(a[0], b[0]):
        torch.baddbmm(out, a, b, beta=int(add), out=out)
    else:
        for one, other, place in zip(a, b, out, strict=True):
            found = product(one, other)
            if add:
                place += found
            else:
                place.copy_(found)


def one_call() -> bool:
    """Whether `products` of 32-bit numbers are one call of oneDNN's here: in training."""
    return getattr(_thread, "trains", False) and _onednn_keeps_32_bits()


def _for_onednn(a: Tensor, b: Tensor) -> bool:
    differentiated = torch.is_grad_enabled() and (a.requires_grad or b.requires_grad)
    exact = a.dtype == b.dtype == torch.float32 and a.device.type == "cpu"
    return _ONEDNN is not None and exact and not differentiated and len(a) * b.numel() > FEW


_thread, _setting = threading.local(), threading.Lock()


@contextmanager
def training_products() -> Iterator[None]:
    """In this thread, `products` are one call of oneDNN's, which is faster than one for each matrix.

    PyTorch takes oneDNN for its batched product of 32-bit numbers only where a setting of the whole process allows less precise
    ones. Another thread's `@` can meet the setting and then rounds in another order. So it is for training, and services keep
    to oneDNN's product of two matrices.
    """
    before = getattr(_thread, "trains", False)
    _thread.trains = True
    try:
        yield
    finally:
        _thread.trains = before


@contextmanager
def _less_precise_allowed() -> Iterator[None]:
    """oneDNN makes use of it with AMX alone. A user's own setting is kept."""
    setting = torch.backends.mkldnn.matmul
    with _setting:
        changed = setting.fp32_precision == "none"
        if changed:
            setting.fp32_precision = "bf16"
        try:
            yield
        finally:
            if changed:
                setting.fp32_precision = "none"


@cache
def _onednn_keeps_32_bits() -> bool:
    """Whether PyTorch has the setting, the processor has no AMX, and a product is indeed precise to 32 bits."""
    found = capabilities()
    if not hasattr(torch.backends.mkldnn, "matmul") or found.get("architecture") != "x86_64" or found["amx"]:
        return False  # an older PyTorch, or another processor
    a = torch.linspace(0, 99, 2 * 64 * 256).sin().view(2, 64, 256)
    exact = torch.bmm(a.double(), a.double().mT)
    with _less_precise_allowed():
        error = (torch.bmm(a, a.mT) - exact).abs().max() / exact.max()
    return error.item() < 1e-5  # 3e-7 in 32 bits, 2e-4 with factors of 16 bits
