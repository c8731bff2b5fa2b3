"""Explainers on networks of any form: against zennit, captum, a slow twin, and the path of plain stacks."""

import copy

import pytest
import torch
import torch.nn.functional as F
from captum.attr import LayerGradCam, Saliency
from helpers import STACKS, stack
from oracles import NETWORKS, network, zennit_lrp
from torch import nn

from gnime.explainers.grad import grad
from gnime.explainers.gradcam import gradcam
from gnime.explainers.lrp import lrp
from gnime.explainers.relevance import Relevance, descend
from gnime.explainers.rules import RULES
from gnime.explainers.stack import minmax
from gnime.explainers.zplus import EPS
from gnime.models.classifier import Classifier

ALL = pytest.mark.parametrize("explain", [grad, gradcam, lrp])


class Wrapped(nn.Module):
    """A network that is no stack, because its forward is its own."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


class Mixed(nn.Module):
    """A residual sum, a concatenation, a shared module, BatchNorm folded and not, functions and methods, images normalised."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4, 0.6]).view(1, 2, 1, 1))
        self.stem, self.norm = nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(4)
        self.twice = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.wide, self.after = nn.Conv2d(4, 4, 3, padding=2, dilation=2), nn.BatchNorm2d(8)
        self.project, self.fc = nn.Conv2d(8, 6, 1), nn.Linear(6, 3)
        self.relu = nn.ReLU(inplace=True)
        torch.manual_seed(3)
        for name, value in [*self.named_parameters(), *self.named_buffers()]:
            if name.endswith("running_var"):
                nn.init.uniform_(value, 0.5, 1.5)
            elif value.is_floating_point() and name != "mean":
                nn.init.normal_(value, 0.1, 0.6)

    def forward(self, x):
        if x.shape[2] < 4:
            raise ValueError("too small")
        x = self.relu(self.norm(self.stem((x - self.mean) / 0.3)))  # (N, 4, 4, 4)
        y = self.twice(x)
        y += x
        y = F.relu(self.twice(F.relu6(y)) - 0.1)
        y = torch.cat([y, self.wide(x)], 1)  # (N, 8, 4, 4)
        y = F.max_pool2d(self.relu(self.after(y)), 3, 2, 1)  # (N, 8, 2, 2)
        y = self.project(self.project.weight.new_ones(()) * y)
        return self.fc(F.dropout(y.mean((2, 3)).view(x.size(0), -1), training=self.training))


def matrix(linear, shape):
    """(outputs, inputs) of a linear function of one example, from its values on each unit vector."""
    count = torch.Size(shape).numel()
    return linear(torch.eye(count, dtype=torch.double).view(count, *shape)).flatten(1).T


def down(matrix, a, relevance):
    """The z+ rule, contribution by contribution."""
    contributions = (matrix * a.flatten()).clamp(min=0)
    return (contributions / (contributions.sum(1, keepdim=True) + EPS) * relevance.flatten()[:, None]).sum(0).view(a.shape)


def slow_mixed(model, image):
    """The relevance of an image (2, 8, 8) for `Mixed`, written out by hand; BatchNorm only where it is folded."""
    conv = F.conv2d
    gain = (model.norm.weight / (model.norm.running_var + model.norm.eps).sqrt()).view(-1, 1, 1, 1)
    normal = image[None].sub(model.mean).div(0.3)
    x = model.norm(conv(normal, model.stem.weight, None, 2, 1)).relu()
    first = model.twice(x)
    second = (first + x).clamp(0, 6)
    third = model.twice(second)
    fourth = torch.cat([(third - 0.1).relu(), model.wide(x)], 1)
    fifth = model.after(fourth).relu()
    sixth = F.max_pool2d(fifth, 3, 2, 1)
    seventh = model.project(sixth)
    eighth = seventh.mean((2, 3))
    relevance = model.fc(eighth)
    twice = matrix(lambda v: conv(v, model.twice.weight, None, 1, 1, 1, 2), (4, 4, 4))

    relevance = down(model.fc.weight, eighth[0], relevance[0])
    relevance = down(matrix(lambda v: v.mean((2, 3)), (6, 2, 2)), seventh[0], relevance)
    relevance = down(matrix(lambda v: conv(v, model.project.weight), (8, 2, 2)), sixth[0], relevance)
    relevance = down(matrix(lambda v: F.avg_pool2d(v, 3, 2, 1), (8, 4, 4)), fifth[0], relevance)
    of_wide = down(matrix(lambda v: conv(v, model.wide.weight, None, 1, 2, 2), (4, 4, 4)), x[0], relevance[4:])
    relevance = down(twice, second[0], relevance[:4])
    added = torch.cat([torch.eye(64), torch.eye(64)], 1).double()
    of_first, of_x = down(added, torch.stack([first[0], x[0]]), relevance)
    relevance = down(twice, x[0], of_first) + of_x + of_wide
    stem = matrix(lambda v: conv(v, model.stem.weight * gain, None, 2, 1), (2, 8, 8))
    return down(stem, torch.ones(2, 8, 8).double(), relevance)


