"""Each fast formulation against the plain one: outputs and gradients, and the shapes that choose it."""

import itertools
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gnime.batches import channels_last
from gnime.ops import convolution, pooling, stacked, upsampling, winograd
from gnime.ops import thin as thin_module
from gnime.ops.convolution import conv
from gnime.ops.dense import dense
from gnime.ops.pooling import relu_and_pool
from gnime.ops.stacked import StackedConv
from gnime.ops.thin import ThinTransposed
from gnime.ops.upsampling import TapProducts, _taps, folded_conv, spread_conv, upsample_conv
from gnime.products import training_products


def plain(x, weight, bias, factor=2):
    return F.conv2d(F.interpolate(x, scale_factor=factor), weight, bias, padding=1)


def products(x, weight, bias):
    return TapProducts.apply(x, _taps(weight), bias)


def with_gradients(function, inputs, cotangent):
    inputs = [i.detach().clone().requires_grad_() for i in inputs]
    output = function(*inputs)
    return [output, *torch.autograd.grad(output, inputs, cotangent.to(output.dtype))]


def close(found, expected, relative):
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert (one.double() - other).abs().max() <= relative * other.abs().max()


def thin(x, weight, bias):
    y = ThinTransposed.apply(x, upsampling._folded(weight), 2)
    return y + bias.to(y.dtype)[:, None, None]


