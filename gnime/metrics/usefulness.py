"""Protected maps against the clean ones, and maps against the victim (docs/method.md "Usefulness").

Maps (N, K, h, w) -> one number a map, (N,), float64 for correlations. A constant map says nothing: its correlation with any
map is 0 here by definition.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

STEPS = 16  # of deletion and insertion
GAP = 0.05  # of areas in [0, 1]
BLUR = 1 / 8  # standard deviation of insertion's first picture, of the image's side: strokes of digits are gone


def pearson(clean: Tensor, protected: Tensor) -> Tensor:
    """Pearson's correlation over all values of a map, in [-1, 1]; 0 where a map is constant."""
    return _correlation(clean.flatten(1).double(), protected.flatten(1).double())


def spearman(clean: Tensor, protected: Tensor) -> Tensor:
    """Spearman's: Pearson's of the ranks, equal values sharing their mean rank. In [-1, 1]; 0 where a map is constant."""
    return _correlation(_ranks(clean.flatten(1)), _ranks(protected.flatten(1)))


def _correlation(one: Tensor, other: Tensor) -> Tensor:
    varies = (one.amax(1) > one.amin(1)) & (other.amax(1) > other.amin(1))  # rounding may leave a constant a variance
    one, other = (values - values.mean(1, keepdim=True) for values in (one, other))
    found = (F.normalize(one, dim=1, eps=0) * F.normalize(other, dim=1, eps=0)).sum(1).clamp(-1, 1)
    return found.where(varies, torch.zeros_like(found))


def _ranks(values: Tensor) -> Tensor:
    """(N, n) float64 from 1. A value's rank is the mean of the first and the last place that its equals take."""
    ordered, values = values.sort(1).values, values.contiguous()
    first, behind = (torch.searchsorted(ordered, values, right=right) for right in (False, True))
    return (first + 1 + behind).double() / 2


def top_overlap(clean: Tensor, protected: Tensor, fraction: float = 0.1) -> Tensor:
    """Share of the clean map's top pixels that are the protected one's too, in [0, 1]. A pixel's value sums its channels.

    Where pixels tie for the last places, each is in by the share of the tied that has a place. So equal maps overlap by 1,
    and a constant map by `fraction`, like a random order.
    """
    clean, protected = clean.sum(1).flatten(1), protected.sum(1).flatten(1)
    most = max(1, round(fraction * clean.shape[1]))
    return torch.minimum(_top(clean, most), _top(protected, most)).sum(1) / most


def _top(values: Tensor, most: int) -> Tensor:
    """(N, n): how much of each value is among the `most` largest; sums to `most`."""
    last = values.topk(most, 1).values[:, -1:]
    above, tied = values > last, values == last
    share = (most - above.sum(1, keepdim=True)) / tied.sum(1, keepdim=True)
    return above + tied * share


def deletion(victim: Callable[[Tensor], Tensor], image: Tensor, explanation: Tensor) -> Tensor:
    """Area under the predicted class's probability while pixels become 0, the map's largest first: low for a good map.

    victim: images -> logits. image: (N, C, H, W) in [0, 1]. explanation: (N, K, h, w) of any size; see `_order`. Returns (N,)
    in [0, 1].
    """
    return _area(victim, image, explanation, before=image, after=torch.zeros_like(image))


def insertion(victim: Callable[[Tensor], Tensor], image: Tensor, explanation: Tensor) -> Tensor:
    """The same while a blurred picture becomes the image, the map's largest pixels first: high for a good map."""
    return _area(victim, image, explanation, before=_blurred(image), after=image)


def _area(victim: Callable, image: Tensor, explanation: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """By the trapezoidal rule over `STEPS` equal steps."""
    place, pixels = _order(explanation, image.shape[2:]), image[0, 0].numel()
    predicted = victim(image).argmax(1, keepdim=True)
    area = 0.0
    for step in range(STEPS + 1):
        mixed = torch.where(place < round(step * pixels / STEPS), after, before)
        probability = victim(mixed).softmax(1).gather(1, predicted)[:, 0]
        area = area + probability * (0.5 if step in (0, STEPS) else 1.0) / STEPS
    return area


def _order(explanation: Tensor, size: torch.Size) -> Tensor:
    """(N, 1, H, W): each pixel's place in the map's order from the largest value, 0 first; of equals the upper left one.

    Channels are summed. A map of another size is interpolated bilinearly: nearest would make the pixels of a block equal, and
    their order then says nothing.
    """
    values = F.interpolate(explanation.sum(1, keepdim=True), size, mode="bilinear", align_corners=False, antialias=True)
    return values.flatten(1).argsort(dim=1, descending=True, stable=True).argsort(1).view(values.shape)


def _blurred(image: Tensor) -> Tensor:
    """By a Gaussian, cut at two standard deviations; the border's pixels are repeated outside."""
    for dim in (2, 3):
        sigma = BLUR * image.shape[dim]
        reach = int(2 * sigma)
        at = torch.arange(-reach, reach + 1, device=image.device, dtype=image.dtype)
        weights = torch.softmax(-(at**2) / (2 * sigma**2), 0)
        padded = F.pad(image, (reach, reach, 0, 0) if dim == 3 else (0, 0, reach, reach), mode="replicate")
        image = padded.unfold(dim, 2 * reach + 1, 1) @ weights
    return image


def relative(score: float, random: float, clean: float) -> float | None:
    """Mean deletion or insertion scaled so that a random order is 0 and the clean map 1.

    None where the clean map scores like a random order, within `GAP`: the victim hardly tells them apart, and the ratio would
    be noise.
    """
    return (score - random) / (clean - random) if abs(clean - random) >= GAP else None
