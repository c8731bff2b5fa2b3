"""The operations of any network, found by running it: its images are tensors that record what is done with them."""

import sys
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

# answered from the tensor's form: they say nothing about the pixels
INSPECT = {"shape", "size", "dim", "ndim", "ndimension", "numel", "nelement", "stride", "dtype", "device", "layout", "len",
           "hash", "requires_grad", "grad_fn", "get_device", "element_size", "zeros_like", "ones_like", "full_like",
           "new_zeros", "new_ones", "new_full", *("is_" + kind for kind in (
               "cuda cpu meta nested sparse quantized mkldnn leaf contiguous floating_point complex").split())}
SAME = {"iadd": "add", "radd": "add", "imul": "mul", "rmul": "mul", "isub": "sub", "truediv": "div", "itruediv": "div",
        "true_divide": "div", "divide": "div", "multiply": "mul", "subtract": "sub", "negative": "neg"}


@dataclass(eq=False)
class Step:
    """One operation of a forward pass.

    Attributes:
        operation: its name, as "conv2d"; the same for torch.relu, F.relu, x.relu and x.relu_.
        inputs: the steps whose outputs it took. Weights and other constants are no steps.
        out: its output, until it is handed to the network. shape: of the output.
        index: in the tape. uses: indices of the steps that took its output, in order.
    """

    operation: str
    inputs: list["Step"]
    out: Tensor | None = None
    shape: torch.Size = torch.Size()
    index: int = -1
    uses: list[int] = field(default_factory=list)


