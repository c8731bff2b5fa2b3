"""One training step four ways: eager, captured as one CUDA graph, compiled, compiled and captured.

Each way has fresh networks of the same weights, so losses and gradients must agree up to rounding.
"""

import time
from collections.abc import Callable

import env
import steps
import torch
from timing import milliseconds
from torch import Tensor, nn

WAYS = "eager", "graph", "compiled", "compiled graph"
BACKEND = "inductor"


def measure(kind: str, precision: str, ways: tuple[str, ...] = WAYS, n: int | None = None) -> dict[str, dict | str]:
    """For each way: milliseconds of losses and gradients, the last network's loss and gradient norm, and seconds to the end
    of the first step. What a way raised is recorded as text."""
    device, target = env.open_device(precision), env.targets()[0]
    shape = steps.sides(target)[""]
    values = steps.batch(target, shape, n or (4 if env.TINY else steps.BATCH[kind]), device.torch)
    figures = {}
    for way in ways:
        torch._dynamo.reset()
        nets = steps.networks(kind, target, shape, device.torch)
        try:
            figures[way] = _measure(nets, values, way, precision)
        except Exception as error:
            figures[way] = f"{type(error).__name__}: {error}"[:400]
        del nets
    return figures


def _measure(nets: list[nn.Module], values: list[Tensor], way: str, precision: str) -> dict:
    captured, where = way.endswith("graph"), values[0].device
    if way.startswith("compiled"):
        for net in nets:
            getattr(net, "network", net).compile(dynamic=False, backend=BACKEND)  # of an injector, the network inside

    def work() -> Tensor:
        for net in nets:
            net.zero_grad(set_to_none=True)
        # a graph may not keep copies of weights that were made outside it
        autocast = torch.autocast(where.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=not captured)
        return steps.step(nets, values, autocast)

    began = time.perf_counter()
    work().item()  # waits for the device
    first = time.perf_counter() - began
    replay, loss = capture(work) if captured else (work, None)
    figures = {"ms": round(milliseconds(replay, 0.5), 3), "first_step_s": round(first, 2)}
    last = replay()
    loss = last if loss is None else loss
    return figures | {"loss": loss.item(), "gradient norm": steps.gradient(nets[-1:]).norm().item()}


def capture(work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """`work` as one CUDA graph: (what runs it, the tensor that then holds its result)."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = work()
    return graph.replay, result


def check_graphs() -> dict:
    """Whether a captured step gives the losses and gradients of an eager one.

    Raises:
        AssertionError: it fails, or they differ.
    """
    figures = {}
    for kind in ("expmi", "injector"):
        found = figures[kind] = measure(kind, "tf32", ("eager", "graph"), 64)
        for way, numbers in found.items():
            assert isinstance(numbers, dict), f"{kind}, {way}: {numbers}"
        for number in ("loss", "gradient norm"):
            eager, graph = found["eager"][number], found["graph"][number]
            assert abs(graph - eager) <= 1e-2 * abs(eager), f"{kind}: {number} {graph} as a graph, {eager} without"
    return figures
