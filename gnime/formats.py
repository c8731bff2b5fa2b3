"""A defence as a program that runs without this package: ONNX, or PyTorch's own format."""

import contextlib
import importlib.util
import io
import json
import warnings

import torch
from torch import Tensor, nn

from .errors import GnimeError

INPUTS, OUTPUT = ("explanation", "prediction"), "protected"
METADATA = "gnime"  # key of the metadata, JSON, in both formats
CLOSE = 1e-5  # the most by which a number may differ from the network's own
NEEDS = {".onnx": ("onnx", "onnxscript", "onnxruntime"), ".pt2": ()}  # packages beside PyTorch


def require_packages(suffix: str) -> None:
    """Raises a `GnimeError` if a package is missing that writes and verifies files of this suffix."""
    if missing := [name for name in NEEDS[suffix] if importlib.util.find_spec(name) is None]:
        raise GnimeError(f"{suffix}: {', '.join(missing)} not installed; install with: pip install {' '.join(missing)}, "
                         "or give a name that ends with .pt2")


def convert(network: nn.Module, example: tuple[Tensor, Tensor], suffix: str, metadata: dict) -> bytes:
    """The content of a file of that suffix: explanation and prediction in, protected explanation out, any number of images.

    Args:
        network: the defence, plain, in evaluation mode, on the CPU.
        example: explanations (n, K, S, S) in [0, 1] and predictions (n, classes) of a few images, n at least 2. The program
            is run on them and compared with the network.
        metadata: plain data that the file keeps; see `read_metadata`.

    Raises:
        GnimeError: the network cannot be converted, or its program computes something else.
    """
    text = json.dumps(metadata, indent=1, allow_nan=False)
    batch = torch.export.Dim("batch", min=1)
    try:
        with _quiet(), torch.no_grad():
            program = torch.export.export(network, example, dynamic_shapes=({0: batch}, {0: batch}))
            content = (_onnx if suffix == ".onnx" else _pt2)(program, text)
    except Exception as error:  # of many kinds
        raise GnimeError(f"the defence cannot be converted to {suffix} ({' '.join(str(error).split())[:200]})") from None
    for part in (example, tuple(value[:1] for value in example)):
        off = (run(content, suffix, part) - network(*part)).abs().max().item()
        if not off <= CLOSE:
            raise GnimeError(f"the {suffix} program computes something else: a number is off by {off:.1e}, more than {CLOSE:g}")
    return content


def _onnx(program: torch.export.ExportedProgram, text: str) -> bytes:
    model = torch.onnx.export(program, dynamo=True, verbose=False, input_names=INPUTS, output_names=[OUTPUT]).model_proto
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA, text
    return model.SerializeToString()


def _pt2(program: torch.export.ExportedProgram, text: str) -> bytes:
    content = io.BytesIO()
    torch.export.save(program, content, extra_files={METADATA: text})
    return content.getvalue()


def run(content: bytes, suffix: str, inputs: tuple[Tensor, Tensor]) -> Tensor:
    """The protected explanations (n, K, S, S) that a file's program computes of explanations and predictions, on the CPU."""
    if suffix == ".pt2":
        return torch.export.load(io.BytesIO(content)).module()(*inputs).detach()
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (found,) = session.run([OUTPUT], dict(zip(INPUTS, (value.numpy() for value in inputs), strict=True)))
    return torch.from_numpy(found)


@contextlib.contextmanager
def _quiet():
    """Without the converters' own messages, which are about their inner workings."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
