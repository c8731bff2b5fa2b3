"""Explanations per second at the paper's MNIST victim: ours against captum (grad, Grad-CAM) and zennit (LRP)."""

import torch
from common import Report, compare, parser

from gnime.classifiers import Classifier
from gnime.config import target
from gnime.explainers import EXPLAINERS
from gnime.explaining import EXPLAIN_CHUNK
from gnime.networks import classifier_spec

BATCH = 128  # what the other libraries are given at once


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


def main():
    options = parser(__doc__).parse_args()
    n, rounds = (128, 2) if options.quick else (512, 5)
    report = Report()
    torch.manual_seed(0)
    model = Classifier(**{k: v for k, v in classifier_spec(target("mnist"), 10).items() if k != "network"}).eval()
    images = torch.rand(n, 1, 32, 32)
    fast = Classifier(1, 32, 10, (128, 256), 512).eval().to(memory_format=torch.channels_last)
    fast.load_state_dict(model.state_dict())
    fast.requires_grad_(False)
    print(f"{n} images, ours in chunks of {EXPLAIN_CHUNK['cpu']}, the others in batches of {BATCH}")
    for name, library, build, goal in (("grad", "captum", captum_grad, 1.7), ("gradcam", "captum", captum_gradcam, 1.8),
                                       ("lrp", "zennit", zennit_lrp, 5.0)):
        try:
            theirs = build(model)
        except ImportError:
            print(f"{name}: {library} is not installed, not measured")
            continue
        ours = EXPLAINERS[name].load()

        def other(theirs=theirs):
            for part in images.split(BATCH):
                theirs(part)

        def own(ours=ours):
            for part in images.split(EXPLAIN_CHUNK["cpu"]):
                ours(fast, part.contiguous(memory_format=torch.channels_last))

        plain, mine = compare(other, own, rounds)
        print(f"{name}: {library} {n / min(plain):.0f}, ours {n / min(mine):.0f} images/s at best")
        report.ratio(f"{name}, ours / {library}", plain, mine, goal)
    report.finish(options.json)


if __name__ == "__main__":
    main()
