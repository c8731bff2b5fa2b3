"""PredMI and ExpMI: the networks that invert predictions and explanations (Zhao et al., ICCV 2021).

Both grow an image from one pixel by "nearest x2, convolution 3x3". The pixels of an upsampled map are copies, so that
pair makes most of its products several times over. Here each is made once, four times fewer; parameters and results
are the pair's.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CACHED = 1 << 20  # numbers that stay in a processor's cache
THIN = 32  # outputs of a convolution below which additions cost more than the products they replace


def sides(first: int, last: int) -> list[int]:
    """[4, 8, 16] for (4, 16): powers of two between the two, both included."""
    return [side for k in range(2, 16) if first <= (side := 2**k) <= last]


def spread_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """conv2d(nearest x4 of x, weight, bias, padding=1). x (N, I, 1, 1), weight (O, I, 3, 3) -> (N, O, 4, 4).

    The pixel meets each of nine taps once; an output adds up the taps that fall inside the map.
    """
    products = F.linear(x.flatten(1), _taps(weight)).unflatten(1, (9, -1))  # (N, 9, O)
    inside = products.new_ones(4, 3)  # row of the output, tap
    inside[0, 0] = inside[3, 2] = 0
    grown = torch.kron(inside, inside) @ products  # (N, 16, O)
    return (grown + bias.to(grown.dtype)).unflatten(1, (4, 4)).permute(0, 3, 1, 2)


def upsample_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """conv2d(nearest x2 of x, weight, bias, padding=1). x (N, I, H, W), weight (O, I, 3, 3) -> (N, O, 2H, 2W).

    A GPU multiplies faster than it could add up products from memory, and few outputs fill no vector of a CPU's.
    """
    if x.device.type != "cpu" or len(weight) < THIN:
        return folded_conv(x, weight, bias)
    return TapProducts.apply(x, _taps(weight), bias)


def folded_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`upsample_conv` as the transposed 4x4 convolution of stride 2 that it equals: taps that fall on the same pixel
    are added beforehand, which leaves 16 products a pixel."""
    for axis in (2, 3):
        first, second, third = weight.unbind(axis)
        weight = torch.stack([third, second + third, first + second, first], axis)
    return F.conv_transpose2d(x, weight.transpose(0, 1), bias, stride=2, padding=1)


def _taps(weight: Tensor) -> Tensor:
    """(O, I, 3, 3) -> (9 * O, I)."""
    return weight.permute(2, 3, 0, 1).reshape(-1, weight.shape[1])


class TapProducts(torch.autograd.Function):
    """`upsample_conv` with nine products a pixel: one matrix product, then additions.

    Along an axis, with u, v, w a pixel's products with the three taps, output 2i is u[i-1] + v[i] + w[i] and output
    2i + 1 is u[i] + v[i] + w[i+1]. A few images at a time, so that the products stay in cache.
    """

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.bfloat16)
    def forward(ctx, x: Tensor, taps: Tensor, bias: Tensor) -> Tensor:
        n, _, h, w = x.shape
        o = len(bias)
        ctx.save_for_backward(x, taps)
        y = torch.empty((n, o, 2 * h, 2 * w), dtype=x.dtype, memory_format=torch.channels_last)
        for pixels, out in _images(taps, x, y):
            k = len(out)
            products = (pixels.reshape(k * h * w, -1) @ taps.T).view(k, h, w, 3, 3 * o)
            rows = x.new_empty(k, h, 2, w, 3 * o)
            _add_up(products.unbind(3), rows.unbind(2), 1)
            _add_up(rows.view(k, 2 * h, w, 3, o).unbind(3), out.view(k, 2 * h, w, 2, o).unbind(3), 2)
            out += bias
        return y

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, taps = ctx.saved_tensors
        h, w, o = *x.shape[2:], dy.shape[1]
        dx = torch.empty_like(x, memory_format=torch.channels_last)
        dtaps = torch.zeros_like(taps, dtype=torch.promote_types(taps.dtype, torch.float32))
        for pixels, dout, dpixels in _images(taps, x, dy, dx):
            k = len(dout)
            drows = x.new_empty(k, h, 2, w, 3 * o)
            _add_up_backward(dout.reshape(k, 2 * h, w, 2, o).unbind(3), drows.view(k, 2 * h, w, 3, o).unbind(3), 2)
            dproducts = x.new_empty(k, h, w, 3, 3 * o)
            _add_up_backward(drows.unbind(2), dproducts.unbind(3), 1)
            dproducts = dproducts.view(k * h * w, -1)
            torch.mm(dproducts, taps, out=dpixels.view(k * h * w, -1))
            dtaps += dproducts.T @ pixels.reshape(k * h * w, -1)
        return dx, dtaps, dy.sum((0, 2, 3), dtype=dtaps.dtype)