def relevance_of(model, images):
    """The relevance of the pixels before it is scaled, and the logits."""
    with torch.no_grad():
        tape = Relevance(model, RULES)
        logits, last = tape.run(images)
        return descend(tape.steps, last, logits.clone()), logits


# --- LRP -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_lrp_of_torchvision_is_zennit(name):
    model, images = network(name), torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    ours, theirs = lrp(model, images), minmax(zennit_lrp(model, images), EPS)
    assert theirs.std() > 0.05
    torch.testing.assert_close(ours, theirs, atol=5e-6, rtol=0)


def test_lrp_is_its_slow_twin():
    model = Mixed().double().eval()
    images = torch.rand(4, 2, 8, 8, dtype=torch.double)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    twin = torch.stack([slow_mixed(model, image) for image in images]).detach()
    assert (twin.abs() > 1e-3).double().mean() > 0.7
    torch.testing.assert_close(relevance_of(model, images)[0], twin, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(lrp(model.train(), images), minmax(twin, EPS), atol=1e-9, rtol=0)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


def test_every_step_passes_on_all_relevance_or_none():
    """None, where nothing positive contributed: the output comes from a bias. kept: the share that a unit passes on."""
    tape = Relevance(Mixed().double().eval(), RULES)
    with torch.no_grad():
        tape.run(torch.rand(5, 2, 8, 8, dtype=torch.double))
    lost = {}
    for step in tape.steps[1:]:
        relevance = torch.rand(step.shape, dtype=torch.double, requires_grad=True)
        passed = sum(part.sum() for part in step.down(relevance.clone(), None))
        (kept,) = torch.autograd.grad(passed, relevance)
        assert torch.minimum(kept.abs(), (kept - 1).abs()).max() < 1e-5, step.operation
        lost[step.operation] = max(lost.get(step.operation, 0), (kept < 0.5).double().mean().item())
    assert {name for name, share in lost.items() if share} <= {"conv2d", "linear", "add", "max_pool2d", "mean"}
    assert max(lost.values()) < 0.5


def test_lrp_conserves_the_logits_through_a_residual_network():
    relevance, logits = relevance_of(network("resnet18"), torch.rand(2, 3, 64, 64))
    torch.testing.assert_close(relevance.sum((1, 2, 3)), logits.sum(1), rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore:Using padding")
@pytest.mark.parametrize("name", STACKS)
def test_any_network_is_treated_as_a_stack_is(name):
    shape, parts = STACKS[name]
    model, images = stack(*parts), torch.rand(3, *shape)
    for explain in (grad, gradcam, lrp):
        if explain is gradcam and name == "no convolution":
            with pytest.raises(ValueError, match="convolution"):
                gradcam(Wrapped(model), images)
            continue
        torch.testing.assert_close(explain(Wrapped(model), images), explain(model, images), atol=2e-5, rtol=0)


@pytest.mark.parametrize(("one", "other"), [
    (nn.Conv2d(1, 3, 3, padding=1, padding_mode="reflect"), nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(1, 3, 3))),
    (nn.Conv2d(1, 3, 3, padding=1), nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(1, 3, 3))),
], ids=["reflected", "zeros"])
def test_padding_of_its_own(one, other):
    rest, images = [nn.ReLU(), nn.AdaptiveMaxPool2d(3), nn.Flatten(1), nn.Linear(27, 4)], torch.rand(3, 1, 8, 8)
    stack(one, *rest)  # gives them weights
    other[1].load_state_dict(one.state_dict())
    found = lrp(nn.Sequential(other, *rest), images)
    torch.testing.assert_close(found, lrp(Wrapped(nn.Sequential(one, *rest)), images), atol=1e-5, rtol=0)
    assert found.std() > 0.05


def test_a_negative_factor_is_folded():
    """conv * -1 is the convolution with -W; a bias and a mean pass."""
    one = stack(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 4))

    class Turned(Wrapped):
        def forward(self, x):
            return self.inner[1:](-self.inner[0](x) * torch.ones(3, 1, 1))

    images, turned = torch.rand(3, 1, 8, 8), Turned(stack(*one))
    expected = minmax(relevance_of(turned, images)[0], EPS)
    with torch.no_grad():
        one[0].weight.neg_()
        one[0].bias.neg_()
    torch.testing.assert_close(expected, lrp(one, images), atol=1e-5, rtol=0)


