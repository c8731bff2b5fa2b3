"""Explainers against captum, zennit and slow twins in float64 that write every layer out as a matrix."""

import copy

import pytest
import torch
from captum.attr import LayerGradCam, Saliency
from torch import nn
from zennit.composites import LayerMapComposite
from zennit.core import BasicHook, ParamMod, Stabilizer
from zennit.rules import Norm, Pass, ZPlus

from gnime.classifiers import Classifier
from gnime.explainers import EXPLAINERS
from gnime.explainers.grad import grad
from gnime.explainers.gradcam import gradcam
from gnime.explainers.lrp import EPS, lrp
from gnime.explainers.stack import LAYERS, layers, minmax


def stack(*parts):
    """A stack with weights and biases of either sign, more of them positive: no layer is dead."""
    model = nn.Sequential(*parts)
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.2, 0.5)
    return model


def small():
    """A classifier of METHOD.md, narrow, with biases that are not zero."""
    model = Classifier(3, 16, 5, (6, 8), 12, dropout=0.5)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.3)
    return model


# --- slow twins ------------------------------------------------------------------------------------------------------


def pair(value):
    return value if isinstance(value, tuple) else (value, value)


def windows(size, kernel, stride, before, dilation, out):
    """For each output position of one axis, the (tap, input position) pairs that lie inside the input."""
    found = []
    for i in range(out):
        at = [(k, i * stride - before + k * dilation) for k in range(kernel)]
        found.append([(k, x) for k, x in at if 0 <= x < size])
    return found


def conv_matrix(layer, shape, out_shape):
    """(outputs, inputs) of a convolution without bias, entry by entry."""
    weight, (_, h, w), (channels, oh, ow) = layer.weight.detach().double(), shape, out_shape
    kh, kw = layer.kernel_size
    (sh, sw), (dh, dw) = layer.stride, layer.dilation
    if layer.padding == "same":
        ph, pw = dh * (kh - 1) // 2, dw * (kw - 1) // 2
    else:
        ph, pw = (0, 0) if layer.padding == "valid" else layer.padding
    matrix = torch.zeros(channels, oh, ow, *shape, dtype=torch.double)
    inner, outer = weight.shape[1], channels // layer.groups
    for o in range(channels):
        for c in range(inner):
            source = o // outer * inner + c
            for i, rows in enumerate(windows(h, kh, sh, ph, dh, oh)):
                for j, columns in enumerate(windows(w, kw, sw, pw, dw, ow)):
                    for a, y in rows:
                        for b, x in columns:
                            matrix[o, i, j, source, y, x] += weight[o, c, a, b]
    return matrix.flatten(3).flatten(0, 2)


def pool_matrix(layer, shape, out_shape):
    """(outputs, inputs) of average pooling over the layer's windows."""
    (channels, h, w), (_, oh, ow) = shape, out_shape
    (kh, kw), (sh, sw), (ph, pw) = pair(layer.kernel_size), pair(layer.stride), pair(layer.padding)
    matrix = torch.zeros(channels, oh, ow, *shape, dtype=torch.double)
    for i, rows in enumerate(windows(h, kh, sh, ph, 1, oh)):
        for j, columns in enumerate(windows(w, kw, sw, pw, 1, ow)):
            for _, y in rows:
                for _, x in columns:
                    for c in range(channels):
                        matrix[c, i, j, c, y, x] = 1 / (kh * kw)
    return matrix.flatten(3).flatten(0, 2)


def slow_minmax(maps, eps):
    maps = maps.abs()
    for image in maps:
        for channel in image:
            low, high = channel.min().item(), channel.max().item()
            channel.copy_((channel - low) / (high - low + eps) if high - low + eps > 0 else torch.zeros_like(channel))
    return maps


