"""Victim and evaluation classifier: one architecture (paper, appendix; METHOD "Classifiers")."""

from collections import OrderedDict

from torch import Tensor, nn

from .inversion import initialise


class Classifier(nn.Sequential):
    """Convolutions 3x3 with ReLU, each followed by 2x2 max pooling; two dense layers; logits.

    The forward pass is nn.Sequential's: images (N, channels, size, size) in [0, 1] -> logits (N, classes).

    Args:
        image: channels and size of the images.
        classes: number of logits.
        convs: channels of each convolution.
        hidden: units of the first dense layer.
        dropout: probability before each dense layer; 0 builds none.
        features: the layer that DeePSiM compares, "pool" (the flattened last pooling) or "hidden" (the dense layer after
            ReLU).
    """

    def __init__(self, image: tuple[int, int], classes: int, convs: tuple[int, ...], hidden: int, dropout: float = 0.0,
                 features: str = "pool"):
        channels, size = image
        parts: list[tuple[str, nn.Module]] = []
        widths = (channels, *convs)
        for i, (below, above) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
            parts += [(f"conv{i}", nn.Conv2d(below, above, 3, padding=1)),  # (N, above, T/2^i, T/2^i)
                      (f"relu{i}", nn.ReLU()),
                      (f"pool{i}", nn.MaxPool2d(2))]  # (N, above, T/2^(i+1), T/2^(i+1))
        flat = convs[-1] * (size >> len(convs)) ** 2
        parts += [("flatten", nn.Flatten())]  # (N, flat)
        parts += [("drop0", nn.Dropout(dropout))] if dropout else []
        parts += [("fc0", nn.Linear(flat, hidden)), ("relu", nn.ReLU())]  # (N, hidden)
        parts += [("drop1", nn.Dropout(dropout))] if dropout else []
        parts += [("fc1", nn.Linear(hidden, classes))]  # (N, classes)
        super().__init__(OrderedDict(parts))
        self.last_feature = "flatten" if features == "pool" else "relu"
        initialise(self)

    def features(self, images: Tensor) -> Tensor:
        """The layer that DeePSiM compares. Call in evaluation mode.

        images: (N, channels, size, size) in [0, 1]. Returns (N, F), F = flat or hidden, values of at least 0.
        """
        x = images
        for name, layer in self.named_children():
            x = layer(x)
            if name == self.last_feature:
                return x
        raise AssertionError(self.last_feature)
