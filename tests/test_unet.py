"""The residual U-Net: its parts by hand and by slow loops, and its runs through the scripts."""

import json
import shutil

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import Adam

from gnime import pipeline
from gnime.attackers import unet
from gnime.cli import resolve
from gnime.experiment import Experiment
from gnime.models.unet import CODE, Block, UNet
from gnime.networks import rebuild
from gnime.registry import ATTACKERS, DEFAULT_ATTACKERS, ROWS


def test_shapes_and_what_it_sees():
    network = UNet(2, 5, 3, 16, 64, scales=(0.25, 0.5, 1.0, 2.0))
    maps, y = torch.rand(4, 2, 8, 8), torch.randn(4, 5)
    assert network(maps, y).shape == (4, 3, 16, 16) and network(None, y).shape == (4, 3, 16, 16)
    seen = network.seen(maps, 4)
    large = nn.functional.interpolate(maps.double(), (16, 16), mode="bilinear")
    torch.testing.assert_close(seen[:, :2].double(), (large - 0.25) / 0.5, atol=1e-6, rtol=0)
    assert seen[:, 2].eq(1).all() and network.seen(None, 4)[:, :2].eq(0).all()
    with torch.no_grad():
        assert not network(maps, y).allclose(network(maps.flip(0), y)), "it looks at the maps"
        assert not network(None, y).allclose(network(None, y.flip(0))), "and at the prediction"
        constant = UNet(1, 5, 1, 8, 64, scales=(0.5, 0.0, 0.0, 0.0))
        assert constant(torch.full((2, 1, 8, 8), 0.5), torch.zeros(2, 5)).isfinite().all()


def test_a_block_by_hand():
    """A 1x1 picture of two channels, which both convolutions leave as it is."""
    block, silu = Block(2, 2), nn.functional.silu
    for layer in (block.first, block.second):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        layer.weight.data[:, :, 1, 1] = torch.eye(2)
    nn.init.zeros_(block.film.weight)
    block.film.bias.data = torch.tensor([0.5, 2.0, 0.1, -0.1])  # scales, then offsets
    x = torch.tensor([3.0, -1.0]).view(1, 2, 1, 1)
    inside = silu(x.flatten()) * torch.tensor([1.5, 3.0]) + torch.tensor([0.1, -0.1])
    torch.testing.assert_close(block(x, torch.randn(1, CODE)).flatten(), x.flatten() + silu(inside), atol=1e-4, rtol=0)


def slow_shift(picture, down, right):
    made = np.zeros_like(picture)
    side = picture.shape[1]
    for i in range(side):
        for j in range(side):
            if 0 <= i - down < side and 0 <= j - right < side:
                made[:, i, j] = picture[:, i - down, j - right]
    return made


def test_shifts_are_their_slow_twin():
    pictures, by = torch.rand(6, 2, 5, 5), torch.tensor([[0, 0], [2, -1], [-2, 2], [1, 0], [0, -2], [-1, -1]])
    moved = unet.shift(pictures, by, 2)
    for picture, (down, right), found in zip(pictures.numpy(), by.tolist(), moved.numpy(), strict=True):
        np.testing.assert_array_equal(found, slow_shift(picture, down, right))


def test_the_loss_is_its_slow_twin():
    """Maps, ones and images move alike; pixels that come in do not count. The draws are those of the global generator."""
    network = UNet(1, 3, 1, 16, 64)
    maps, y, images = torch.rand(8, 1, 16, 16), torch.randn(8, 3), torch.rand(8, 1, 16, 16)
    torch.manual_seed(5)
    found = unet.shifted_error(network, [maps, y, images])
    torch.manual_seed(5)
    by, total = (torch.randint(-1, 2, (8, 2)) * torch.randint(2, (8, 1))).tolist(), 0.0
    assert len({tuple(pair) for pair in by}) > 2 and [0, 0] in by
    for i, pair in enumerate(by):
        seen = np.concatenate([maps[i].numpy(), np.ones((1, 16, 16), np.float32)])
        seen = slow_shift(seen, *pair)
        with torch.no_grad():
            made = network.reconstruct(torch.from_numpy(seen)[None], y[i : i + 1])[0].double().numpy()
        total += (np.square(made - slow_shift(images[i].numpy(), *pair)) * seen[1]).sum()
    assert found.item() == pytest.approx(total / images.numel(), rel=1e-5)


def test_shifts_do_not_blur_where_the_map_says_nothing(monkeypatch):
    """A picture of stripes and a withheld map. Without the ones, the best answer is a mean over nine shifts."""
    monkeypatch.setattr(unet, "REACH", 1 / 8)
    images, y = torch.zeros(16, 1, 8, 8), torch.zeros(16, 2)
    images[..., 2:6:2] = 1
    network = UNet(1, 2, 1, 8, 64)
    optimiser = Adam(network.parameters(), 3e-3)
    for _ in range(100):
        optimiser.zero_grad()
        unet.shifted_error(network, [None, y, images]).backward()
        optimiser.step()
    with torch.no_grad():
        error = (network(None, y) - images).square().mean().item()
    draws = torch.cartesian_prod(torch.arange(-1, 2), torch.arange(-1, 2))
    blurred = unet.shift(images[:9], draws, 1).mean(0)
    assert error < 0.2 * (blurred - images[0]).square().mean().item()


def test_registered():
    assert "unet" not in DEFAULT_ATTACKERS
    for name in ("predmi", "gnime", "blank"):
        assert "unet" in ROWS[name].attackers(["unet"])[0]
    assert ATTACKERS["unet"].stored == "row"


def test_through_the_scripts(scripts, root_copy, monkeypatch):
    monkeypatch.setattr(pipeline, "_pictures", lambda *_: None)
    flags = ["--settings", "predmi", "gnime", "--attackers", "unet"]
    assert scripts("eval", root_copy, *flags)[0] == 0
    files = [root_copy / f"models/inv/digits_{name}_unet.pt" for name in ("predmi", "gnime_lrp")]
    before = [path.read_bytes() for path in files]
    found = json.loads((root_copy / "figures/digits_lrp/results.json").read_text())["settings"]
    assert found["predmi"]["attackers"].keys() == {"predmi", "unet"} and "unet" in found["gnime"]["attackers"]
    code, out, _ = scripts("eval", root_copy, *flags)
    assert code == 0 and [path.read_bytes() for path in files] == before and out.count("_unet.pt: found") == 2
    again = json.loads((root_copy / "figures/digits_lrp/results.json").read_text())["settings"]
    assert again == found

    experiment = Experiment(resolve("eval", [*scripts.flags, "--root", str(root_copy)]))
    predictions = np.asarray(experiment.predictions[30:52], np.float64)  # what the attacker trains on
    network = rebuild(files[0])
    np.testing.assert_allclose(network.scales, [0, 1, predictions.mean(), predictions.std()], rtol=1e-4)
    trained = rebuild(files[1]).state_dict()
    for path in files:
        path.unlink()
        path.with_name(f"{path.stem}.state.pt").unlink(missing_ok=True)
    shutil.rmtree(root_copy / "figures")
    assert scripts("eval", root_copy, *flags)[0] == 0
    assert all(value.equal(trained[name]) for name, value in rebuild(files[1]).state_dict().items()), "seeded"
