"""The nearest of a few maps that were chosen beforehand (docs/method.md "Defences whose leak is bounded")."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .conditional_mean import ConditionalMean


class Prototypes(nn.Module):
    """The prototype of the predicted class that is nearest to the explanation: log2 K bits, where a class has K of them.

    `gnime.defences.prototypes` fits the buffers. `owner` is each prototype's class, `images` the number of images whose mean it
    is. `squares` (prototypes,) is in no file: it follows from `prototypes` when a state dict is loaded. Every class has a
    prototype.

    Args:
        shape: of one map, (K, S, S).
        prototypes: their number over all classes.
    """

    def __init__(self, shape: Sequence[int], prototypes: int):
        super().__init__()
        self.register_buffer("prototypes", torch.zeros(prototypes, *shape))
        self.register_buffer("owner", torch.zeros(prototypes, dtype=torch.long))
        self.register_buffer("images", torch.zeros(prototypes, dtype=torch.long))
        self.register_buffer("squares", torch.zeros(prototypes), persistent=False)
        self.register_load_state_dict_post_hook(_set_squares)

    def forward(self, explanation: Tensor, prediction: Tensor) -> Tensor:
        """explanation (N, K, S, S), prediction (N, classes) logits. Returns maps like the explanation."""
        # squared distances less |e|^2, infinite where the prototype is of another class: (N, prototypes)
        offsets = torch.where(self.owner == prediction.argmax(1, keepdim=True), self.squares, torch.inf)
        away = torch.addmm(offsets, explanation.flatten(1), self.prototypes.flatten(1).T, alpha=-2)
        return self.prototypes.index_select(0, away.argmin(1))


def _set_squares(network: Prototypes, _) -> None:
    network.squares = network.prototypes.flatten(1).square().sum(1)


class ConditionalPrototypes(nn.Module):
    """clip(g(y) + r, 0, 1), r the nearest to e - g(y) of K prototypes of such residuals: log2 K bits beyond the prediction.

    Args:
        shape: of one map, (K, S, S).
        classes: length of the prediction (logits).
        centres: of g, a `ConditionalMean`.
        prototypes: their number, K.
    """

    def __init__(self, shape: Sequence[int], classes: int, centres: int, prototypes: int):
        super().__init__()
        self.mean = ConditionalMean(shape, classes, centres)
        self.register_buffer("prototypes", torch.zeros(prototypes, *shape))
        self.register_buffer("images", torch.zeros(prototypes, dtype=torch.long))

    def forward(self, explanation: Tensor, prediction: Tensor) -> Tensor:
        """explanation (N, K, S, S) in [0, 1], prediction (N, classes) logits. Returns maps (N, K, S, S) in [0, 1]."""
        mean = self.mean(explanation, prediction)  # g(y) (N, K, S, S)
        nearest = distances((explanation - mean).flatten(1), self.prototypes.flatten(1)).argmin(1)
        return (mean + self.prototypes[nearest]).clamp(0, 1)


def distances(points: Tensor, centres: Tensor) -> Tensor:
    """|c|^2 - 2 p c: squared distances less |p|^2, which is the same for all centres. (N, D), (M, D) -> (N, M)."""
    return torch.addmm(centres.square().sum(1), points, centres.T, alpha=-2)
