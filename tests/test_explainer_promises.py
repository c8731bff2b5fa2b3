"""What all explainers promise their callers, whatever they compute."""

import copy

import pytest
import torch
from helpers import STACKS, small_classifier, stack
from torch import nn

from gnime import ops
from gnime.registry import EXPLAINERS


@pytest.mark.parametrize("xai", EXPLAINERS)
def test_constant_map_becomes_zeros(xai):
    """A model that looks at nothing."""
    model = small_classifier()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    found = EXPLAINERS[xai].load()(model, torch.rand(2, 3, 16, 16))
    assert found.equal(torch.zeros_like(found))


@pytest.mark.parametrize("xai", EXPLAINERS)
def test_an_accelerated_classifier_is_refused_until_it_is_plain(xai):
    model, images, explain = small_classifier(), torch.rand(3, 3, 16, 16), EXPLAINERS[xai].load()
    expected = explain(model, images)
    with pytest.raises(TypeError, match="'model' is a FastClassifier, .* make an accelerated network plain"):
        explain(ops.accelerate(model), images)
    assert explain(ops.plain(model), images).equal(expected)


@pytest.mark.parametrize("xai", EXPLAINERS)
@pytest.mark.parametrize("frozen", [False, True], ids=["trainable", "frozen"])
def test_nothing_is_left_behind(xai, frozen):
    explain = EXPLAINERS[xai].load()
    model, images = small_classifier().train().requires_grad_(not frozen), torch.rand(3, 3, 16, 16)
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
    model, images = small_classifier(), torch.rand(3, 3, 16, 16)
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
    model, images = stack(*parts), torch.rand(3, *shape)
    explain = EXPLAINERS[xai].load()
    expected = explain(model, images)
    assert expected.any()
    with torch.inference_mode():
        torch.testing.assert_close(explain(model, images), expected)
        torch.testing.assert_close(explain(model, images.clone()), expected)
        assert torch.is_inference_mode_enabled()


def test_lrp_refuses_what_its_epsilon_vanishes_in():
    with pytest.raises(TypeError, match="float32"):
        EXPLAINERS["lrp"].load()(small_classifier().half(), torch.rand(1, 3, 16, 16).half())


@pytest.mark.parametrize("xai", EXPLAINERS)
def test_shape_range_and_type(xai):
    model = small_classifier()
    found = EXPLAINERS[xai].load()(model, torch.rand(4, 3, 16, 16))
    assert found.shape == ((4, 1, 8, 8) if xai == "gradcam" else (4, 3, 16, 16))
    assert found.dtype == torch.float32
    assert found.amin((2, 3)).abs().max() == 0
    torch.testing.assert_close(found.amax((2, 3)), torch.ones(found.shape[:2]))