class Custom(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def aliased(x):
    y = x.flatten(1)
    x.relu_()
    return y.view(x.shape)


@pytest.mark.parametrize(("part", "named"), [
    (nn.Sigmoid(), "sigmoid in layer '1.1', a Sigmoid"), (nn.SiLU(), "silu in layer '1.1'"),
    (nn.LayerNorm(6), "layer_norm in layer '1.1'"), (nn.MaxPool2d(2, dilation=2), "max_pool2d in layer '1.1', a MaxPool2d"),
    (nn.ConvTranspose2d(2, 2, 3), "conv_transpose2d in layer '1.1'"),
    (nn.BatchNorm2d(2, track_running_stats=False), "batch_norm in layer '1.1', .* depend on the other images"),
    (Custom(F.dropout), "dropout in layer '1.1', a Custom: it is random"), (Custom(lambda x: x * x), "mul in layer '1.1'"),
    (Custom(aliased), "view in layer '1.1', .* changed in place"),
    (Custom(lambda x: x if x[0, 0, 0, 0] > 0 else -x), "gt in layer"),
    (Custom(lambda x: torch.from_numpy(x.numpy())), "numpy in layer"),
    (Custom(lambda x: torch.zeros(2, 2, 6, 6).copy_(x)), "copy in layer"),
], ids=lambda value: value if isinstance(value, str) else type(value).__name__)
def test_lrp_refuses_by_name(part, named):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sequential(nn.ReLU(), part), nn.Flatten(), nn.LazyLinear(3))
    with pytest.raises(TypeError, match=named) as error:
        lrp(model, torch.rand(2, 1, 8, 8))
    assert "--xai FILE.py:NAME" in str(error.value) and "\n" not in str(error.value)
    assert all(module.training and not module._forward_hooks for module in model.modules())


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_lrp_refuses_what_it_cannot_see():
    """A script's operations are not called from Python. A branch with one must not pass for a constant."""
    script = torch.jit.script(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()))
    for model in (script, Custom(lambda x: script(x) + x[:, :, 1:-1, 1:-1])):
        with pytest.raises(TypeError, match="forward in layer .*: there is no rule .*--xai FILE.py:NAME"):
            lrp(nn.Sequential(model, nn.Flatten(), nn.Linear(72, 3)), torch.rand(2, 1, 8, 8))


# --- gradient and Grad-CAM -------------------------------------------------------------------------------------------


def test_grad_and_gradcam_of_a_residual_network_are_captum():
    model, images = network("resnet18"), torch.rand(2, 3, 64, 64)
    target = model(images).argmax(1)

    def captum_gradcam(layer):
        return minmax(LayerGradCam(model, layer).attribute(images, target=target, relu_attributions=False).detach())

    torch.testing.assert_close(gradcam(model, images), captum_gradcam(model.layer4), atol=1e-5, rtol=0)
    torch.testing.assert_close(gradcam(model, images, layer="layer2"), captum_gradcam(model.layer2), atol=1e-5, rtol=0)
    theirs = Saliency(model).attribute(images.clone().requires_grad_(), target=target)
    torch.testing.assert_close(grad(model.train(), images), minmax(theirs), atol=1e-5, rtol=0)
    assert all(module.training for module in model.modules())


class Backwards(nn.Module):
    """Registered in another order than they run; the second one runs through a function."""

    def __init__(self):
        super().__init__()
        self.fc, self.second = nn.Linear(12, 3), nn.Conv2d(4, 3, 3)
        self.norm, self.first = nn.BatchNorm2d(3), nn.Conv2d(1, 4, 3)
        self.patches = nn.Conv2d(1, 8, 4, 4)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.out = nn.Linear(8, 3)

    def forward(self, x):
        x = F.relu(self.first(x), inplace=True)
        x = F.relu(self.norm(self.second(x)))  # (N, 3, 4, 4)
        return self.fc(F.max_pool2d(x, 2).flatten(1))


