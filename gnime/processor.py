"""What a CPU can do."""

import torch


def capabilities() -> dict[str, object]:
    """What the processor has, by PyTorch's names; "amx": whether it has any of AMX. Empty in a PyTorch that does not tell."""
    if not hasattr(torch.cpu, "get_capabilities"):
        return {}
    found = torch.cpu.get_capabilities()
    return found | {"amx": any(has for name, has in found.items() if name.startswith("amx"))}