def slow_lrp(model, images):
    """METHOD.md, "lrp", image by image: every layer a matrix, in float64."""
    model = copy.deepcopy(model).double().eval()
    found = []
    for image in images.double():
        first, steps, x = True, [], image[None]
        for layer in layers(model):
            below, x = x, layer(x).detach()
            if isinstance(layer, nn.Linear):
                matrix = layer.weight.detach().clamp(min=0)
            elif isinstance(layer, nn.Conv2d):
                matrix = conv_matrix(layer, below.shape[1:], x.shape[1:]).clamp(min=0)
            elif isinstance(layer, (nn.MaxPool2d, nn.AvgPool2d)):
                matrix = pool_matrix(layer, below.shape[1:], x.shape[1:])
            else:
                continue  # relevance passes, entry by entry
            a = below.flatten()
            if isinstance(layer, nn.Conv2d) and first:
                a, first = torch.ones_like(a), False
            steps.append((matrix, a))
        relevance = x.flatten()
        for matrix, a in reversed(steps):
            relevance = a * (matrix.T @ (relevance / (matrix @ a + EPS)))
        found.append(relevance.reshape(image.shape))
    return slow_minmax(torch.stack(found), EPS)


# --- gradient and Grad-CAM -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_grad_is_saliency_of_captum(training):
    model, images = small(), torch.rand(7, 3, 16, 16)
    theirs = Saliency(model.eval()).attribute(images.clone().requires_grad_(), target=model(images).argmax(1), abs=True)
    torch.testing.assert_close(grad(model.train(training), images), minmax(theirs), atol=1e-6, rtol=0)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_gradcam_is_layer_gradcam_of_captum(training):
    """captum sums over channels where METHOD.md takes the mean: the scaling to [0, 1] cannot tell the two apart."""
    model, images = small(), torch.rand(7, 3, 16, 16)
    theirs = LayerGradCam(model.eval(), model.relu1).attribute(
        images.clone(), target=model(images).argmax(1), relu_attributions=False)
    ours = gradcam(model.train(training), images)
    assert ours.shape == (7, 1, 8, 8)
    torch.testing.assert_close(ours, minmax(theirs.detach()), atol=1e-6, rtol=0)


def test_gradcam_by_hand():
    """Two images of 1x2 pixels; the logit that is larger sees channel 0 only."""
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, 2.0]).view(2, 1, 1, 1))
        model[0].bias.zero_()
        model[3].weight.copy_(torch.tensor([[1.0, 3.0, -2.0, 0.0], [0.0, 0.0, 0.0, 0.0]]))
        model[3].bias.copy_(torch.tensor([10.0, 0.0]))
    images = torch.tensor([[[[0.2, 0.6]]], [[[0.5, 0.5]]]])
    # weights: mean(1, 3) = 2, mean(-2, 0) = -1; map: (2 * x - 1 * 2x) / 2 = 0 everywhere, a constant
    assert gradcam(model, images).equal(torch.zeros(2, 1, 1, 2))
    with torch.no_grad():
        model[3].weight[0, 2] = 0.0
    # weights 2 and 0; map (2 * x) / 2 = x
    torch.testing.assert_close(gradcam(model, images), torch.tensor([[[[0.0, 1.0]]], [[[0.0, 0.0]]]]))


def test_gradcam_of_an_image_does_not_depend_on_its_neighbours():
    model, images = small(), 5 * torch.randn(6, 3, 16, 16)  # far apart: they differ in class and active units
    together = gradcam(model, images)
    alone = torch.cat([gradcam(model, image[None]) for image in images])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)
    pooled = gradcam(model, images, pool=3)
    assert (pooled - together).abs().max() > 0.01
    torch.testing.assert_close(pooled, torch.cat([gradcam(model, part, pool=3) for part in images.split(3)]))
    torch.testing.assert_close(gradcam(model, images, pool=1), together)
    changed = images.clone()
    changed[1] = 5 * torch.randn(3, 16, 16)
    difference = (gradcam(model, changed, pool=3) - pooled).abs().amax((1, 2, 3))
    assert difference[0] > 1e-4, "an image of the same batch"
    assert difference[3:].max() < 1e-6, "images of another batch"


def test_gradcam_takes_the_activation_behind_dropout_and_relu():
    plain = stack(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 4))
    dropped = nn.Sequential(plain[0], nn.Dropout(0.5), *plain[1:])
    images = torch.rand(3, 1, 8, 8)
    torch.testing.assert_close(gradcam(dropped, images), gradcam(plain, images))


