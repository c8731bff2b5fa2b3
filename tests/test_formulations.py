"""The fast formulations against the plain ones, outputs and gradients, whichever of them a device and a shape get."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.plain import PlainClassifier, PlainExpMI, PlainPredMI, plain_two_player_step
from gnime import classifiers, convolutions, inversion
from gnime.classifiers import Classifier
from gnime.convolutions import TapProducts, _taps, conv, folded_conv, relu_and_pool, upsample_conv
from gnime.data import channels_last
from gnime.injector import Injector


def plain(x, weight, bias):
    return F.conv2d(F.interpolate(x, scale_factor=2), weight, bias, padding=1)


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


@pytest.mark.parametrize("function", [folded_conv, products])
@pytest.mark.parametrize(("shape", "outputs"), [((1, 3, 1, 1), 2), ((2, 5, 1, 4), 33), ((7, 16, 4, 4), 40), ((3, 2, 5, 3), 1)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_upsampling_convolutions(function, shape, outputs, layout, monkeypatch):
    torch.manual_seed(0)
    inputs = torch.randn(shape), torch.randn(outputs, shape[1], 3, 3), torch.randn(outputs)
    cotangent = torch.randn(shape[0], outputs, 2 * shape[2], 2 * shape[3])
    expected = with_gradients(plain, [i.double() for i in inputs], cotangent)
    monkeypatch.setattr(convolutions, "CACHED", 9 * outputs * shape[2] * shape[3] * 3)  # three images at a time and a rest
    laid_out = [i.contiguous(memory_format=layout) if i.ndim == 4 else i for i in inputs]
    close(with_gradients(function, [i.double() for i in laid_out], cotangent), expected, 1e-13)
    close(with_gradients(function, laid_out, cotangent), expected, 1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        found = with_gradients(function, laid_out, cotangent)
    assert found[0].dtype == torch.bfloat16
    close(found, expected, 2e-2)


@pytest.mark.parametrize(("taps", "shape", "lengths"), [
    (2**14, (7, 16, 4, 4), [4, 3]),  # 2**20 / 2**14 = 64 pixels
    (2**22, (7, 32, 4, 4), [4, 3]),  # 2 * 32 pixels at the least
    (2**22, (2, 1, 8, 8), [1, 1]),  # an image at the least
])
def test_parts_are_few_images_each(taps, shape, lengths):
    parts = convolutions._images(torch.zeros(taps, 0), torch.zeros(shape))
    assert [len(part) for part, in parts] == lengths


@pytest.mark.parametrize(("shape", "outputs"), [
    ((5, 8, 12, 8), 6),  # Winograd's, three tiles by two
    ((3, 6, 4, 4), 7),  # a tile, which has no neighbours
    ((4, 5, 6, 8), 6),  # no whole tiles: the library's
    ((4, 5, 8, 6), 6),
    ((3, 40, 5, 4), 3),  # few outputs
    ((2, 3, 4, 4), 5),
])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_convolutions(shape, outputs, with_bias, layout, monkeypatch):
    torch.manual_seed(0)
    inputs = [torch.randn(shape), torch.randn(outputs, shape[1], 3, 3), torch.randn(outputs)][: 2 + with_bias]
    cotangent = torch.randn(shape[0], outputs, *shape[2:])
    expected = with_gradients(lambda *given: F.conv2d(*given, padding=1), [i.double() for i in inputs], cotangent)
    for name, value in {"WIDE": 20, "MANY": 3, "TILES": shape[2] * shape[3] // 8}.items():  # two images at a time and a rest
        monkeypatch.setattr(convolutions, name, value)
    laid_out = [i.contiguous(memory_format=layout) if i.ndim == 4 else i for i in inputs]
    close(with_gradients(conv, [i.double() for i in laid_out], cotangent), expected, 1e-13)
    close(with_gradients(conv, laid_out, cotangent), expected, 1e-5)


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
        assert error.norm() < 2e-6 * value.norm()
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
    for images, side, parts in ((150, 8, [64, 64, 22]), (3, 128, [1, 1, 1])):  # 256 tiles: 64 of 2x2, a quarter of 32x32
        found = convolutions._tiles(torch.empty(images, 1, side, side), torch.empty(images, 2, side, side))
        assert [(len(one), len(other)) for one, other in found] == [(n, n) for n in parts]


@pytest.mark.parametrize("images", [5, 0])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("used", ["both", "map", "pooled"])
def test_relu_and_pool(images, layout, used, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(convolutions, "CACHED", 2 * 3 * 24)  # two images at a time and a rest
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

    for training in (True, False):
        for found, expected in zip(gradient(partial(relu_and_pool, training=training)), gradient(plain), strict=True):
            assert found.equal(expected)
        with torch.no_grad():
            for found, expected in zip(relu_and_pool(x.clone(), training), plain(x), strict=True):
                assert found.equal(expected)


def test_gradients_that_nobody_asks_for_are_not_computed(monkeypatch):
    used = []
    for name in ("_inputs_to_points", "_inputs_to_points_transposed"):  # the weight's gradient takes one, the input's the other
        original = getattr(convolutions, name)
        monkeypatch.setattr(convolutions, name, lambda *given, name=name, f=original: used.append(name) or f(*given))
    x, weight = torch.zeros(64, 128, 4, 4), torch.zeros(256, 128, 3, 3)
    for wanted, transform in ((x, "_inputs_to_points_transposed"), (weight, "_inputs_to_points")):
        wanted.requires_grad_()
        y = conv(x, weight)
        used.clear()
        assert torch.autograd.grad(y.sum(), wanted)[0].shape == wanted.shape
        assert set(used) == {transform}
        wanted.requires_grad_(False)
    layer = convolutions.Conv(128, 256).eval()  # somebody else's tool on a classifier whose weights want gradients
    used.clear()
    torch.autograd.grad(layer(x.requires_grad_()).sum(), x)
    assert not used


@pytest.mark.parametrize("outputs", [3, 128])
def test_no_images(outputs):
    inputs = [torch.zeros(shape, requires_grad=True) for shape in ((0, 64, 8, 8), (outputs, 64, 3, 3), (outputs,))]
    found = with_gradients(conv, inputs, torch.zeros(0, outputs, 8, 8))
    assert [one.shape for one in found] == [(0, outputs, 8, 8), *(i.shape for i in inputs)]
    assert not any(one.any() for one in found)


def test_thin_convolutions_are_folded(monkeypatch):
    used = []
    monkeypatch.setattr(convolutions, "folded_conv", lambda *inputs: used.append(len(inputs[1])))
    for outputs in (1, 31, 32, 64):
        upsample_conv(torch.zeros(1, 2, 2, 2), torch.zeros(outputs, 2, 3, 3), torch.zeros(outputs))
    assert used == [1, 31]


def test_a_classifier_in_training_is_its_layers_one_after_the_other():
    torch.manual_seed(0)
    network = Classifier(1, 8, 3, (4, 6), 5, dropout=0.5).double()
    nn.init.normal_(network.conv0.bias, std=2.0)  # windows below zero throughout, and above
    images, cotangent = torch.rand(9, 1, 8, 8, dtype=torch.double), torch.randn(9, 3, dtype=torch.double)
    found = []
    for forward in (network, lambda x: PlainClassifier.forward(network, x)):
        torch.manual_seed(1)  # of dropout
        logits = forward(images)
        found.append([logits, *torch.autograd.grad(logits, list(network.parameters()), cotangent)])
    close(*found, 1e-13)


def test_one_channel_is_laid_out_for_what_follows():
    picture = torch.rand(2, 1, 4, 4)
    laid_out = channels_last(picture)
    assert laid_out.equal(picture)
    after = F.conv2d(laid_out, torch.zeros(3, 1, 3, 3), padding=1)
    assert after.is_contiguous(memory_format=torch.channels_last)
    again = channels_last(laid_out)
    assert again.data_ptr() == laid_out.data_ptr()


def test_what_benchmarks_compare_with_has_nothing_of_ours(monkeypatch):
    for name in ("conv", "upsample_conv", "spread_conv", "relu_and_pool", "apply"):
        for module in (convolutions, inversion, classifiers):
            monkeypatch.setattr(module, name, None, raising=False)
    e, y, x = torch.rand(64, 1, 16, 16), torch.randn(64, 3), torch.rand(64, 1, 16, 16)
    injector, inverter = Injector(1, 16, 3, 256), PlainExpMI(1, 16, 3, 1, 16, 256)
    injector.network = PlainExpMI(1, 16, 3, 1, 16, 256)
    plain_two_player_step(injector, inverter, e, y, x, 1.0)
    PlainPredMI(3, 1, 16, 256)(None, y).sum().backward()
    PlainClassifier(1, 16, 3, (64, 128), 5)(x).sum().backward()
    with pytest.raises(TypeError, match="not callable"):
        Classifier(1, 16, 3, (64, 128), 5)(x)
