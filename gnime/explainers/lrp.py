"""Layer-wise relevance propagation by the z+ rule (Montavon et al., 2017, "deep Taylor") as the paper uses it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..products import product
from .stack import layers, minmax, unflatten

EPS = 1e-9
THIN = 8  # a convolution with fewer input channels leaves the library's transposed kernel idle SIMD lanes


@torch.inference_mode(False)  # for some layers, relevance is propagated by differentiating them
def lrp(model: nn.Module, images: Tensor) -> Tensor:
    """The relevance of the pixels for the whole vector of logits, scaled to [0, 1] per image and channel.

    Dense layer and convolution: R_in = a * W+^T (R_out / (W+ a + eps)), W+ = max(W, 0), no bias. In the first convolution a
    is replaced by ones. Max pooling is treated as average pooling. ReLU and dropout do not change the relevance.

    images: (N, C, H, W) in [0, 1]. Returns (N, C, H, W) in [0, 1], differentiable where images require gradients.

    Raises:
        TypeError: the model has a layer that `stack.layers` does not take, a convolution padded with anything but zeros,
            or pooling with dilation; or the images are float16, where EPS is zero.
    """
    if images.dtype == torch.float16:
        raise TypeError("LRP adds 1e-9, which is zero in float16; give model and images as float32")
    stack = layers(model)
    for layer in stack:
        dilated = isinstance(layer, nn.MaxPool2d) and layer.dilation not in (1, (1, 1))
        if dilated or getattr(layer, "padding_mode", "zeros") != "zeros":
            raise TypeError(f"{layer}: LRP takes convolutions padded with zeros and pooling without dilation")
    first = next((i for i, layer in enumerate(stack) if isinstance(layer, nn.Conv2d)), None)
    with torch.set_grad_enabled(images.requires_grad):
        inputs, x = [], images
        for layer in stack:
            inputs.append(None if isinstance(layer, nn.ReLU) else x)  # relevance passes a ReLU whatever its input
            x = _up(layer, x)
        relevance = x
        for i in range(len(stack) - 1, -1, -1):
            # popped, because the layers below do not need a layer's input
            relevance = _down(stack[i], inputs.pop(), relevance, first=i == first)
        return minmax(relevance, EPS)


def _up(layer: nn.Module, x: Tensor) -> Tensor:
    """layer(x). Hooks may change a dense layer's weight or output, so they are called."""
    hooked = layer._forward_pre_hooks or layer._forward_hooks
    if hooked or not isinstance(layer, nn.Linear) or layer.bias is None or x.ndim != 2:
        return layer(x)
    return product(x, layer.weight.T).add_(layer.bias)


def _down(layer: nn.Module, a: Tensor | None, relevance: Tensor, first: bool) -> Tensor:
    """The relevance of a layer's input `a` from the relevance of its output. May overwrite `relevance`.

    first: whether the layer is the first convolution.
    """
    if isinstance(layer, nn.Linear):
        positive = layer.weight.clamp(min=0)
        return product(relevance.div_(product(a, positive.T).add_(EPS)), positive).mul_(a)
    if isinstance(layer, nn.Conv2d):
        positive = layer.weight.clamp(min=0)
        geometry = layer.stride, layer.padding, layer.dilation, layer.groups
        inputs = torch.ones_like(a[:1]) if first else a  # one image of ones serves the whole batch
        share = relevance.div_(F.conv2d(inputs, positive, None, *geometry).add_(EPS))
        back = _transposed(share, positive, layer, a.shape)
        return back if first else back.mul_(a)
    if isinstance(layer, (nn.MaxPool2d, nn.AvgPool2d)):
        return _down_pool(layer, a, relevance)
    if isinstance(layer, nn.Flatten):
        return unflatten(a.shape, a.stride(), relevance)
    return relevance  # ReLU


def _transposed(share: Tensor, weight: Tensor, layer: nn.Conv2d, shape: torch.Size) -> Tensor:
    """W^T share, which is the gradient of the convolution with respect to its input. shape: of the input."""
    if isinstance(layer.padding, str):  # "same" may pad the two sides differently
        with torch.enable_grad():
            x = share.new_zeros(shape, requires_grad=True)
            z = F.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)
        return torch.autograd.grad(z, x, share, create_graph=share.requires_grad)[0]
    if layer.in_channels < THIN and layer.groups == 1:
        products = product(weight.flatten(1).T, share.transpose(0, 1).flatten(1))  # (C * taps, N * outputs' pixels)
        products = products.view(len(products), len(share), share.shape[2:].numel()).transpose(0, 1)  # (N, C * taps, pixels)
        return F.fold(products, shape[2:], layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    rest = [
        size - ((out - 1) * stride - 2 * pad + dilation * (kernel - 1) + 1)
        for size, out, stride, pad, dilation, kernel in zip(
            shape[2:], share.shape[2:], layer.stride, layer.padding, layer.dilation, layer.kernel_size, strict=True)
    ]
    return F.conv_transpose2d(share, weight, None, layer.stride, layer.padding, rest, layer.groups, layer.dilation)


def _down_pool(layer: nn.Module, a: Tensor, relevance: Tensor) -> Tensor:
    """a * unpool(R / (avgpool(a) + eps)). Unpooling, the gradient of average pooling, spreads an output over its window."""
    kernel, stride = layer.kernel_size, layer.stride
    if kernel == stride == 2 and layer.padding == 0 and a.shape[2] % 2 == a.shape[3] % 2 == 0:
        share = relevance.div_(F.avg_pool2d(a, 2).add_(EPS).mul_(4))
        windows = a.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # (N, C, H/2, 2, W/2, 2)
        return (windows * share[:, :, :, None, :, None]).flatten(4).flatten(2, 3)
    share = relevance.div_(F.avg_pool2d(a, kernel, stride, layer.padding, layer.ceil_mode).add_(EPS))
    with torch.enable_grad():
        x = torch.zeros_like(a, requires_grad=True)
        pooled = F.avg_pool2d(x, kernel, stride, layer.padding, layer.ceil_mode)
        (back,) = torch.autograd.grad(pooled, x, share, create_graph=share.requires_grad)
    return a * back