def test_gradcam_without_convolution():
    with pytest.raises(ValueError, match="convolution"):
        gradcam(stack(nn.Flatten(), nn.Linear(16, 3)), torch.rand(2, 1, 4, 4))


# --- LRP -------------------------------------------------------------------------------------------------------------


def conv(*args, **named):
    return [nn.Conv2d(*args, **named), nn.ReLU()]


def head(features):
    return [nn.Flatten(), nn.Linear(features, 6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 4)]


STACKS = {  # name: (image shape, layers)
    "max pooling": ((1, 8, 8), [*conv(1, 3, 3, padding=1), nn.MaxPool2d(2), *conv(3, 4, 3, padding=1), nn.MaxPool2d(2),
                                *head(16)]),
    "average pooling": ((2, 8, 6), [*conv(2, 3, 3, padding=1), nn.AvgPool2d(2), *conv(3, 3, 3), *head(6)]),
    "odd sides": ((1, 9, 7), [*conv(1, 3, 3, padding=1), nn.MaxPool2d(2), *conv(3, 2, 2), *head(12)]),
    "strides": ((2, 10, 9), [*conv(2, 3, 3, stride=2, padding=1), *conv(3, 4, (2, 3), stride=(2, 1)), *head(24)]),
    "overlapping pools": ((1, 9, 9), [*conv(1, 2, 3), nn.MaxPool2d(3, 2, padding=1), nn.AvgPool2d(3, 1, padding=1),
                                      *head(32)]),
    "rectangular pools": ((1, 8, 9), [*conv(1, 2, 3, padding=1), nn.MaxPool2d((2, 3)), nn.AvgPool2d((1, 2), stride=(2, 1)),
                                      *head(8)]),
    "rounded up pools": ((1, 7, 7), [*conv(1, 2, 3, padding=1), nn.MaxPool2d(2, ceil_mode=True),
                                     nn.AvgPool2d(3, ceil_mode=True), *head(8)]),
    "groups, dilation": ((2, 9, 9), [*conv(2, 4, 3, dilation=2, groups=2), *conv(4, 4, 3, padding=2, dilation=2, groups=2),
                                     *head(100)]),
    "paddings by name": ((1, 6, 6), [*conv(1, 2, 3, padding="same"), *conv(2, 3, (2, 3), padding="same"),
                                     *conv(3, 2, 3, padding="valid"), *head(32)]),
    "pooling first": ((1, 8, 8), [nn.AvgPool2d(2), *conv(1, 3, 3, padding=1), *conv(3, 2, 3), *head(8)]),
    "overlapping pooling first": ((1, 8, 8), [nn.AvgPool2d(3, 1), *conv(1, 2, 3), *head(32)]),
    "features as logits": ((2, 6, 6), [*conv(2, 3, 3, padding=1), nn.AvgPool2d(3), nn.Flatten()]),
    "no convolution": ((1, 4, 5), [nn.Flatten(), nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 3)]),
    "nested, in place": ((1, 8, 8), [nn.Dropout(0.5), nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(inplace=True)),
                                     nn.Sequential(nn.MaxPool2d(2), nn.Sequential(*head(27)))]),
}


def test_stacks_use_every_layer():
    used = {type(layer) for _, parts in STACKS.values() for layer in layers(nn.Sequential(*parts))}
    assert used == set(LAYERS) - {nn.Dropout}


@pytest.mark.filterwarnings("ignore:Using padding")  # torch on even kernels, same padding
@pytest.mark.parametrize("name", STACKS)
def test_lrp_is_its_matrix_twin(name):
    shape, parts = STACKS[name]
    model = stack(*parts)
    images = torch.rand(3, *shape)
    images[0, :, :2] = 0.0  # dead pixels: relevance is divided by eps alone
    before = images.clone()
    ours, twin = lrp(model, images), slow_lrp(model, images)
    assert twin.std() > 0.01
    torch.testing.assert_close(ours.double(), twin, atol=1e-5, rtol=0)
    assert images.equal(before)


