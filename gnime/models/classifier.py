"""The classifier, of which victim and evaluation classifier are two instances (docs/method.md "Classifiers")."""

from collections import OrderedDict

from torch import Tensor, nn

from .inversion import initialise


class Classifier(nn.Sequential):
    """3x3 convolutions with ReLU, each followed by 2x2 max pooling, then two dense layers.

    The forward pass is that of nn.Sequential: images (N, channels, size, size) in [0, 1] -> logits (N, classes).

    Args:
        image: (channels, size) of the images.
        classes: number of logits.
        convs: output channels of each convolution.
        hidden: units of the first dense layer.
        dropout: probability of dropout before each dense layer; with 0 there are no dropout layers.
        features: the layer that DeePSiM compares, "pool" (the flattened last pooling) or "hidden" (the first dense layer after
            its ReLU).
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
        """The output of the layer that DeePSiM compares. The network must be in evaluation mode.

        images: (N, channels, size, size) in [0, 1]. Returns (N, F), F = flat or hidden, values of at least 0.
        """
        x = images
        for name, layer in self._modules.items():  # named_children() leaves out an object's second place
            x = layer(x)
            if name == self.last_feature:
                return x
        raise AssertionError(self.last_feature)