class Traced(Tensor):
    """A tensor of the running network. PyTorch calls `__torch_function__` for whatever is done with it.

    Its numbers lie in `value`, and it has no memory of its own. So code that reads it in another way fails, and is not
    passed over.
    """

    @staticmethod
    def __new__(cls, step: Step, tape: "Tape") -> "Traced":
        value = step.out
        traced = Tensor._make_wrapper_subclass(cls, value.shape, strides=value.stride(), dtype=value.dtype, device=value.device)
        traced.value, traced.step, traced.tape, traced.stale = value, step, tape, False
        return traced

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        return next(tensors((args, kwargs))).tape.call(function, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        tape = next(tensors((args, kwargs))).tape
        raise tape.refusal(str(function), "its call cannot be seen from Python")


def tensors(nested: object) -> Iterator[Traced]:
    """The traced tensors among arguments, in order."""
    if isinstance(nested, Traced):
        yield nested
    elif isinstance(nested, (list, tuple)):
        for part in nested:
            yield from tensors(part)
    elif isinstance(nested, dict):
        yield from tensors(list(nested.values()))


def values(nested: object) -> object:
    """The arguments with the value of each traced tensor in its place."""
    if isinstance(nested, Traced):
        return nested.value
    if isinstance(nested, (list, tuple)) and any(True for _ in tensors(nested)):
        return type(nested)(values(part) for part in nested)
    return {name: values(part) for name, part in nested.items()} if isinstance(nested, dict) else nested


class Refusal(Exception):
    """An operation that an explainer does not take. No TypeError, which Python's operators would pass over."""


class Tape:
    """Runs a model once and keeps its steps in order. A subclass says in `operate` which value and which step a call has.

    Args:
        xai: the explainer's name, in messages.
    """

    def __init__(self, xai: str, model: nn.Module):
        self.xai, self.model, self.steps = xai, model, []
        self._names = {module: name for name, module in self.model.named_modules()}
        self._alive: list[weakref.ref] = []

    def run(self, images: Tensor) -> tuple[Tensor, Step]:
        """The logits (N, classes), and the step that computed them.

        Raises:
            TypeError: the model returns something else, or an operation is refused.
        """
        try:
            found = self.model(self.wrap(self.source(images.clone())))
        except Refusal as refusal:
            raise TypeError(f"{self.xai}: {refusal}{REMEDY}") from None
        if not isinstance(found, Traced):
            check_logits(found, images)
            raise TypeError(f"{self.xai}: the model's output was not computed from the images by PyTorch's operations alone"
                            f"{REMEDY}")
        check_logits(found.value, images)
        return found.value, found.step

    def source(self, images: Tensor) -> Step:
        return Step("images", [], images)

    def operate(self, operation: str, function: Callable, args: tuple, kwargs: dict) -> object:
        """The steps of a call's outputs, in the structure in which it returns them."""
        raise NotImplementedError

    def call(self, function: Callable, args: tuple, kwargs: dict) -> object:
        operation, in_place = named(function)
        if operation in INSPECT:
            return function(*values(args), **values(kwargs))
        if any(traced.stale for traced in tensors((args, kwargs))):
            raise self.refusal(operation, "its input was changed in place under another name")
        found = self.operate(operation, function, args, kwargs)
        if not (in_place or kwargs.get("inplace")) or not isinstance(found, Step):
            return self.wrap(found)
        if not isinstance(args[0], Traced):
            raise self.refusal(operation, "it writes into a tensor that does not come from the images")
        return self._overwrite(args[0], found)

    def wrap(self, found: object) -> object:
        if isinstance(found, Step):
            found.index, found.shape = len(self.steps), found.out.shape
            for below in found.inputs:
                below.uses.append(found.index)
            self.steps.append(found)
            traced, found.out = Traced(found, self), None
            self._alive.append(weakref.ref(traced))
            return traced
        return type(found)(self.wrap(part) for part in found) if isinstance(found, (list, tuple)) else found

    def _overwrite(self, target: Traced, found: Step) -> Traced:
        """`target` as an operation in place leaves it. Its old value stays as it was, so other views of it are now wrong."""
        old, new = memory(target.value), memory(found.out)
        self._alive = [ref for ref in self._alive if ref() is not None]
        for other in (ref() for ref in self._alive):
            if other is not None and other is not target and old != new and memory(other.value) == old:
                other.stale = True
        traced = self.wrap(found)
        target.value, target.step = traced.value, traced.step
        return target

    def refusal(self, operation: str, why: str) -> "Refusal":
        return Refusal(f"{operation} in {self._where()}: {why}")

    def _where(self) -> str:
        """The innermost module of the model that is being called."""
        frame = sys._getframe()
        while frame is not None:
            module = frame.f_locals.get("self")
            if isinstance(module, nn.Module) and module in self._names:
                return f"layer {self._names[module] or 'model'!r}, a {type(module).__name__}"
            frame = frame.f_back
        return "the model"


REMEDY = "; choose another explainer, or one of your own with --xai FILE.py:NAME"


def named(function: Callable) -> tuple[str, bool]:
    """The operation's name, and whether it changes its first argument: Tensor.__iadd__ -> "add", True."""
    name = getattr(function, "__name__", str(function))
    if name == "__get__":  # an attribute of a tensor, as x.shape
        return function.__self__.__name__, False
    in_place = name == "__setitem__" or name.startswith("__i") or (name.endswith("_") and not name.endswith("__"))
    name = name.strip("_")
    return SAME.get(name, name), in_place


def memory(value: Tensor) -> int:
    return value.untyped_storage().data_ptr()


_noted: ContextVar[list[Tensor] | None] = ContextVar("logits that explainers computed", default=None)


class NotedLogits:
    """A context with a list that receives the logits (N, classes) that explainers compute within it.

    For a caller who needs them as well.
    """

    def __enter__(self) -> list[Tensor]:
        noted: list[Tensor] = []
        self._token = _noted.set(noted)
        return noted

    def __exit__(self, *_: object) -> None:
        _noted.reset(self._token)


def check_logits(found: object, images: Tensor) -> None:
    """Raises:
        TypeError: `found` is no tensor (N, classes) of floating point.
    """
    if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(images) or not found.is_floating_point():
        what = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise TypeError(f"the model returns {what} for {len(images)} images; explainers need logits, a tensor (N, classes)")
    if (noted := _noted.get()) is not None:
        noted.append(found.detach().as_subclass(Tensor).clone())  # a clone, because LRP writes over them
