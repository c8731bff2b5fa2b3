"""Victim and evaluation classifier: one architecture (paper, appendix; METHOD "Classifiers")."""

from collections import OrderedDict

from torch import Tensor, nn

from .convolutions import Conv
from .explainers.stack import apply, pool_first


class Classifier(nn.Sequential):
    """Convolutions 3x3 with ReLU, each followed by 2x2 max pooling; two dense layers; logits.

    Args:
        channels, size: of the images, (N, channels, size, size) in [0, 1].
        classes: number of logits.
        convs: channels of each convolution.
        hidden: units of the first dense layer.
        dropout: probability before each dense layer; 0 builds none.
        features: what DeePSiM compares, "pool" (the flattened last pooling) or "hidden" (the dense layer after ReLU).
    """

    same_function = True  # as nn.Sequential's

    def __init__(self, channels: int, size: int, classes: int, convs: tuple[int, ...], hidden: int,
                 dropout: float = 0.0, features: str = "pool"):
        parts: list[tuple[str, nn.Module]] = []
        widths = (channels, *convs)
        for i, (below, above) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
            parts += [(f"conv{i}", Conv(below, above)), (f"relu{i}", nn.ReLU()),
                      (f"pool{i}", nn.MaxPool2d(2))]
        flat = convs[-1] * (size >> len(convs)) ** 2
        parts += [("flatten", nn.Flatten())]
        parts += [("drop0", nn.Dropout(dropout))] if dropout else []
        parts += [("fc0", nn.Linear(flat, hidden)), ("relu", nn.ReLU())]
        parts += [("drop1", nn.Dropout(dropout))] if dropout else []
        parts += [("fc1", nn.Linear(hidden, classes))]
        super().__init__(OrderedDict(parts))
        self.last_feature = "flatten" if features == "pool" else "relu"
        for layer in self:
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, channels, size, size) in [0, 1] to logits (N, classes)."""
        return apply(pool_first(self) if self.training else self, images)

    def features(self, images: Tensor) -> Tensor:
        """(N, F): the layer that DeePSiM compares. Call in evaluation mode."""
        x = images
        for name, layer in self.named_children():
            x = layer(x)
            if name == self.last_feature:
                return x
        raise AssertionError(self.last_feature)