def _images(taps: Tensor, *maps: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """A few images of each map at a time, channels last."""
    _, inputs, h, w = maps[0].shape
    pixels = max(CACHED // len(taps), 2 * inputs)  # enough of them that the sum over parts of dtaps costs little
    return zip(*(m.permute(0, 2, 3, 1).split(max(1, pixels // (h * w))) for m in maps), strict=True)


def _add_up(products: tuple[Tensor, ...], outputs: tuple[Tensor, ...], axis: int) -> None:
    (u, v, w), (even, odd), rest = products, outputs, products[0].shape[axis] - 1
    torch.add(v, w, out=even)
    even.narrow(axis, 1, rest).add_(u.narrow(axis, 0, rest))
    torch.add(u, v, out=odd)
    odd.narrow(axis, 0, rest).add_(w.narrow(axis, 1, rest))


def _add_up_backward(outputs: tuple[Tensor, ...], products: tuple[Tensor, ...], axis: int) -> None:
    (even, odd), (u, v, w), rest = outputs, products, outputs[0].shape[axis] - 1
    torch.add(even, odd, out=v)
    u.copy_(odd).narrow(axis, 0, rest).add_(even.narrow(axis, 1, rest))
    w.copy_(even).narrow(axis, 1, rest).add_(odd.narrow(axis, 0, rest))


class PredMI(nn.Module):
    """Image from the prediction alone.

    Args:
        classes: length of the prediction (logits).
        channels, size: of the image, (channels, size, size); size a power of two of at least 16.
        width: 2048 in the paper; the convolution at side k has 2 * width / k channels.
    """

    def __init__(self, classes: int, channels: int, size: int, width: int = 2048):
        super().__init__()
        below = width // 2
        self.dense = nn.Linear(classes, below)
        self.decoder = nn.ModuleList()
        for side in sides(4, size):
            above = channels if side == size else 2 * width // side
            self.decoder.append(nn.Conv2d(below, above, 3, padding=1))
            below = above
        initialise(self)

    def forward(self, explanation: Tensor | None, prediction: Tensor) -> Tensor:
        """prediction (N, classes); the explanation is not looked at. Returns (N, channels, size, size), linear."""
        x = F.relu(self.dense(prediction))  # (N, w/2)
        return _grow(x[:, :, None, None], self.decoder, _predmi_conv)


def _predmi_conv(layer: nn.Conv2d, x: Tensor) -> Tensor:
    grow = spread_conv if x.shape[2] == 1 else upsample_conv
    return grow(x, layer.weight, layer.bias)


def _grow(x: Tensor, decoder: nn.ModuleList, conv: Callable[[nn.Conv2d, Tensor], Tensor]) -> Tensor:
    for layer in decoder[:-1]:
        x = F.relu(conv(layer, x), inplace=True)
    return conv(decoder[-1], x)


class ExpMI(nn.Module):
    """Image from explanation and prediction: a U-Net whose bottleneck sees the prediction.

    Args:
        explanation_channels, explanation_size: of the explanation, (channels, side, side); side a power of two >= 4.
        classes: length of the prediction (logits).
        channels, size: of the image; size a power of two, at least the explanation's side.
        width: 2048 in the paper; encoder width / k, decoder width / 2k channels at side k.
    """

    def __init__(self, explanation_channels: int, explanation_size: int, classes: int, channels: int, size: int,
                 width: int = 2048):
        super().__init__()
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        below, skips = explanation_channels, {}
        for side in reversed(sides(4, explanation_size)):
            self.encoder.append(nn.Conv2d(below, width // side, 3, padding=1))
            below = skips[side] = width // side
        self.code = nn.Linear(below * 4, 64)
        self.bottleneck = nn.Linear(64 + explanation_channels * explanation_size**2 + classes, width // 4)
        below = width // 4
        for side in sides(4, size):
            above = channels if side == size else width // (2 * side)
            self.decoder.append(nn.Conv2d(below + skips.get(side, 0), above, 3, padding=1))
            below = above
        initialise(self)

    def forward(self, explanation: Tensor, prediction: Tensor) -> Tensor:
        """explanation (N, K, S, S), prediction (N, classes). Returns (N, channels, size, size), linear."""
        x, skips = explanation, []
        for layer in self.encoder:
            x = F.relu(layer(x), inplace=True)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        code = F.relu(self.code(x.flatten(1)))
        x = F.relu(self.bottleneck(torch.cat([code, explanation.flatten(1), prediction], 1)))
        return _grow(x[:, :, None, None], self.decoder, lambda layer, x: self._merge(layer, x, skips))

    @staticmethod
    def _merge(layer: nn.Conv2d, x: Tensor, skips: list[Tensor]) -> Tensor:
        """The convolution over [upsampled x, skip]: the weight splits into the part that sees each."""
        grow = spread_conv if x.shape[2] == 1 else upsample_conv
        grown = grow(x, layer.weight[:, : x.shape[1]], layer.bias)
        if skips:
            return F.conv2d(skips.pop(), layer.weight[:, x.shape[1] :], padding=1).add_(grown)
        return grown


class DenseExpMI(ExpMI):
    """ExpMI behind a dense layer from every pixel to every pixel, one for all channels.

    A convolutional attacker fails on shuffled pixels for want of skill, not of information; this one can sort them.
    Arguments as ExpMI's.
    """

    def __init__(self, explanation_channels: int, explanation_size: int, *rest: int, **named: int):
        super().__init__(explanation_channels, explanation_size, *rest, **named)
        self.front = nn.Linear(explanation_size**2, explanation_size**2)
        initialise(self.front)

    def forward(self, explanation: Tensor, prediction: Tensor) -> Tensor:
        sorted_pixels = self.front(explanation.flatten(2)).view(explanation.shape)
        return super().forward(sorted_pixels, prediction)


def initialise(network: nn.Module) -> None:
    """Glorot-uniform weights, zero biases (METHOD)."""
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
