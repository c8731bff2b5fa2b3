"""Writes docs/api.md from the docstrings of the public names: `python docs/api.py`."""

import inspect
import sys
from importlib import import_module
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

OUT = HERE / "api.md"
PUBLIC = {  # module: names
    "gnime": ["Protected"],
    "gnime.networks": ["rebuild", "build"],
    "gnime.explainers.lrp": ["lrp"],
    "gnime.explainers.grad": ["grad"],
    "gnime.explainers.gradcam": ["gradcam"],
    "gnime.explainers.stack": ["minmax"],
    "gnime.ops": ["accelerate", "plain"],
    "gnime.models.injector": ["Injector"],
    "gnime.models.conditional_mean": ["ConditionalMean"],
    "gnime.models.prototypes": ["Prototypes", "ConditionalPrototypes"],
    "gnime.models.inversion": ["PredMI", "ExpMI"],
    "gnime.models.classifier": ["Classifier"],
    "gnime.metrics.leakage": ["mse", "psnr", "ssim", "residual_leakage"],
    "gnime.metrics.usefulness": ["pearson", "spearman", "top_overlap"],
    "gnime.checkpoints": ["load_checkpoint", "Checkpoint"],
    "gnime.formats": ["convert", "run"],
    "gnime.export": ["export", "evaluation"],
    "gnime.errors": ["GnimeError", "UsageError", "Unfinished", "Stopped"],
}
HEAD = """# Public names

Shapes, ranges and errors, from the docstrings. `python docs/api.py` writes this file, and a test compares it. Names that are
not listed may change at any time.
"""


def text() -> str:
    """The content of docs/api.md."""
    parts = [HEAD]
    for module, names in PUBLIC.items():
        parts.append(f"## {module}\n")
        for name in names:
            parts += _entry(getattr(import_module(module), name), name)
    return "\n".join(parts)


def _entry(found: object, name: str, level: str = "###") -> list[str]:
    """A heading with the signature, the docstring as it stands, and a class's own public methods."""
    lines = [f"{level} {_signature(found, name)}\n", "```text", inspect.getdoc(found) or "", "```\n"]
    if inspect.isclass(found):
        for inner, method in vars(found).items():
            method = getattr(method, "__func__", method)
            if inspect.isfunction(method) and (not inner.startswith("_")):
                lines += _entry(method, f"{name}.{inner}", "####")
    return lines


def _signature(found: object, name: str) -> str:
    """Name and parameters without annotations, whose form differs between versions of Python."""
    if inspect.isclass(found) and "__init__" not in vars(found) and not hasattr(found, "__dataclass_fields__"):
        return f"`{name}`"
    parameters = [p.replace(annotation=inspect.Parameter.empty) for p in inspect.signature(found).parameters.values()
                  if p.name not in ("self", "cls")]
    return f"`{name}{inspect.Signature(parameters)}`"


if __name__ == "__main__":
    OUT.write_text(text(), encoding="utf-8")