class Tokens(Backwards):
    def forward(self, x):
        return self.out(self.encoder(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


def test_gradcam_finds_the_last_convolution_by_running():
    model, images = Backwards(), torch.rand(2, 1, 8, 8)
    x = torch.rand(1)
    with torch.no_grad():
        activation = F.relu(F.batch_norm(model.second(F.relu(model.first(images))), model.norm.running_mean,
                                         model.norm.running_var, model.norm.weight, model.norm.bias))
    activation.requires_grad_()
    model.fc(F.max_pool2d(activation, 2).flatten(1)).amax(1).sum().backward()
    expected = (activation.grad.mean((2, 3), keepdim=True) * activation.detach()).mean(1, keepdim=True)
    torch.testing.assert_close(gradcam(model, images), minmax(expected))
    assert x.grad is None and all(module.training and not module._forward_hooks for module in model.modules())


def test_gradcam_names_layers_and_refuses_tokens():
    model, images = Backwards(), torch.rand(2, 1, 8, 8)
    with pytest.raises(ValueError, match="--layer conv9: .* first, second, norm$"):
        gradcam(model, images, layer="conv9")
    with pytest.raises(ValueError, match=r"--layer fc: its output is \(1, 3\), .* first, second, norm$"):
        gradcam(model, images, layer="fc")
    tokens = Tokens()
    with pytest.raises(TypeError, match="tokens, .* --layer NAME .*--xai FILE.py:NAME"):
        gradcam(tokens, images)
    assert gradcam(tokens, images, layer="patches").shape == (2, 1, 2, 2)
    assert grad(tokens, images).std() > 0.05
    with pytest.raises(TypeError, match="layer 'encoder"):
        lrp(tokens, images)
    assert all(module.training and not module._forward_hooks for module in tokens.modules())


def test_grad_of_a_model_without_gradient():
    with pytest.raises(TypeError, match="no gradient .*--xai FILE.py:NAME"):
        grad(Custom(torch.no_grad()(lambda x: x.flatten(1))), torch.rand(2, 1, 4, 4))


@ALL
def test_maps_of_any_network_have_the_derivatives_of_a_stack(explain):
    torch.manual_seed(0)
    shape, parts = STACKS["strides"]
    model = stack(*copy.deepcopy(parts)).double()
    images = torch.rand(3, *shape, dtype=torch.double, requires_grad=True)

    def derivative(model):
        maps = explain(model, images)
        return torch.autograd.grad((maps * torch.linspace(-1, 1, maps.numel()).view_as(maps)).sum(), images)[0]

    expected = derivative(model)
    assert expected.std() > 1e-3
    torch.testing.assert_close(derivative(Wrapped(model)), expected, atol=1e-8, rtol=1e-6)


# --- what all promise ------------------------------------------------------------------------------------------------


@ALL
def test_an_object_in_several_places_counts_in_each(explain):
    torch.manual_seed(0)
    relu, pool = nn.ReLU(), nn.MaxPool2d(2)
    one = stack(nn.Conv2d(1, 4, 3, padding=1), relu, pool, nn.Conv2d(4, 4, 3, padding=1), relu, pool, nn.Flatten(),
                nn.Linear(64, 8), relu, nn.Linear(8, 5))
    each = nn.Sequential(*(nn.ReLU() if part is relu else nn.MaxPool2d(2) if part is pool else part for part in one))
    images = torch.rand(4, 1, 16, 16)
    assert explain(one, images).equal(explain(each, images))
    assert explain(one, images).std() > 0.05


def test_features_of_a_classifier_with_an_object_in_several_places():
    model = Classifier((1, 16), 5, (4, 6), 8, features="hidden")
    images = torch.rand(2, 1, 16, 16) - 0.5
    expected = model.features(images)
    shared = nn.ReLU()
    for name in ("relu0", "relu1", "relu"):
        setattr(model, name, shared)
    assert model.features(images).equal(expected)


@ALL
@pytest.mark.parametrize("wrap", [lambda model: model, Wrapped], ids=["stack", "any"])
def test_the_callers_images_and_precision(explain, wrap):
    model = wrap(stack(nn.ReLU(inplace=True), nn.Conv2d(1, 4, 3), nn.Flatten(), nn.ReLU(inplace=True), nn.Linear(144, 3)))
    images = torch.rand(3, 1, 8, 8) - 0.3
    before, expected = images.clone(), explain(model, images)
    assert images.equal(before) and expected.std() > 0.05
    with torch.autocast("cpu", torch.bfloat16):
        found = explain(model, images)
    assert found.dtype == torch.float32 and found.equal(expected)
    assert explain(model.bfloat16(), images.bfloat16()).dtype == torch.float32
    assert explain(model.float(), images[:0]).shape == (0, *expected.shape[1:])
    for wrong in (images[0], images.byte()):
        with pytest.raises(TypeError, match=r"explainers need floating point \(N, C, H, W\)"):
            explain(model, wrong)


@ALL
def test_what_is_no_classifier_is_refused(explain):
    with pytest.raises(TypeError, match=r"the model returns a tuple for \d images; explainers need logits"):
        explain(Custom(lambda x: (F.conv2d(x, torch.ones(1, 1, 3, 3)), x)), torch.rand(2, 1, 4, 4))


@ALL
def test_a_compiled_or_spread_network_is_explained_as_it_is(explain):
    model, images = Mixed().eval(), torch.rand(2, 2, 8, 8)
    compiled = Custom(None)
    compiled._orig_mod = model  # as torch.compile keeps it
    assert explain(nn.DataParallel(model), images).equal(explain(model, images))
    assert explain(compiled, images).equal(explain(model, images))
