"""Matrix products of 32-bit numbers on a CPU, at the processor's full rate."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

FEW = 1 << 20  # multiplications up to which oneDNN is slower to start than MKL is to finish
# PyTorch's `@` takes MKL for 32-bit numbers. On a processor that is not Intel's, MKL computes 8 of them at once. oneDNN, which
# PyTorch's convolutions take, computes 16 where there is AVX-512. PyTorch has no public function for its products.
_ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b, up to rounding. a (M, K), b (K, N), of any strides -> (M, N). Differentiable as `a @ b` is."""
    return _ONEDNN(a, b.T, None, "none", [], "") if _for_onednn(a, b) else a @ b


def products(a: Tensor, b: Tensor, out: Tensor, add: bool = False) -> None:
    """out = a @ b, or out += a @ b, matrix by matrix, not differentiable. a (P, M, K), b (P, K, N), out (P, M, N)."""
    with _batches_by_onednn():
        torch.baddbmm(out, a, b, beta=int(add), out=out)


def _for_onednn(a: Tensor, b: Tensor) -> bool:
    differentiated = torch.is_grad_enabled() and (a.requires_grad or b.requires_grad)
    exact = a.dtype == b.dtype == torch.float32 and a.device.type == "cpu"
    return _ONEDNN is not None and exact and not differentiated and len(a) * b.numel() > FEW


@contextmanager
def _batches_by_onednn() -> Iterator[None]:
    """Here `torch.baddbmm` of 32-bit numbers is oneDNN's, in 32 bits.

    PyTorch chooses oneDNN where the products may be less precise, as they are with AMX. The setting is that of the whole
    process, so only one thread at a time changes it.
    """
    if not _onednn_keeps_32_bits():
        yield
        return
    with _SETTING, _less_precise_allowed():
        yield


_SETTING = threading.Lock()


@contextmanager
def _less_precise_allowed() -> Iterator[None]:
    setting = torch.backends.mkldnn.matmul
    before = setting.fp32_precision
    setting.fp32_precision = "bf16"
    try:
        yield
    finally:
        setting.fp32_precision = before


@cache
def _onednn_keeps_32_bits() -> bool:
    """Whether PyTorch has the setting, the processor has no AMX, and a product is indeed precise to 32 bits."""
    found = torch.cpu.get_capabilities()
    amx = any(has for name, has in found.items() if name.startswith("amx"))
    if amx or found.get("architecture") != "x86_64" or not hasattr(torch.backends.mkldnn, "matmul"):
        return False
    a = torch.linspace(0, 99, 2 * 64 * 256).sin().view(2, 64, 256)
    exact = torch.bmm(a.double(), a.double().mT)
    with _SETTING, _less_precise_allowed():
        error = (torch.bmm(a, a.mT) - exact).abs().max() / exact.max()
    return error.item() < 1e-5  # 3e-7 in 32 bits, 2e-4 with factors of 16 bits
