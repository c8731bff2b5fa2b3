"""Fast formulations of the networks' layers, and two functions: one puts them in place, the other removes them.

Up to rounding they have the outputs and the gradients of the plain networks in `gnime.models` (tests/test_formulations.py).
Most of them are for CPUs. On a GPU they call the library's kernels.
"""

from torch import nn

from ..models.classifier import Classifier
from ..models.inversion import Decoder, Encoder
from .classifier import FastClassifier
from .inverters import FastDecoder, FastEncoder

FAST = {Encoder: FastEncoder, Decoder: FastDecoder, Classifier: FastClassifier}


def accelerate(network: nn.Module) -> nn.Module:
    """Gives the network's encoders, decoders and classifiers fast forward passes, in place. Returns the network.

    The class of such a module becomes a subclass of its class. Parameters, state-dict keys and all other modules stay as they
    are. An accelerated network does not call forward hooks of its convolutions and does not have second derivatives.
    Explainers refuse an accelerated classifier; see `plain`.
    """
    return _replace(network, FAST)


def plain(network: nn.Module) -> nn.Module:
    """Undoes `accelerate`, in place. Returns the network."""
    return _replace(network, {fast: slow for slow, fast in FAST.items()})


def _replace(network: nn.Module, classes: dict[type, type]) -> nn.Module:
    for module in network.modules():
        if type(module) in classes:
            module.__class__ = classes[type(module)]
    return network