def test_lrp_is_zennit():
    """ZPlus and Norm of zennit are METHOD's rules where inputs are not negative; for the first layer ones are put in."""
    model = stack(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(4, 5, 3, stride=2), nn.ReLU(),
                  nn.Flatten(), nn.Linear(20, 6), nn.ReLU(), nn.Linear(6, 4)).double()
    images = torch.rand(4, 3, 10, 10, dtype=torch.double)

    def ones_zplus():
        def positive(parameter, name):
            return torch.zeros_like(parameter) if name == "bias" else parameter.clamp(min=0)

        def share(relevance, outputs):
            return [relevance / Stabilizer(EPS)(outputs[0])]

        return BasicHook(input_modifiers=[torch.ones_like], param_modifiers=[ParamMod(positive)],
                         gradient_mapper=share, reducer=lambda inputs, gradients: gradients[0])

    rest = ZPlus(stabilizer=EPS, zero_params="bias")
    first = model[0]

    class Rules(LayerMapComposite):
        def mapping(self, ctx, name, module):
            return ones_zplus() if module is first else super().mapping(ctx, name, module)

    composite = Rules([(nn.ReLU, Pass()), (nn.AvgPool2d, Norm(stabilizer=EPS)), (nn.Conv2d, rest), (nn.Linear, rest)])
    with composite.context(model) as modified:
        x = images.clone().requires_grad_()
        output = modified(x)
        (theirs,) = torch.autograd.grad(output, x, output.detach())
    torch.testing.assert_close(lrp(model, images), minmax(theirs, EPS), atol=1e-9, rtol=0)
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())


@pytest.mark.parametrize("layer", [nn.MaxPool2d(2, dilation=2), nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect")])
def test_lrp_is_right_or_refuses(layer):
    """Rare options of a known layer: average pooling has no dilation; reflected borders are inputs of their own."""
    side = layer(torch.rand(1, 1, 8, 8)).shape[2]
    model = stack(nn.Conv2d(1, 1, 3, padding=1), nn.ReLU(), layer, nn.Flatten(), nn.Linear(side**2, 3))
    with pytest.raises(TypeError, match=type(layer).__name__):
        lrp(model, torch.rand(2, 1, 8, 8))


# --- the scaling -----------------------------------------------------------------------------------------------------


def test_minmax_by_hand():
    e = torch.tensor([[[[-4.0, 1.0], [2.0, 3.0]], [[0.5, 0.5], [0.5, -0.5]]],
                      [[[0.0, 0.0], [0.0, 8.0]], [[6.0, 10.0], [8.0, 7.0]]]])
    expected = torch.tensor([[[[1.0, 0.0], [1 / 3, 2 / 3]], [[0.0, 0.0], [0.0, 0.0]]],
                             [[[0.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.5, 0.25]]]])
    torch.testing.assert_close(minmax(e), expected)
    torch.testing.assert_close(minmax(e, eps=1.0)[1, 1], torch.tensor([[0.0, 0.8], [0.4, 0.2]]))
    assert minmax(e)[0, 1].equal(torch.zeros(2, 2)), "a constant map becomes zeros"


@pytest.mark.parametrize("xai", EXPLAINERS)
def test_constant_map_becomes_zeros(xai):
    """A model that looks at nothing."""
    model = small()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    found = EXPLAINERS[xai].load()(model, torch.rand(2, 3, 16, 16))
    assert found.equal(torch.zeros_like(found))


# --- what all explainers promise -------------------------------------------------------------------------------------


@pytest.mark.parametrize("xai", EXPLAINERS)
@pytest.mark.parametrize("unknown", [nn.Sigmoid(), nn.BatchNorm2d(2), nn.ConvTranspose2d(2, 2, 3), nn.AdaptiveAvgPool2d(1)],
                         ids=lambda layer: type(layer).__name__)
def test_unknown_layer_is_named(xai, unknown):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sequential(nn.ReLU(), unknown), nn.Flatten(), nn.LazyLinear(3))
    with pytest.raises(TypeError, match=rf"'1\.1' is a {type(unknown).__name__}"):
        EXPLAINERS[xai].load()(model, torch.rand(2, 1, 8, 8))


class Squashed(nn.Sequential):
    def forward(self, x):
        return super().forward(x).tanh()


class Doubled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


class Told(Doubled):
    same_function = True

    def forward(self, x):
        return nn.Conv2d.forward(self, x)


class ToldAndDoubled(Told):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize("xai", EXPLAINERS)
def test_a_forward_that_explainers_would_not_see_is_refused(xai):
    def explain(conv=nn.Conv2d, outer=nn.Sequential):
        torch.manual_seed(0)
        model = outer(conv(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3))
        return EXPLAINERS[xai].load()(model, torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1)))

    plain = explain()
    for kind in (Doubled, ToldAndDoubled):
        with pytest.raises(TypeError, match=rf"layer '0' is a {kind.__name__} with a forward of its own"):
            explain(conv=kind)
    with pytest.raises(TypeError, match="layer 'model' is a Squashed with a forward"):
        explain(outer=Squashed)
    assert explain(conv=Told).equal(plain), "it says that it computes the same"
    assert explain(outer=type("Named", (nn.Sequential,), {})).equal(plain), "a name of its own changes nothing"
    patched = nn.ReLU()
    patched.forward = torch.sigmoid
    with pytest.raises(TypeError, match="layer '1' is a ReLU with a forward"):
        EXPLAINERS[xai].load()(stack(nn.Conv2d(1, 2, 3), patched, nn.Flatten(), nn.Linear(72, 3)), torch.rand(2, 1, 8, 8))


