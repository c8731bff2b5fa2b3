"""Explanations per second: ours against captum (grad, Grad-CAM) and zennit (LRP).

At the paper's MNIST victim the other libraries are given batches of 32 and of 128 images; ours is compared with the better of
the two. LRP also at networks of torchvision, random weights, 64x64. There zennit has the canonizers that merge BatchNorm and
that make ResNet's sums modules. It differentiates MobileNet's sums and DenseNet's functions, which is cheaper than a rule.
"""

import importlib.util
from functools import partial

import torch
from common import Report, options

from gnime.batches import AT_ONCE, channels_last
from gnime.config import target
from gnime.models.classifier import Classifier
from gnime.networks import build, classifier_spec
from gnime.registry import EXPLAINERS
from gnime.system import retain_freed_memory

BATCHES = (32, 128)
NETWORKS = ("resnet18", "vgg11_bn", "densenet121", "mobilenet_v2")


def victim() -> Classifier:
    return build(classifier_spec(target("mnist"), 10)).eval()


def captum_grad(model):
    from captum.attr import Saliency

    saliency = Saliency(model)
    return lambda x: saliency.attribute(x.clone().requires_grad_(), target=model(x).argmax(1))


def captum_gradcam(model):
    from captum.attr import LayerGradCam

    cam = LayerGradCam(model, model.relu1)
    return lambda x: cam.attribute(x, target=model(x).argmax(1))


def zennit_lrp(model, canonizers=()):
    from zennit.attribution import Gradient
    from zennit.composites import EpsilonPlusFlat

    def attribute(x):
        with Gradient(model=model, composite=EpsilonPlusFlat(canonizers=list(canonizers))) as attributor:
            return attributor(x.clone().requires_grad_(), lambda out: out)

    return attribute


def network(name):
    import torchvision

    return getattr(torchvision.models, name)(weights=None, num_classes=10).eval().requires_grad_(False)


def zennit_network(name, n):
    from zennit.canonizers import NamedMergeBatchNorm, SequentialMergeBatchNorm
    from zennit.torchvision import ResNetCanonizer

    model, images = network(name), torch.rand(n, 3, 64, 64)
    canonizer = ResNetCanonizer() if name.startswith("resnet") else SequentialMergeBatchNorm()
    if name.startswith("densenet"):  # in order of registration, a layer's last convolution precedes the next layer's norm
        layers = [layer for layer, _ in model.named_modules() if layer.endswith(".conv1")]
        pairs = [([layer], layer.replace("conv1", "norm2")) for layer in layers]
        canonizer = NamedMergeBatchNorm([(["features.conv0"], "features.norm0"), *pairs])
    explain = zennit_lrp(model, [canonizer])
    return lambda: explain(images)


def our_network(name, n):
    retain_freed_memory()
    model, explain, images = network(name), EXPLAINERS["lrp"].load(), torch.rand(n, 3, 64, 64)
    return lambda: explain(model, images)


def theirs(library, n, batch):
    explain, images = library(victim()), torch.rand(n, 1, 32, 32)

    def work():
        for part in images.split(batch):
            explain(part)

    return work


def ours(name, n):
    retain_freed_memory()
    model, explain = victim().to(memory_format=torch.channels_last).requires_grad_(False), EXPLAINERS[name].load()
    images = torch.rand(n, 1, 32, 32)

    def work():
        for part in images.split(AT_ONCE["cpu"]):
            explain(model, channels_last(part))

    return work


def main():
    chosen = options(__doc__)
    n, rounds, batches = (64, 2, (32,)) if chosen.quick else (256, 5, BATCHES)
    report = Report(chosen)
    print(f"{n} images, ours in batches of {AT_ONCE['cpu']}")
    for name, library, explain, goal in (("grad", "captum", captum_grad, 1.7), ("gradcam", "captum", captum_gradcam, 1.8),
                                         ("lrp", "zennit", zennit_lrp, 3.5)):
        if importlib.util.find_spec(library) is None:
            print(f"{name}: {library} is not installed, not measured")
            continue
        builds = [partial(theirs, explain, n, batch) for batch in batches] + [partial(ours, name, n)]
        report.compare(name, [f"{library}, batch {batch}" for batch in batches] + ["ours"], builds, rounds, goal, library)
    if importlib.util.find_spec("zennit"):
        images = 4 if chosen.quick else 32  # in one batch each
        for name in NETWORKS:
            report.compare(f"lrp of {name}", [f"zennit, {images} images", "ours"],
                           [partial(zennit_network, name, images), partial(our_network, name, images)], rounds, 1.0, "zennit")
    report.finish()


if __name__ == "__main__":
    main()
