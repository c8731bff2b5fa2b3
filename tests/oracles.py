"""LRP of torchvision's networks by zennit and its canonizers, set up as docs/method.md's rule is."""

import functools

import torch
import torch.nn.functional as F
import torchvision.models
from torch import nn
from torchvision.models.densenet import DenseNet, _DenseLayer
from torchvision.models.mobilenetv2 import InvertedResidual, MobileNetV2
from zennit.canonizers import AttributeCanonizer, NamedMergeBatchNorm, SequentialMergeBatchNorm
from zennit.composites import LayerMapComposite
from zennit.core import BasicHook, Hook, ParamMod, Stabilizer
from zennit.layer import Sum
from zennit.rules import Pass, ZPlus
from zennit.torchvision import ResNetCanonizer, VGGCanonizer
from zennit.types import Activation, AvgPool, BatchNorm, Convolution, Linear, MaxPool

from gnime.explainers.zplus import EPS

NETWORKS = "resnet18", "vgg11_bn", "densenet121", "mobilenet_v2"


@functools.cache
def network(name):
    """One of torchvision's with ten classes, random weights and random statistics of BatchNorm. VGG's dense layers are narrow.

    BatchNorm adds nothing to its variances, because zennit's merged ones would add it a second time.
    """
    with torch.device("meta"):  # their own initialisation takes seconds
        model = getattr(torchvision.models, name)(weights=None, num_classes=10).eval()
        if name.startswith("vgg"):
            for i, shape in {0: (25088, 64), 3: (64, 32), 6: (32, 10)}.items():
                model.classifier[i] = nn.Linear(*shape)
    model.to_empty(device="cpu")
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.normal_(module.bias, 0, 0.1)
        elif isinstance(module, nn.Linear):
            module.reset_parameters()
        elif isinstance(module, nn.BatchNorm2d):
            module.eps = 0.0
            nn.init.normal_(module.weight, 1, 0.3)
            nn.init.normal_(module.bias, 0, 0.3)
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


def _share(relevance, outputs):
    return [relevance / Stabilizer(EPS)(outputs[0])]


def ones_zplus():
    """ZPlus with ones for the input: the first convolution."""
    def positive(parameter, name):
        return torch.zeros_like(parameter) if name == "bias" else parameter.clamp(min=0)

    return BasicHook(input_modifiers=[torch.ones_like], param_modifiers=[ParamMod(positive)], gradient_mapper=_share,
                     reducer=lambda inputs, gradients: gradients[0])


def positive_parts():
    """Norm on the positive inputs: sums and pooling."""
    return BasicHook(input_modifiers=[lambda x: x.clamp(min=0)], gradient_mapper=_share,
                     reducer=lambda inputs, gradients: inputs[0] * gradients[0])


class Averaged(Hook):
    """Max pooling as if it were average pooling."""

    def forward(self, module, input, output):
        self.stored_tensors["input"] = input

    def backward(self, module, grad_input, grad_output):
        a = self.stored_tensors["input"][0].detach().clamp(min=0).requires_grad_()
        with torch.enable_grad():
            pooled = F.avg_pool2d(a, module.kernel_size, module.stride, module.padding, module.ceil_mode)
        (gradient,) = torch.autograd.grad(pooled, a, grad_output[0] / (pooled.detach() + EPS))
        return (a.detach() * gradient,)


def _residual(self, x):
    return self.canonizer_sum(torch.stack([x, self.conv(x)], -1)) if self.use_res_connect else self.conv(x)


def _head(self, x):
    return self.classifier(self.canonizer_pool(self.canonizer_relu(self.features(x))).flatten(1))


def _modules(name, module):
    """What these two networks call as functions, as modules."""
    if isinstance(module, InvertedResidual):
        return {"forward": _residual.__get__(module), "canonizer_sum": Sum()}
    if isinstance(module, (DenseNet, MobileNetV2)):
        relu = nn.ReLU() if isinstance(module, DenseNet) else nn.Identity()
        return {"forward": _head.__get__(module), "canonizer_pool": nn.AdaptiveAvgPool2d(1), "canonizer_relu": relu}
    return None


def _canonizers(model):
    if isinstance(model, DenseNet):  # in order of registration, a layer's last convolution precedes the next layer's norm
        layers = [name for name, module in model.named_modules() if isinstance(module, _DenseLayer)]
        pairs = [(["features.conv0"], "features.norm0"), *(([f"{name}.conv1"], f"{name}.norm2") for name in layers)]
        return [NamedMergeBatchNorm(pairs), AttributeCanonizer(_modules)]
    if isinstance(model, MobileNetV2):
        return [SequentialMergeBatchNorm(), AttributeCanonizer(_modules)]
    return [VGGCanonizer() if isinstance(model, torchvision.models.VGG) else ResNetCanonizer()]


def zennit_lrp(model, images):
    """The relevance of the pixels, (N, C, H, W)."""
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    rule = ZPlus(stabilizer=EPS, zero_params="bias")

    class Rules(LayerMapComposite):
        def mapping(self, ctx, name, module):
            return ones_zplus() if module is first else super().mapping(ctx, name, module)

    composite = Rules([(Activation, Pass()), (BatchNorm, Pass()), (MaxPool, Averaged()), (Sum, positive_parts()),
                       (AvgPool, positive_parts()), (Convolution, rule), (Linear, rule)],
                      canonizers=_canonizers(model))
    with composite.context(model) as modified:
        x = images.clone().requires_grad_()
        output = modified(x)
        return torch.autograd.grad(output, x, output.detach())[0]
