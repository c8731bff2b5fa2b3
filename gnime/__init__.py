"""GNIME: measure how much a model's explanations leak of the images they explain, and stop it."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .protected import Protected

__version__ = "0.1.0"
__all__ = ["Protected", "__version__"]


def __getattr__(name: str) -> object:
    """`Protected` is imported when it is first used, because PyTorch is slow to import."""
    if name == "Protected":
        return import_module(".protected", __name__).Protected
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
