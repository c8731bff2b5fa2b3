"""CUDA where there is none: tensors that say they are on a CUDA device compute on the CPU, and refuse to meet tensors that
say they are on the CPU, as CUDA's kernels do. Shows wrong devices, wrong results, and where the program would wait for the
device; not speed, and no autocast. A device is asked for with its index, "cuda:0".
"""

import contextlib
from concurrent.futures import Future
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

CUDA = torch.device("cuda", 0)
aten = torch.ops.aten
COPIES = {aten.copy_.default, aten._to_copy.default}
# whose results the program looks at, or whose shapes depend on numbers
READS = {aten._local_scalar_dense.default, aten.equal.default, aten.nonzero.default, aten.masked_select.default,
         aten.bincount.default, aten._unique2.default}
waits: list[str] = []  # operations that would have waited for all that the device had to do


class OnCuda(Tensor):
    """`held` is on the CPU. PyTorch's own C++ code takes the device for "meta": asked about CUDA, it would look for it."""

    @staticmethod
    def __new__(cls, held: Tensor):
        return Tensor._make_wrapper_subclass(cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype,
                                             device="meta")

    def __init__(self, held: Tensor):
        self.held = held

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_meta = property(lambda self: False)

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return compute(operation, args, kwargs or {})

    def numpy(self, *_, **__):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    __array__ = numpy

    def __repr__(self, **_):
        return f"on cuda:0: {self.held}"

    def tolist(self):
        waits.append("tolist")
        return self.held.tolist()

    def __setitem__(self, place, value):
        if not isinstance(value, OnCuda):  # a number is copied from the CPU, by CUDA too
            waits.append("setitem")
        super().__setitem__(place, value)

    def __reduce_ex__(self, protocol):
        return self.held.__reduce_ex__(protocol)


def compute(operation, args, kwargs):
    """`operation` on what is held, if its tensors may meet; the result is where theirs are, or where it is asked for.

    Stricter than CUDA, which takes row numbers on the CPU too, and waits until they have come.
    """
    given = [x for x in leaves([*args, *kwargs.values()]) if isinstance(x, Tensor)]
    on_cuda = [x for x in given if isinstance(x, OnCuda)]
    wanted = kwargs.get("device")
    if operation in COPIES:
        here = isinstance(given[0], OnCuda)
    else:
        written = given[:1] if operation._schema.is_mutable else []
        if on_cuda and any(not isinstance(x, OnCuda) and (x.ndim or any(x is w for w in written)) for x in given):
            raise RuntimeError(f"{operation}: expected all tensors to be on the same device")
        here = bool(on_cuda)
    if wanted:
        here = torch.device(wanted).type != "cpu"
        kwargs = kwargs | {"device": torch.device("cpu")}
        if here and kwargs.get("generator"):
            raise RuntimeError(f"{operation}: expected a generator of the device")
    if _waits(operation, args, kwargs, given, here):
        waits.append(str(operation))
    got = operation(*replaced(args, held), **{name: replaced(value, held) for name, value in kwargs.items()})
    known = {id(x.held): x for x in on_cuda}  # what an operation writes into stays the tensor that it is
    return replaced(got, lambda x: known[id(x)] if id(x) in known else OnCuda(x)) if here else got


def _waits(operation, args, kwargs, given, here):
    """Reads, and copies: all from the device, and those to it that are not from pinned memory or not told not to wait."""
    if operation in COPIES:
        source = given[-1]
        if isinstance(source, OnCuda):
            return not here
        patient = kwargs.get("non_blocking") or len(args) > 2 and args[2]
        return here and not (patient and getattr(source, "pinned", False))
    masks = operation is aten.index.Tensor and any(x.dtype == torch.bool for x in given[1:])
    return (operation in READS or masks) and isinstance(given[0], OnCuda)


def pin_memory(self, *_):
    if isinstance(self, OnCuda):
        raise RuntimeError("cannot pin a tensor that is not on the CPU")
    pinned = self.clone()
    pinned.pinned = True
    return pinned


def held(x: Tensor) -> Tensor:
    return x.held if isinstance(x, OnCuda) else x


def leaves(x):
    if isinstance(x, (list, tuple)):
        for part in x:
            yield from leaves(part)
    else:
        yield x


def replaced(x, by):
    """x with `by` of each tensor in it."""
    if isinstance(x, (list, tuple)):
        return type(x)(replaced(part, by) for part in x)
    return by(x) if isinstance(x, Tensor) else x


class Everywhere(TorchDispatchMode):
    """Also for operations that none of our tensors takes part in: those that make tensors on a device."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        return compute(operation, args, kwargs or {})


class AtOnce:
    """An executor in the caller's thread, the only one that the emulation reaches."""

    def __init__(self, *_):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, function, *args):
        future = Future()
        future.set_result(function(*args))
        return future


def capture(work, parameters):
    """In place of a CUDA graph: runs `work` again, and leaves what it finds where the first run left it."""
    def afresh():
        for parameter in parameters:
            parameter.grad = None
        return work()

    result = afresh()
    gradients = [parameter.grad for parameter in parameters]

    def replay():
        result.copy_(afresh())
        for parameter, place in zip(parameters, gradients, strict=True):
            if place is not None:
                place.copy_(parameter.grad)
            parameter.grad = place

    return replay, result


@contextlib.contextmanager
def cuda():
    """One CUDA device."""
    tensor = torch.tensor
    with contextlib.ExitStack() as stack:

        def patch(place, **names):
            for name, value in names.items():
                if hasattr(place, name):  # not every version of PyTorch has all of them
                    stack.enter_context(mock.patch.object(place, name, value))

        patch(torch.cuda, _lazy_init=lambda: None, is_available=lambda: True, device_count=lambda: 1,
              set_device=lambda _: None, get_device_name=lambda _: "emulated", mem_get_info=lambda _: (2**33, 2**33))
        patch(torch, tensor=lambda data, device=None, **how: tensor(data, **how).to(device or "cpu"))
        patch(Tensor, pin_memory=pin_memory)
        patch(torch.optim.Optimizer, _accelerator_graph_capture_health_check=lambda self: None,
              _cuda_graph_capture_health_check=lambda self: None)
        stack.enter_context(mock.patch("gnime.batches.ThreadPoolExecutor", AtOnce))
        stack.enter_context(mock.patch("gnime.graphs.capture", capture))
        stack.enter_context(mock.patch("gnime.ops.pooling.fused_serves", lambda x: False))  # Triton compiles for real devices
        stack.enter_context(Everywhere())
        waits.clear()
        yield
