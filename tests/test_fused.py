"""The Triton kernels of ReLU and pooling against PyTorch's operations, and when they are used."""

import importlib.util
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import emulated
import pytest
import torch
import torch.nn.functional as F

from gnime.ops import pooling

LAYOUTS = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels last"])
SOURCE = Path(pooling.__file__).with_name("fused.py")


@pytest.fixture
def interpreted(monkeypatch, tmp_path):
    """Loads fused.py, with one piece of its text replaced, for Triton's interpreter, which computes on the CPU."""
    pytest.importorskip("triton", reason="Triton comes with PyTorch's builds for CUDA alone")
    monkeypatch.setenv("TRITON_INTERPRET", "1")

    def load(old="", new=""):
        text = SOURCE.read_text().replace("tl.constexpr(1024)", "tl.constexpr(16)")  # which it computes sooner
        assert old in text and "tl.constexpr(16)" in text
        file = tmp_path / f"fused_{len(list(tmp_path.iterdir()))}.py"
        file.write_text(text.replace(old, new))
        spec = importlib.util.spec_from_file_location("gnime.ops.fused", file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setitem(sys.modules, "gnime.ops.fused", module)
        return module.FusedReluAndPool.apply

    return load


def plain(x):
    x = F.relu(x)
    return x, F.max_pool2d(x, 2)


def measured(function, x, dx, dpooled):
    """Both outputs, and the gradient for x."""
    x = x.clone().requires_grad_()
    outputs = function(x * 1)  # a network's map: not a leaf
    return [*outputs, *torch.autograd.grad(outputs, x, [dx, dpooled])]


def test_the_kernels_compile_for_a_device(monkeypatch, tmp_path):
    """No device is needed for that. Threads read and write 16 bytes at a time, and sums are rounded to nearest.

    It is the first test here: Triton 3.3 does not compile after it has interpreted."""
    pytest.importorskip("triton.backends.nvidia", reason="Triton comes with PyTorch's builds for CUDA alone")
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.delitem(sys.modules, "gnime.ops.fused", raising=False)
    from gnime.ops import fused

    others = {"channels": "i32", "row": "i32", "codes": "*i8"}
    for kernel in (fused.relu_and_pool, fused.relu_and_pool_backward):
        types = {name: others.get(name, "*bf16") for name in kernel.arg_names}
        aligned = {(i,): [["tt.divisibility", 16]] for i in range(len(types))}
        made = triton.compile(ASTSource(kernel, types, None, aligned), target=GPUTarget("cuda", 90, 32)).asm
        assert len(made["cubin"]) and "cvt.rn.bf16" in made["ptx"]
        assert made["ptx"].count("ld.global.v4.b32") >= 4 and made["ptx"].count("st.global.v4.b32") >= 4


@LAYOUTS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 3, 4, 6), (1, 1, 8, 32), (3, 2, 2, 8), (1, 5, 2, 16), (0, 3, 4, 4)])
def test_the_kernels_equal_pytorchs(interpreted, shape, dtype, layout):
    """Many values are equal, some are not finite, and gradients are small integers: the interpreter rounds bf16 towards zero,
    which devices do not. Rows of 40 windows take three programs. Gradients come in the other order too."""
    h, w = shape[2:]
    x = torch.randint(-2, 3, shape).to(dtype) / 2
    if x.numel() > 200:
        x.view(-1)[::97] = math.nan
        x.view(-1)[::101] = math.inf
        x.view(-1)[::103] = -math.inf
    dx, dpooled = (torch.randint(-9, 10, (*shape[:2], *sides)).to(dtype) for sides in ((h, w), (h // 2, w // 2)))
    found = measured(interpreted(), x.contiguous(memory_format=layout), dx, dpooled)
    for one, other in zip(found, measured(plain, x, dx, dpooled), strict=True):
        assert one.dtype == dtype
        assert torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)
        assert one.is_contiguous(memory_format=layout)


@pytest.fixture
def unchecked(monkeypatch):
    """As in a process that has met no map yet, on a device that does not capture."""
    monkeypatch.setattr(pooling, "_equals_plain", {})
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)


@pytest.mark.parametrize(("old", "new"), [
    ("value > largest", "value >= largest"),  # the last of equal values
    ("tl.where(value <= 0, 0.0, value)", "value"),
    ("% 2 == 1, summed", "% 2 < 2, summed"),  # no gradient of ReLU
    ("direct + tl", "0 * direct + tl"),
    ("code // 16 == pixel", "code // 16 == 3 - pixel"),
    ("largest.to", "value.to"),
    ("window // channels * channels", "window"),
    ("16 * winner", "8 * winner"),
    ("return x, pooled", "raise RuntimeError('no device' + chr(10) + 'more')"),
])
def test_a_kernel_that_fails_or_differs_is_used_for_no_map(interpreted, unchecked, capsys, old, new):
    interpreted(old, new)
    x = torch.zeros(5, 2, 4, 4).contiguous(memory_format=torch.channels_last)
    assert not pooling.fused_serves(x) and not pooling.fused_serves(x) and not pooling.fused_serves(x.bfloat16())
    (line,) = capsys.readouterr().err.splitlines()
    assert "without their fused kernel" in line and "more" not in line
    assert ("RuntimeError: no device" if "raise" in new else "results differ") in line


@LAYOUTS
def test_kernels_are_compared_once_for_maps_of_a_kind(interpreted, unchecked, capsys, monkeypatch, layout):
    interpreted()
    counted, problem = [], pooling._problem
    monkeypatch.setattr(pooling, "_problem", lambda x: counted.append(x) or problem(x))
    x = torch.zeros(5, 2, 4, 4).contiguous(memory_format=layout)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert not pooling.fused_serves(x) and not counted, "a comparison would end the recording"
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    state = torch.get_rng_state()
    for n, different in ((5, 1), (3, 1)):
        assert pooling.fused_serves(x[:n]) and len(counted) == different
    assert pooling.fused_serves(x.bfloat16()) and len(counted) == 2
    assert torch.get_rng_state().equal(state), "a run's random numbers stay"
    for other in (x.double(), x[:, :, :3], x[:, :, :, 1:], x[:, :, ::2]):
        assert not pooling.fused_serves(other)
    assert len(counted) == 2 and not capsys.readouterr().err


def test_without_triton(unchecked, monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "gnime.ops.fused", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    assert not pooling.fused_serves(torch.zeros(1, 2, 4, 4))
    assert capsys.readouterr().err.count("import of triton") == 1


def test_cuda_takes_the_kernels_in_training(unchecked, monkeypatch):
    """Those of a CPU in their place, on the emulated device."""
    used, serves = [], pooling.fused_serves
    apply = pooling.ReluAndPool.apply
    kernels = SimpleNamespace(FusedReluAndPool=SimpleNamespace(apply=lambda x: used.append(x) or apply(x)))
    monkeypatch.setitem(sys.modules, "gnime.ops.fused", kernels)
    x = torch.randn(2, 3, 4, 4)
    dx, dpooled = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 2, 2)
    with emulated.cuda():
        monkeypatch.setattr(pooling, "fused_serves", serves)
        given = [values.to("cuda:0") for values in (x, dx, dpooled)]
        found = measured(pooling.relu_and_pool, *given)
        assert len(used) == 2, "compared, and used"
        with torch.no_grad():
            pooling.relu_and_pool(given[0].clone())
        assert len(used) == 2
        found = [values.cpu() for values in found]
    for one, other in zip(found, measured(plain, x, dx, dpooled), strict=True):
        assert one.equal(other)