@pytest.mark.parametrize("function", [folded_conv, products, thin])
@pytest.mark.parametrize(("shape", "outputs"), [((1, 3, 1, 1), 2), ((2, 5, 1, 4), 33), ((7, 16, 4, 4), 40), ((3, 2, 5, 3), 1)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_upsampling_convolutions(function, shape, outputs, layout, monkeypatch):
    torch.manual_seed(0)
    inputs = torch.randn(shape), torch.randn(outputs, shape[1], 3, 3), torch.randn(outputs)
    cotangent = torch.randn(shape[0], outputs, 2 * shape[2], 2 * shape[3])
    expected = with_gradients(plain, [i.double() for i in inputs], cotangent)
    monkeypatch.setattr(upsampling, "CACHED", 9 * outputs * shape[2] * shape[3] * 3)  # three images at a time and a rest
    laid_out = [i.contiguous(memory_format=layout) if i.ndim == 4 else i for i in inputs]
    close(with_gradients(function, [i.double() for i in laid_out], cotangent), expected, 1e-13)
    close(with_gradients(function, laid_out, cotangent), expected, 1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        found = with_gradients(function, laid_out, cotangent)
    assert found[0].dtype == torch.bfloat16
    close(found, expected, 2e-2)


@pytest.mark.parametrize(("dtype", "relative"), [(torch.float32, 1e-5), (torch.double, 1e-13)])
def test_convolution_of_a_spread_pixel(dtype, relative):
    inputs = [torch.randn(shape, dtype=torch.double) for shape in ((2, 6, 1, 1), (4, 6, 3, 3), (4,))]
    cotangent = torch.randn(2, 4, 4, 4, dtype=torch.double)
    expected = with_gradients(partial(plain, factor=4), inputs, cotangent)
    close(with_gradients(spread_conv, [i.to(dtype) for i in inputs], cotangent), expected, relative)


@pytest.mark.parametrize(("taps", "shape", "lengths"), [
    (2**14, (7, 16, 4, 4), [4, 3]),  # 2**20 / 2**14 = 64 pixels
    (2**22, (7, 32, 4, 4), [4, 3]),  # 2 * 32 pixels at the least
    (2**22, (2, 1, 8, 8), [1, 1]),  # an image at the least
])
def test_parts_are_few_images_each(taps, shape, lengths):
    parts = upsampling._images(torch.zeros(taps, 0), torch.zeros(shape))
    assert [len(part) for part, in parts] == lengths


@pytest.mark.parametrize(("shape", "outputs"), [
    ((5, 8, 12, 8), 6),  # Winograd's, three tiles by two
    ((3, 6, 4, 4), 7),  # a tile, which has no neighbours
    ((3, 6, 4, 8), 7),
    ((3, 6, 8, 4), 7),
    ((4, 5, 6, 8), 6),  # no whole tiles: the library's
    ((4, 5, 8, 6), 6),
    ((3, 40, 5, 4), 3),  # few outputs
    ((2, 3, 4, 5), 5),  # few inputs
    ((3, 1, 6, 3), 9),
])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_convolutions(shape, outputs, with_bias, layout, monkeypatch):
    torch.manual_seed(0)
    inputs = [torch.randn(shape), torch.randn(outputs, shape[1], 3, 3), torch.randn(outputs)][: 2 + with_bias]
    cotangent = torch.randn(shape[0], outputs, *shape[2:])
    expected = with_gradients(lambda *given: F.conv2d(*given, padding=1), [i.double() for i in inputs], cotangent)
    monkeypatch.setattr(convolution, "WIDE", 20)
    monkeypatch.setattr(convolution, "THIN_INPUT", 4)
    monkeypatch.setattr(convolution, "MANY", 3)
    monkeypatch.setattr(winograd, "TILES", shape[2] * shape[3] // 8)  # two images at a time and a rest
    laid_out = [i.contiguous(memory_format=layout) if i.ndim == 4 else i for i in inputs]
    close(with_gradients(conv, [i.double() for i in laid_out], cotangent), expected, 1e-13)
    close(with_gradients(conv, laid_out, cotangent), expected, 1e-5)
    with training_products():
        close(with_gradients(conv, [i.double() for i in laid_out], cotangent), expected, 1e-13)
        close(with_gradients(conv, laid_out, cotangent), expected, 1e-5)


@pytest.mark.parametrize(("shape", "outputs", "kind"), [
    ((9, 64, 8, 8), 1, "ThinTransposed"), ((9, 64, 4, 4), 1, "ThinTransposed"), ((5, 64, 8, 8), 3, "ThinTransposed"),
    ((64, 256, 4, 4), 512, "StackedConv"), ((32, 64, 4, 4), 128, "StackedConv"),
    ((31, 64, 4, 4), 128, None), ((64, 64, 2, 4), 128, None), ((64, 64, 4, 8), 128, None),
    ((9, 1, 8, 8), 64, "ThinInputConv"), ((64, 512, 8, 8), 256, None)])
def test_convolutions_under_autocast(shape, outputs, kind, monkeypatch):
    """Maps and their gradients are bf16, of 8 bits: an error of a hundredth of the largest value is allowed."""
    torch.manual_seed(0)
    inputs = torch.randn(shape), torch.randn(outputs, shape[1], 3, 3), torch.randn(outputs)
    cotangent = torch.randn(shape[0], outputs, *shape[2:]).bfloat16()
    called = []
    for function in (thin_module.ThinTransposed, thin_module.ThinInputConv, winograd.Winograd, StackedConv):
        monkeypatch.setattr(function, "apply", lambda *given, f=function, original=function.apply: called.append(f.__name__)
                            or original(*given))
    laid_out = [i.contiguous(memory_format=torch.channels_last) if i.ndim == 4 else i for i in inputs]

    def under_autocast(x, weight, bias):
        with torch.autocast("cpu", torch.bfloat16):
            return conv(x.bfloat16(), weight, bias)

    found = with_gradients(under_autocast, laid_out, cotangent)
    assert called == ([kind] if kind and (kind != "StackedConv" or stacked._is_tried()) else [])
    assert found[0].dtype == torch.bfloat16
    rounded = [i.bfloat16().double() for i in inputs]
    close(found, with_gradients(lambda *given: F.conv2d(*given, padding=1), rounded, cotangent.double()), 1e-2)


@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # of the switch itself
@pytest.mark.parametrize("library", [True, False])  # oneDNN, or PyTorch without it
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("shape", "outputs"), [((32, 64, 4, 4), 40), ((33, 3, 4, 4), 5), ((2, 1, 1, 1), 1), ((3, 2, 3, 4), 2)])
def test_stacked_convolutions_are_exact_where_16_bits_are(shape, outputs, layout, with_bias, library):
    """Sums of small integers are exact in 32 bits, so in 16 bits they are rounded once."""
    if library and not stacked._is_tried():
        pytest.skip("stacks are not used on this processor")
    torch.manual_seed(0)
    inputs = [torch.randint(-1, 2, size).double() for size in (shape, (outputs, shape[1], 3, 3), (outputs,))][: 2 + with_bias]
    cotangent = torch.randint(-1, 2, (shape[0], outputs, *shape[2:])).double()
    expected = with_gradients(lambda *given: F.conv2d(*given, padding=1), inputs, cotangent)
    laid_out = [i.float().contiguous(memory_format=layout) if i.ndim == 4 else i.float() for i in inputs]
    with torch.autocast("cpu", torch.bfloat16), torch.backends.mkldnn.flags(enabled=library):
        found = with_gradients(lambda x, weight, bias=None: StackedConv.apply(x, weight, bias), laid_out, cotangent)
    assert found[0].dtype == torch.bfloat16 and found[0].is_contiguous(memory_format=torch.channels_last)
    for one, other in zip(found, expected, strict=True):
        assert one.double().equal(other.bfloat16().double())


def test_elsewhere_the_library_convolves_small_maps(monkeypatch):
    monkeypatch.setattr(stacked, "_is_tried", lambda: False)
    monkeypatch.setattr(StackedConv, "apply", None)
    with torch.autocast("cpu", torch.bfloat16):
        assert conv(torch.zeros(32, 64, 4, 4), torch.zeros(64, 64, 3, 3)).shape == (32, 64, 4, 4)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("channels", "outputs", "shape"), [(1, 64, (3, 5, 4)), (3, 40, (33, 4, 4)), (31, 8, (2, 1, 3))])
def test_the_librarys_gradients_of_thin_layers_are_exact_where_16_bits_are(channels, outputs, shape, layout, stride):
    torch.manual_seed(0)
    n, h, w = shape
    x = torch.randint(-1, 2, (n, channels, stride * h, stride * w)).double()
    dy = torch.randint(-1, 2, (n, outputs, h, w)).double()
    weight = torch.zeros(outputs, channels, stride + 2, stride + 2, dtype=torch.double)
    expected = with_gradients(lambda *given: F.conv2d(x, *given, stride=stride, padding=1), [weight, dy[0, :, 0, 0]], dy)[1:]
    laid_out = [maps.bfloat16().contiguous(memory_format=layout) for maps in (x, dy)]
    gradients = partial(thin_module._library_gradients, *laid_out, stride)
    both, alone = gradients(True, True), (gradients()[0], gradients(False, True)[1])
    for found in both, alone:
        for one, other in zip(found, expected, strict=True):
            assert one.double().equal(other.bfloat16().double())


def test_stacks_are_for_processors_on_which_they_were_tried(monkeypatch):
    decide, known = stacked._is_tried.__wrapped__, {"architecture": "x86_64", "avx512_bf16": True, "amx_bf16": False}
    for found, expected in ((known, True), (known | {"amx_bf16": True}, False), (known | {"avx512_bf16": False}, False)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=found: found)
        assert decide() == expected
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # an older PyTorch
    assert not decide()


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(("channels", "outputs"), [(40, 3), (3, 40), (40, 40)])  # few outputs, few inputs, a stack in 16 bits
def test_each_gradient_comes_without_the_others(channels, outputs, bf16, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(stacked, "FEW", 3)
    given = torch.randn(3, channels, 4, 4), torch.randn(outputs, channels, 3, 3), torch.randn(outputs)

    def gradients(function, wanted, dtype):
        inputs = [one.to(dtype, copy=True).requires_grad_(i in wanted) for i, one in enumerate(given)]
        function(*inputs).sum().backward()
        return [one.grad for one in inputs]

    def under_autocast(x, weight, bias):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return conv(x, weight, bias)

    for count in (1, 2):
        for wanted in itertools.combinations(range(3), count):
            found = gradients(under_autocast, wanted, torch.float32)
            expected = gradients(lambda *inputs: F.conv2d(*inputs, padding=1), wanted, torch.double)
            assert [one is not None for one in found] == [i in wanted for i in range(3)]
            close([found[i] for i in wanted], [expected[i] for i in wanted], 2e-2 if bf16 else 1e-5)


def test_in_16_bits_the_library_has_the_weights_gradient_of_few_inputs(monkeypatch):
    used = []
    monkeypatch.setattr(thin_module.ThinInputConv, "apply", lambda x, weight, bias: used.append(x.requires_grad) or x)
    x, weight, bias = torch.zeros(1, 1, 4, 4), torch.zeros(64, 1, 3, 3, requires_grad=True), torch.zeros(64)
    for bf16 in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            conv(x, weight, bias)
            conv(x.clone().requires_grad_(), weight, bias)
    assert used == [True, False, True]


@pytest.mark.parametrize(("dtype", "relative"), [(torch.float32, 1e-5), (torch.double, 1e-13)])
def test_dense_layers(dtype, relative):
    torch.manual_seed(0)
    inputs = torch.randn(70, 300), torch.randn(90, 300), torch.randn(90)
    cotangent = torch.randn(70, 90)
    expected = with_gradients(F.linear, [i.double() for i in inputs], cotangent)
    close(with_gradients(dense, [i.to(dtype) for i in inputs], cotangent), expected, relative)
    with torch.autocast("cpu", torch.bfloat16):
        assert dense(*inputs).dtype == torch.bfloat16
    assert dense(inputs[0][:0].to(dtype), *(i.to(dtype) for i in inputs[1:])).shape == (0, 90)


@pytest.mark.parametrize(("shape", "outputs"), [  # of the paper's networks, few images
    ((4, 64, 16, 16), 128), ((16, 128, 8, 8), 256), ((64, 256, 4, 4), 512), ((64, 512, 4, 4), 256), ((16, 256, 8, 8), 128),
    ((4, 128, 16, 16), 64)])
def test_winograds_convolutions_keep_five_digits(shape, outputs):
    torch.manual_seed(0)
    weight = torch.empty(outputs, shape[1], 3, 3)
    inputs = torch.rand(shape), nn.init.xavier_uniform_(weight), torch.randn(outputs) / 10
    cotangent = torch.randn(shape[0], outputs, *shape[2:])
    assert "Winograd" in type(conv(*(i.clone().requires_grad_() for i in inputs)).grad_fn).__name__
    exact = with_gradients(partial(F.conv2d, padding=1), [i.double() for i in inputs], cotangent)
    for found, value in zip(with_gradients(conv, inputs, cotangent), exact, strict=True):
        error = found.double() - value
        assert error.norm() < 3e-6 * value.norm()
        assert error.abs().max() < 1e-5 * value.abs().max()


@pytest.mark.parametrize("outputs", [3, 128])
def test_a_backward_pass_has_the_precision_of_its_forward_pass(outputs):
    inputs = [torch.randn(shape, requires_grad=True) for shape in ((16, 64, 8, 8), (outputs, 64, 3, 3))]
    y = conv(*inputs)
    expected = torch.autograd.grad(y.sum(), inputs, retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(y.sum(), inputs)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_which_convolutions_are_winograds():
    assert "Winograd" not in type(conv(torch.zeros(16, 64, 8, 8, dtype=torch.bfloat16, requires_grad=True),
                                       torch.zeros(128, 64, 3, 3, dtype=torch.bfloat16)).grad_fn).__name__
    cases = {
        (16, 64, 128, 8): True,
        (64, 512, 256, 4): True,
        (15, 64, 128, 8): False,  # few tiles
        (16, 64, 64, 8): False,  # narrow
        (16, 256, 256, 6): False,
        (16, 512, 1, 8): False,
    }
    for (images, inputs, outputs, side), expected in cases.items():
        x = torch.zeros(images, inputs, side, side, requires_grad=True)
        assert ("Winograd" in type(conv(x, torch.zeros(outputs, inputs, 3, 3)).grad_fn).__name__) == expected


def test_winograds_tiles_are_transformed_a_few_images_at_a_time():
    for images, side, parts in ((600, 8, [256, 256, 88]), (3, 128, [1, 1, 1])):  # 1024 tiles: 256 images of 2x2, one of 32x32
        found = winograd._tiles(torch.empty(images, 1, side, side), torch.empty(images, 2, side, side))
        assert [(len(one), len(other)) for one, other in found] == [(n, n) for n in parts]


@pytest.mark.parametrize("images", [5, 0])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("used", ["both", "map", "pooled"])
def test_relu_and_pool(images, layout, used, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(pooling, "CACHED", 2 * 3 * 24)  # two images at a time and a rest
    x = torch.randint(-2, 3, (images, 3, 4, 6)).double()  # windows with several maxima, and with none above zero
    cotangents = torch.randn(images, 3, 4, 6, dtype=torch.double), torch.randn(images, 3, 2, 3, dtype=torch.double)
    kept = [i for i, name in enumerate(("map", "pooled")) if used in (name, "both")]

    def gradient(function):
        given = x.clone(memory_format=layout).requires_grad_()
        found = function(given * 1.0)  # a network's map: not a leaf
        return *found, torch.autograd.grad([found[i] for i in kept], given, [cotangents[i] for i in kept])[0]

    def plain(given):
        given = F.relu(given)
        return given, F.max_pool2d(given, 2)

    for found, expected in zip(gradient(relu_and_pool), gradient(plain), strict=True):
        assert found.equal(expected)
    with torch.no_grad():
        for found, expected in zip(relu_and_pool(x.clone()), plain(x), strict=True):
            assert found.equal(expected)


def test_relu_and_pool_go_backwards_together_only_where_somebody_asks_for_gradients(monkeypatch):
    used = []
    monkeypatch.setattr(pooling.ReluAndPool, "apply", lambda x: used.append(x) or (x, x))
    x = torch.zeros(1, 1, 2, 2, requires_grad=True)
    relu_and_pool(x.detach())
    with torch.no_grad():
        relu_and_pool(x * 1.0)
    assert not used
    relu_and_pool(x * 1.0)
    assert len(used) == 1


def test_gradients_that_nobody_asks_for_are_not_computed(monkeypatch):
    used = []
    for name in ("_inputs_to_points", "_inputs_to_points_transposed"):  # the weight's gradient takes one, the input's the other
        original = getattr(winograd, name)
        monkeypatch.setattr(winograd, name, lambda *given, name=name, f=original: used.append(name) or f(*given))
    x, weight = torch.zeros(16, 128, 8, 8), torch.zeros(256, 128, 3, 3)
    for wanted, transform in ((x, "_inputs_to_points_transposed"), (weight, "_inputs_to_points")):
        wanted.requires_grad_()
        y = conv(x, weight)
        used.clear()
        assert torch.autograd.grad(y.sum(), wanted)[0].shape == wanted.shape
        assert set(used) == {transform}
        wanted.requires_grad_(False)


@pytest.mark.parametrize(("function", "factor"), [(conv, 1), (upsample_conv, 2)])
@pytest.mark.parametrize(("channels", "outputs"), [(64, 3), (64, 128), (3, 64)])
def test_no_images(channels, outputs, function, factor):
    inputs = [torch.zeros(shape, requires_grad=True) for shape in ((0, channels, 8, 8), (outputs, channels, 3, 3), (outputs,))]
    found = with_gradients(function, inputs, torch.zeros(0, outputs, 8 * factor, 8 * factor))
    assert [one.shape for one in found] == [(0, outputs, 8 * factor, 8 * factor), *(i.shape for i in inputs)]
    assert not any(one.any() for one in found)


def test_thin_upsampling_convolutions_are_folded(monkeypatch):
    used = []
    original = upsampling._folded
    monkeypatch.setattr(upsampling, "_folded", lambda weight: used.append(len(weight)) or original(weight))
    for outputs in (1, 31, 32, 64):
        upsample_conv(torch.zeros(1, 2, 2, 2), torch.zeros(outputs, 2, 3, 3), torch.zeros(outputs))
    assert used == [1, 31]


def test_one_channel_is_laid_out_for_what_follows():
    picture = torch.rand(2, 1, 4, 4)
    laid_out = channels_last(picture)
    assert laid_out.equal(picture)
    after = F.conv2d(laid_out, torch.zeros(3, 1, 3, 3), padding=1)
    assert after.is_contiguous(memory_format=torch.channels_last)
    again = channels_last(laid_out)
    assert again.data_ptr() == laid_out.data_ptr()
