"""LRP's rules for the operations of any network: each function computes an operation and says how relevance goes down it.

All take the call and then the arguments of PyTorch's function. A `Traced` argument has its numbers in `value`. Where there is
no rule for the arguments, `Unknown` is raised.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..products import product
from .graph import Traced, tensors
from .relevance import Call, RelevanceStep, Unknown
from .zplus import EPS, Geometry, average_pool, shared_by, transposed

# --- layers with weights ----------------------------------------------------------------------------------------------


def conv2d(call: Call, input, weight, bias=None, **form) -> RelevanceStep:
    _check_weights(input, weight, bias)
    padding = form.get("padding", 0)
    geometry = Geometry(_pair(form.get("stride", 1)), padding if isinstance(padding, str) else _pair(padding),
                        _pair(form.get("dilation", 1)), form.get("groups", 1))
    a, below = input.value, input.step

    def apply(x: Tensor, w: Tensor) -> Tensor:
        return F.conv2d(x, w, None, *geometry)

    def back(share: Tensor, w: Tensor) -> Tensor:
        return transposed(share, w, geometry, a.shape)

    def down(relevance: Tensor, scale: Tensor | None) -> list[Tensor]:
        w = weight if scale is None else weight * scale.view(-1, 1, 1, 1)
        if not below.raw:
            return [_zplus(a, below.positive, w, apply, back, relevance)]
        # the first convolution: ones in place of the image. One image of ones serves the whole batch
        ones = torch.ones_like(a[:1]) if below.border is None else below.border
        w = w.clamp(min=0)
        image = back(relevance / apply(ones, w).add_(EPS), w)
        return [image if below.border is None else image.mul_(ones)]

    return RelevanceStep(call.operation, [below], apply(a, weight) if bias is None else F.conv2d(a, weight, bias, *geometry),
                         down=down, scalable=True)


def linear(call: Call, input, weight, bias=None) -> RelevanceStep:
    _check_weights(input, weight, bias)
    a, below = input.value, input.step

    def apply(x: Tensor, w: Tensor) -> Tensor:
        return product(x, w.T) if x.ndim == 2 else F.linear(x, w)

    def back(share: Tensor, w: Tensor) -> Tensor:
        return product(share, w) if share.ndim == 2 else share @ w

    def down(relevance: Tensor, scale: Tensor | None) -> list[Tensor]:
        w = weight if scale is None else weight * scale.view(-1, 1)
        return [_zplus(a, below.positive, w, apply, back, relevance)]

    return RelevanceStep(call.operation, [below], F.linear(a, weight, bias), down=down, scalable=True)


def matmul(call: Call, input, other) -> RelevanceStep:
    if not isinstance(input, Traced) or isinstance(other, Traced) or other.ndim != 2:
        raise Unknown("a product of two tensors that depend on the image")
    return linear(call, input, other.T)


def _zplus(a: Tensor, positive: bool, weight: Tensor, apply: Callable, back: Callable, relevance: Tensor) -> Tensor:
    """The z+ rule, as `lrp._down` has it for plain stacks. An input and a weight that are both negative contribute too, as two
    that are positive do.

    positive: a is at least 0, so no input is negative.
    """
    parts = [(a, weight.clamp(min=0))]
    if not positive:
        parts = [(a.clamp(min=0), weight.clamp(min=0)), (a.clamp(max=0), weight.clamp(max=0))]
    z = apply(*parts[0])
    for x, w in parts[1:]:
        z = z.add_(apply(x, w))
    share = relevance / z.add_(EPS)
    result = None
    for x, w in parts:
        part = back(share, w).mul_(x)
        result = part if result is None else result.add_(part)
    return result


def _check_weights(input: object, *weights: object) -> None:
    if not isinstance(input, Traced) or any(isinstance(weight, Traced) for weight in weights):
        raise Unknown("its weights depend on the image")


def _pair(value) -> tuple[int, int]:
    return tuple(value) * (1 if len(value) == 2 else 2) if isinstance(value, (tuple, list)) else (value, value)


# --- pooling: average pooling by the z+ rule, and max pooling as if it were ---------------------------------------------


def pool2d(call: Call, input, kernel_size, stride=None, **form) -> RelevanceStep:
    if form.get("return_indices") or _pair(form.get("dilation", 1)) != (1, 1):
        raise Unknown("it returns indices or is dilated, unlike average pooling")
    window = kernel_size, stride or kernel_size, form.get("padding", 0), form.get("ceil_mode", False)
    return _pooled(call, input, call.function(input.value, *window[:2], **form),
                   lambda a, relevance: average_pool(a, relevance, *window))


def adaptive_pool2d(call: Call, input, output_size, return_indices=False) -> RelevanceStep:
    if return_indices:
        raise Unknown("it returns indices")
    return _pooled(call, input, call.function(input.value, output_size), lambda a, relevance: shared_by(
        lambda x: F.adaptive_avg_pool2d(x, output_size), a, relevance))


def mean(call: Call, input, dim=None, keepdim=False, **named) -> RelevanceStep:
    """x.mean((2, 3)), x.amax((2, 3)) and x.sum((2, 3)) are pooling over the whole image."""
    if dim is None or isinstance(dim, Traced):
        raise Unknown("it is not over given dimensions")
    if 0 in [axis % input.value.ndim for axis in ([dim] if isinstance(dim, int) else dim)]:
        raise Unknown("it joins the images of a batch")
    return _pooled(call, input, call.function(input.value, dim, keepdim), lambda a, relevance: shared_by(
        lambda x: x.mean(dim, keepdim), a, relevance))


def _pooled(call: Call, input: Traced, out: Tensor, share: Callable[[Tensor, Tensor], Tensor]) -> RelevanceStep:
    a, below = input.value, input.step

    def down(relevance: Tensor, scale: Tensor | None) -> list[Tensor]:
        return [share(a if below.positive or below.raw else a.clamp(min=0), relevance)]

    return RelevanceStep(call.operation, [below], out, down=down, positive=below.positive, raw=below.raw)


# --- sums and concatenations ------------------------------------------------------------------------------------------


def add(call: Call, input, other, alpha=1) -> RelevanceStep:
    """A sum shares relevance by what each positive part contributed; a constant part, as a bias, takes none."""
    traced = [part for part in (input, other) if isinstance(part, Traced)]
    signs = [1.0 if part is input else alpha * (-1.0 if call.operation == "sub" else 1.0) for part in traced]
    plain = [part.value if isinstance(part, Traced) else part for part in (input, other)]
    out = torch.add(*plain, alpha=alpha) if call.operation == "add" else torch.sub(*plain, alpha=alpha)
    below = [part.step for part in traced]
    if len(traced) == 1:
        if out.shape != traced[0].value.shape:
            raise Unknown("the constant has another shape than the tensor it is added to")
        return _affine(call, traced[0], out.new_tensor(signs), out)
    contributions = [part.value * sign if sign != 1 else part.value for part, sign in zip(traced, signs, strict=True)]

    def down(relevance: Tensor, scale: Tensor | None) -> list[Tensor]:
        parts = [c if step.positive and sign > 0 else c.clamp(min=0)
                 for c, step, sign in zip(contributions, below, signs, strict=True)]
        share = relevance / (parts[0] + parts[1] + EPS)
        return [(part * share).sum_to_size(part.shape) for part in parts]

    positive = all(step.positive for step in below) and min(signs) > 0
    return RelevanceStep(call.operation, below, out, down=down, positive=positive, raw=all(step.raw for step in below))


def rsub(call: Call, input, other, alpha=1) -> RelevanceStep:
    return add(Call("sub", torch.sub), other, input, alpha)


def cat(call: Call, tensors, dim=0) -> RelevanceStep:
    parts = [(part.step, part.value) if isinstance(part, Traced) else (None, part) for part in tensors]
    sizes, below = [value.shape[dim] for _, value in parts], [step for step, _ in parts if step]

    def down(relevance: Tensor, scale: Tensor | None) -> list[Tensor]:
        return [piece for piece, (step, _) in zip(relevance.split(sizes, dim), parts, strict=True) if step]

    return RelevanceStep(call.operation, below, torch.cat([value for _, value in parts], dim), down=down,
                         positive=all(step.positive if step else bool((value >= 0).all()) for step, value in parts),
                         raw=all(step.raw for step in below))


# --- maps of each entry by itself: relevance passes ---------------------------------------------------------------------


def batch_norm(call: Call, input, running_mean, running_var, weight=None, bias=None, **form) -> RelevanceStep:
    if form.get("training") or running_var is None:
        raise Unknown("it normalises by the batch, so an image's logits depend on the other images")
    out = F.batch_norm(input.value, running_mean, running_var, weight, bias, **form)
    own = (running_var + form.get("eps", 1e-5)).rsqrt()
    return _affine(call, input, own if weight is None else own * weight, out)


def mul(call: Call, input, other) -> RelevanceStep:
    traced, constant = (input, other) if isinstance(input, Traced) else (other, input)
    if isinstance(constant, Traced) or (call.operation == "div" and traced is other):
        raise Unknown("a product or quotient of two tensors that depend on the image")
    out = traced.value / constant if call.operation == "div" else traced.value * constant
    own = torch.as_tensor(constant, dtype=out.dtype, device=out.device)
    own = own.reciprocal() if call.operation == "div" else own
    channel = out.ndim - 2  # from the right: in (N, C, H, W) and (N, F), the channels are dimension 1
    per_channel = own.ndim > channel and own.numel() == own.shape[own.ndim - 1 - channel]
    if out.shape != traced.value.shape or not (own.numel() == 1 or per_channel):
        raise Unknown("factors that differ within a channel")
    return _affine(call, traced, own.reshape(-1), out)


def neg(call: Call, input) -> RelevanceStep:
    return mul(Call("mul", torch.mul), input, -1.0)


def _affine(call: Call, input: Traced, own: Tensor, out: Tensor) -> RelevanceStep:
    """out = own * input + a constant, channel by channel.

    If the input is the output of a layer, and nothing else takes it, the factor is folded into the layer's weights.
    """
    below = input.step
    if own.numel() > 1 and (out.ndim not in (2, 4) or (out.ndim == 4 and below.operation == "linear")):
        raise Unknown(f"factors of each channel in {tuple(out.shape)}")

    def down(relevance: Tensor, scale: Tensor | None) -> list[Tensor]:
        if below.scalable and len(below.uses) == 1:
            below.scale = own if scale is None else own * scale
        return [relevance]

    return RelevanceStep(call.operation, [below], out, down=down, raw=below.raw, scalable=True)


def relu(call: Call, input, **bounds) -> RelevanceStep:
    low = 0 if call.operation.startswith("relu") else bounds.get("min_val", bounds.get("min"))
    if isinstance(low, Tensor) or low != 0:
        raise Unknown("it does not cut off at 0, as a ReLU does")
    out = F.relu(input.value) if call.operation == "relu" else call.function(input.value, **bounds)
    return RelevanceStep(call.operation, [input.step], out, positive=True, raw=input.step.raw)


def dropout(call: Call, input, p=0.5, training=True) -> RelevanceStep:
    if training:
        raise Unknown("it is random in evaluation mode too")
    return same(Call(call.operation, lambda x: x), input)


def same(call: Call, input, *args, **named) -> RelevanceStep:
    out = call.function(input.value, *args, **named)
    if out.dtype != input.value.dtype:
        raise Unknown(f"it turns {input.value.dtype} into {out.dtype}")
    return RelevanceStep(call.operation, [input.step], out, positive=input.step.positive, raw=input.step.raw)


# --- entries that change their places: the relevance of each goes where it came from -------------------------------------


def moved(call: Call, input, *args, **named) -> RelevanceStep | tuple[RelevanceStep, ...]:
    if not isinstance(input, Traced) or any(True for _ in tensors((args, named))):
        raise Unknown("where its entries go depends on the image")
    if call.operation == "pad" and (args[2:3] or [named.get("value")])[0] not in (None, 0):
        raise Unknown("its border is not 0")
    below, shape = input.step, input.value.shape
    function = Tensor.reshape if call.operation == "view" else call.function  # the traced tensors may be laid out otherwise

    def down(part: int | None, relevance: Tensor, scale: Tensor | None) -> list[Tensor]:
        with torch.enable_grad():
            x = relevance.new_zeros(shape, requires_grad=True)
            y = function(x, *args, **named)
        return list(torch.autograd.grad(y if part is None else y[part], x, relevance, create_graph=relevance.requires_grad))

    def step(out: Tensor, part: int | None = None) -> RelevanceStep:
        border = function(torch.ones_like(input.value[:1]), *args, **named) if call.operation == "pad" else None
        return RelevanceStep(call.operation, [below], out, down=partial(down, part), positive=below.positive, raw=below.raw,
                             border=border)

    out = function(input.value, *args, **named)
    return step(out) if isinstance(out, Tensor) else tuple(step(piece, i) for i, piece in enumerate(out))


CLAMPS = {"hardtanh": "input min_val max_val", "clamp": "input min max", "clip": "input min max", "clamp_min": "input min"}
MOVES = ("flatten unflatten view reshape squeeze unsqueeze permute transpose swapaxes movedim T mT getitem narrow select chunk "
         "split tensor_split unbind pad pixel_shuffle pixel_unshuffle channel_shuffle flip roll")
# operation -> its rule, and the names of its arguments in order
RULES: dict[str, tuple[Callable, str]] = {
    "conv2d": (conv2d, "input weight bias stride padding dilation groups"),
    "linear": (linear, "input weight bias"),
    "matmul": (matmul, "input other"),
    "max_pool2d": (pool2d, "input kernel_size stride padding dilation ceil_mode return_indices"),
    "avg_pool2d": (pool2d, "input kernel_size stride padding ceil_mode count_include_pad divisor_override"),
    **dict.fromkeys(("adaptive_avg_pool2d", "adaptive_max_pool2d"), (adaptive_pool2d, "input output_size return_indices")),
    **dict.fromkeys(("mean", "amax", "sum"), (mean, "input dim keepdim")),
    **dict.fromkeys(("add", "sub"), (add, "input other")),
    "rsub": (rsub, "input other"),
    **dict.fromkeys(("cat", "concat", "concatenate"), (cat, "tensors dim")),
    "batch_norm": (batch_norm, "input running_mean running_var weight bias training momentum eps"),
    **dict.fromkeys(("mul", "div"), (mul, "input other")),
    "neg": (neg, "input"),
    **dict.fromkeys(("relu", "relu6"), (relu, "input")),
    **{name: (relu, arguments) for name, arguments in CLAMPS.items()},
    **dict.fromkeys(("dropout", "dropout1d", "dropout2d", "feature_dropout"), (dropout, "input p training")),
    **dict.fromkeys(("detach", "data", "clone", "contiguous", "float", "to"), (same, "")),
    **dict.fromkeys(MOVES.split(), (moved, "")),
}