@pytest.mark.parametrize("xai", EXPLAINERS)
@pytest.mark.parametrize("frozen", [False, True], ids=["trainable", "frozen"])
def test_nothing_is_left_behind(xai, frozen):
    explain = EXPLAINERS[xai].load()
    model, images = small().train().requires_grad_(not frozen), torch.rand(3, 3, 16, 16)
    model.register_buffer("counter", torch.tensor(3.0))
    before, images_before = copy.deepcopy(model.state_dict()), images.clone()
    found = explain(model, images)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad is not frozen for p in model.parameters())
    assert all(module.training and not module._forward_hooks and not module._backward_hooks for module in model.modules())
    assert images.equal(images_before)
    assert images.grad is None
    assert not images.requires_grad
    assert not found.requires_grad
    assert torch.is_grad_enabled()
    if not frozen:
        model(images).sum().backward()
        gradients = [p.grad.clone() for p in model.parameters()]
        explain(model, images)
        assert all(p.grad.equal(g) for p, g in zip(model.parameters(), gradients, strict=True))


@pytest.mark.parametrize("xai", EXPLAINERS)
def test_with_and_without_autograd(xai):
    explain = EXPLAINERS[xai].load()
    model, images = small(), torch.rand(3, 3, 16, 16)
    expected = explain(model, images)
    with torch.no_grad():
        torch.testing.assert_close(explain(model, images), expected)
        assert not torch.is_grad_enabled()
    tracked = images.clone().requires_grad_()
    torch.testing.assert_close(explain(model, tracked), expected)
    assert tracked.grad is None


@pytest.mark.parametrize("name", ["overlapping pooling first", "odd sides", "paddings by name", "nested, in place"])
@pytest.mark.parametrize("xai", EXPLAINERS)
@pytest.mark.filterwarnings("ignore:Using padding")
def test_inference_mode(xai, name):
    shape, parts = STACKS[name]
    model, images = nn.Sequential(*parts), torch.rand(3, *shape)
    explain = EXPLAINERS[xai].load()
    expected = explain(model, images)
    with torch.inference_mode():
        torch.testing.assert_close(explain(model, images), expected)
        torch.testing.assert_close(explain(model, images.clone()), expected)
        assert torch.is_inference_mode_enabled()


def test_lrp_refuses_what_its_epsilon_vanishes_in():
    with pytest.raises(TypeError, match="float32"):
        EXPLAINERS["lrp"].load()(small().half(), torch.rand(1, 3, 16, 16).half())


@pytest.mark.parametrize("xai", EXPLAINERS)
def test_shape_range_and_type(xai):
    model = small()
    found = EXPLAINERS[xai].load()(model, torch.rand(4, 3, 16, 16))
    assert found.shape == ((4, 1, 8, 8) if xai == "gradcam" else (4, 3, 16, 16))
    assert found.dtype == torch.float32
    assert found.amin((2, 3)).abs().max() == 0
    torch.testing.assert_close(found.amax((2, 3)), torch.ones(found.shape[:2]))
