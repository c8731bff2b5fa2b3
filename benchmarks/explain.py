"""Explanations per second at the paper's MNIST victim: ours against captum (grad, Grad-CAM) and zennit (LRP).

The other libraries are given batches of 32 and of 128 images; ours is compared with the better of the two.
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


def zennit_lrp(model):
    from zennit.attribution import Gradient
    from zennit.composites import EpsilonPlusFlat

    def attribute(x):
        with Gradient(model=model, composite=EpsilonPlusFlat()) as attributor:
            return attributor(x.clone().requires_grad_(), lambda out: out)

    return attribute


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
    report.finish()


if __name__ == "__main__":
    main()
