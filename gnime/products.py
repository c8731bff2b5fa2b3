"""Matrix products of 32-bit numbers on a CPU, at the processor's full rate."""

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
    if not _for_onednn(a[0], b[0]):
        torch.baddbmm(out, a, b, beta=int(add), out=out)
        return
    for one, other, place in zip(a, b, out, strict=True):
        found = product(one, other)
        if add:
            place += found
        else:
            place.copy_(found)


def _for_onednn(a: Tensor, b: Tensor) -> bool:
    differentiated = torch.is_grad_enabled() and (a.requires_grad or b.requires_grad)
    exact = a.dtype == b.dtype == torch.float32 and a.device.type == "cpu"
    return _ONEDNN is not None and exact and not differentiated and len(a) * b.numel() > FEW
