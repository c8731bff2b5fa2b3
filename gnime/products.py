"""Matrix products of 32-bit numbers on a CPU, at the processor's full rate."""

import torch
from torch import Tensor

FEW = 1 << 20  # multiplications up to which oneDNN is slower to start than MKL is to finish
# PyTorch's `@` takes MKL for 32-bit numbers. On a processor that is not Intel's, MKL computes 8 of them at once. oneDNN, which
# PyTorch's convolutions take, computes 16 where there is AVX-512. PyTorch has no public function for its products.
_ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b, up to rounding. a (M, K), b (K, N), of any strides -> (M, N). Differentiable as `a @ b` is."""
    differentiated = torch.is_grad_enabled() and (a.requires_grad or b.requires_grad)
    small = len(a) * b.numel() <= FEW
    if _ONEDNN is None or differentiated or small or not a.dtype == b.dtype == torch.float32 or a.device.type != "cpu":
        return a @ b
    return _ONEDNN(a, b.T, None, "none", [], "")
