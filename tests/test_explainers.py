"""Explainers against captum, zennit and slow twins in float64 that write every layer out as a matrix."""

import copy

import pytest
import torch
from captum.attr import LayerGradCam, Saliency
from helpers import STACKS, small_classifier, stack
from torch import nn
from zennit.composites import LayerMapComposite
from zennit.core import BasicHook, ParamMod, Stabilizer
from zennit.rules import Norm, Pass, ZPlus

from gnime.explainers.grad import grad
from gnime.explainers.gradcam import gradcam
from gnime.explainers.lrp import lrp, of_frozen
from gnime.explainers.stack import LAYERS, layers, minmax
from gnime.explainers.zplus import EPS, THIN

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
    """docs/method.md "Explanations", lrp, image by image: every layer a matrix, in float64."""
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
    model, images = small_classifier(), torch.rand(7, 3, 16, 16)
    theirs = Saliency(model.eval()).attribute(images.clone().requires_grad_(), target=model(images).argmax(1), abs=True)
    torch.testing.assert_close(grad(model.train(training), images), minmax(theirs), atol=1e-6, rtol=0)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_gradcam_is_layer_gradcam_of_captum(training):
    """captum sums over channels where ours takes the mean: the scaling to [0, 1] cannot tell the two apart."""
    model, images = small_classifier(), torch.rand(7, 3, 16, 16)
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
    model, images = small_classifier(), 5 * torch.randn(6, 3, 16, 16)  # far apart: they differ in class and active units
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


def test_stacks_use_every_layer():
    used = {type(layer) for _, parts in STACKS.values() for layer in layers(nn.Sequential(*parts))}
    assert used == set(LAYERS) - {nn.Dropout}


@pytest.mark.filterwarnings("ignore:Using padding")  # torch on even kernels, same padding
@pytest.mark.parametrize("thin", [THIN, 0], ids=["thin", "wide"])  # both ways to transpose a convolution
@pytest.mark.parametrize("name", STACKS)
def test_lrp_is_its_matrix_twin(name, thin, monkeypatch):
    monkeypatch.setattr("gnime.explainers.zplus.THIN", thin)
    shape, parts = STACKS[name]
    model = stack(*parts)
    images = torch.rand(3, *shape)
    images[0, :, :2] = 0.0  # dead pixels: relevance is divided by eps alone
    before = images.clone()
    ours, twin = lrp(model, images), slow_lrp(model, images)
    assert twin.std() > 0.01
    torch.testing.assert_close(ours.double(), twin, atol=1e-5, rtol=0)
    frozen = of_frozen(model.eval().requires_grad_(False))
    assert frozen is not lrp and frozen(model, images).equal(ours) and frozen(model, images[:0]).shape == (0, *shape)
    assert images.equal(before)


def test_lrp_is_zennit():
    """ZPlus and Norm of zennit are our rules where inputs are not negative; for the first layer ones are put in."""
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


def test_lrp_calls_hooks():
    """Weight normalisation and pruning compute the weight in a hook before the layer's forward pass."""
    model = stack(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 8), nn.ReLU(), nn.Linear(8, 3))
    images = torch.rand(3, 1, 8, 8)
    expected = lrp(model, images)
    assert expected.any()
    kept = model[3].weight.detach().clone()
    with torch.no_grad():
        model[3].weight.zero_()
    model[3].register_forward_pre_hook(lambda layer, _: setattr(layer.weight, "data", kept))
    assert of_frozen(model) is lrp, "W+ would be that of other weights"
    torch.testing.assert_close(lrp(model, images), expected)


# --- the scaling -----------------------------------------------------------------------------------------------------


def test_minmax_by_hand():
    e = torch.tensor([[[[-4.0, 1.0], [2.0, 3.0]], [[0.5, 0.5], [0.5, -0.5]]],
                      [[[0.0, 0.0], [0.0, 8.0]], [[6.0, 10.0], [8.0, 7.0]]]])
    expected = torch.tensor([[[[1.0, 0.0], [1 / 3, 2 / 3]], [[0.0, 0.0], [0.0, 0.0]]],
                             [[[0.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.5, 0.25]]]])
    torch.testing.assert_close(minmax(e), expected)
    torch.testing.assert_close(minmax(e, eps=1.0)[1, 1], torch.tensor([[0.0, 0.8], [0.4, 0.2]]))
    assert minmax(e)[0, 1].equal(torch.zeros(2, 2)), "a constant map becomes zeros"
