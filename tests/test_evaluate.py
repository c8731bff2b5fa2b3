"""Defences, class means and the comparison of settings, by hand."""

import re
from pathlib import Path

import pytest
import torch

from gnime.cli import resolve
from gnime.comparison import compare, compare_beside, exposed
from gnime.defences import DefenceInputs
from gnime.defences.class_mean import class_means
from gnime.defences.noise import row_noise
from gnime.device import Device
from gnime.evaluate import Result
from gnime.metrics import leakage
from gnime.models.inversion import ExpMI
from gnime.registry import ATTACKERS, DEFAULT_ATTACKERS, DEFENCES, ROWS
from gnime.report.results import verdict_table
from gnime.system import generator

REPOSITORY = Path(__file__).parent.parent


def test_defences_by_hand():
    e, y, x = torch.rand(64, 2, 8, 8), torch.eye(4)[torch.arange(64) % 4], torch.rand(64, 1, 16, 16)
    span = range(128, 192)
    assert DEFENCES["none"].load()(DefenceInputs(0))(e, y, x, span) is e
    torch.testing.assert_close(DEFENCES["negative"].load()(DefenceInputs(0))(e, y, x, span), 1 - e)
    noise = DEFENCES["rnd"].load()(DefenceInputs(3, variance=0.04))
    assert (noise(e, y, x, span) - e).var().item() == pytest.approx(0.04, rel=0.05)
    assert (noise(e, y, x, span) - e).mean().abs() < 0.01
    assert noise(e, y, x, span).equal(noise(e, y, x, span)), "asked twice, the same draw"
    assert not noise(e, y, x, span).equal(noise(e, y, x, range(64)))
    assert not noise(e, y, x, span).equal(DEFENCES["rnd"].load()(DefenceInputs(4, variance=0.04))(e, y, x, span))
    assert noise(e, y, x, span).min() < 0, "not clipped"
    shuffled = DEFENCES["permutation"].load()(DefenceInputs(3))(e, y, x, span)
    assert not shuffled.equal(e)
    torch.testing.assert_close(shuffled.flatten(2).sort(2).values, e.flatten(2).sort(2).values)
    assert shuffled[0].equal(DEFENCES["permutation"].load()(DefenceInputs(3))(e[:1], y, x, range(5))[0]), "one order for all"
    means = torch.rand(4, 2, 8, 8)
    assert DEFENCES["class-mean"].load()(DefenceInputs(0, class_means=means))(e, y, x, span)[5].equal(means[1])
    assert DEFENCES["blank"].load()(DefenceInputs(0))(e, y, x, span).equal(torch.zeros_like(e))


@pytest.mark.parametrize("name", ["rnd", "ond"])
def test_the_draw_of_a_row_is_the_same_whatever_rows_are_asked_for_with_it(name):
    e, y, x = torch.rand(600, 1, 8, 8), torch.randn(600, 4), torch.rand(600, 1, 16, 16)
    protect = DEFENCES[name].load()(DefenceInputs(3, variance=0.01, frozen_inverter=ExpMI(1, 8, 4, 1, 16, 64).eval()))
    together = protect(e, y, x, range(600))
    parts = [range(0, 64), range(64, 300), range(300, 301), range(301, 600)]
    apart = torch.cat([protect(*(m[part.start : part.stop] for m in (e, y, x)), part) for part in parts])
    torch.testing.assert_close(apart, together)
    drawn = torch.randn(256, 1, 8, 8, generator=generator(3, name, 256))  # what attackers of earlier versions saw
    assert row_noise(3, name, e, range(260, 512)).equal(drawn[4:])
    assert row_noise(3, name, e, range(0)).shape == (0, 1, 8, 8)


def test_ond_hurts_a_frozen_inverter_more_than_noise_of_its_size():
    inverter = ExpMI(1, 8, 4, 1, 16, 64)
    e, y = torch.rand(32, 1, 8, 8), torch.randn(32, 4)
    with torch.no_grad():
        x = inverter(e, y)  # what it finds undefended is right
    means = DefenceInputs(3, variance=0.01, frozen_inverter=inverter)
    found = {name: DEFENCES[name].load()(means)(e, y, x, range(32)) for name in ("ond", "rnd")}
    per_image = (found["ond"] - e).square().flatten(1).mean(1)
    torch.testing.assert_close(per_image, torch.full((32,), 0.01))
    with torch.no_grad():
        error = {name: (inverter(seen, y) - x).square().mean().item() for name, seen in found.items()}
    assert error["ond"] > 1.5 * error["rnd"]
    assert all(parameter.grad is None for parameter in inverter.parameters())


def test_class_means_by_hand():
    maps = torch.tensor([[0.0, 1.0], [0.4, 0.6], [1.0, 1.0], [9.0, 9.0]]).view(4, 1, 1, 2)
    logits = torch.tensor([[5.0, 0.0, 0.0], [4.0, 1.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 7.0]])
    found = class_means(maps, logits, range(3), Device(resolve("eval", ["--gpu", "-1"])))
    expected = torch.tensor([[0.2, 0.8], [1.0, 1.0], [1.4 / 3, 2.6 / 3]]).view(3, 1, 1, 2)
    torch.testing.assert_close(found, expected)  # the third class has none: the mean of all


def outcome(mse, distortion=0.1, spread=0.001):
    numbers = {"mse": mse, "mse_interval": [mse - spread, mse + spread], "distortion": distortion}
    return Result(numbers, torch.full((40,), mse), torch.empty(0), None)


def test_comparison_of_settings():
    outcomes = {"predmi": outcome(0.08), "expmi": outcome(0.02, 0), "gnime": outcome(0.05), "rnd": outcome(0.09)}
    warnings = compare(outcomes)
    leaks = [found.numbers["residual_leakage"] for found in outcomes.values()]
    assert leaks == [0.0, 1.0, pytest.approx(0.5), pytest.approx(-1 / 6)]
    assert outcomes["gnime"].numbers["residual_leakage_interval"] == pytest.approx([0.5, 0.5]), "all images alike"
    assert len(warnings) == 1 and warnings[0].startswith("rnd: ") and "not converged" in warnings[0]
    assert compare({"predmi": outcome(0.08), "rnd": outcome(0.0805)}) == [], "within the intervals"
    stopped = outcome(0.1, spread=0.02)
    stopped.attacker = {"early": True, "epochs": 119}
    (warning,) = compare({"predmi": outcome(0.08, spread=0.02), "rnd": stopped}, "do this")
    assert "it stopped after 119 epochs, because it learnt nothing more: give more images" in warning
    (warning,) = compare({"predmi": outcome(0.08, spread=0.02), "rnd": outcome(0.1, spread=0.02)}, "do this")
    assert "rnd: the paper's attacker does worse (MSE 0.1000)" in warning and warning.endswith("converged; do this")
    assert compare({"predmi": outcome(0.08), "rnd": outcome(0.0825)})[0].startswith("rnd: "), "3 %, but no chance"
    alone = {"gnime": outcome(0.05)}
    assert compare(alone) == [] and alone["gnime"].numbers["residual_leakage"] is None


@pytest.mark.parametrize("found, warned", [
    ({"expmi": (0.02, 0), "rnd-0": (0.0215, 0), "rnd": (0.03, 0.1), "rnd-4": (0.05, 0.4)}, None),  # as it should be
    ({"expmi": (0.02, 0), "rnd-0": (0.0225, 0)}, "rnd-0: distorts nothing"),
    ({"expmi": (0.02, 0), "gnime": (0.03, 0)}, "gnime: distorts nothing"),  # an injector that learnt to do nothing
    ({"rnd-4": (0.02, 0.4), "rnd": (0.03, 0.1)}, "rnd: its attacker recovers less"),
    ({"expmi": (0.03, 0), "rnd": (0.02, 0.1)}, "expmi: its attacker recovers less"),
    ({"rnd": (0.03, 0.1), "gnime": (0.02, 0.4)}, None),  # of another kind: nothing follows
    ({"rnd": (0.0300, 0.1), "rnd-4": (0.0277, 0.4)}, None),  # within what seeds do
    ({"rnd": (0.0300, 0.1, 0.01), "rnd-4": (0.0265, 0.4, 0.01)}, "rnd: its attacker recovers less"),  # the intervals meet
])
def test_an_evaluation_that_contradicts_itself_warns(found, warned):
    warnings = compare({name: outcome(*numbers) for name, numbers in found.items()})
    assert [w.startswith(warned) for w in warnings] == [True] * bool(warned), warnings


def of_errors(rows):
    return {name: Result({"mse": 0.1, "mse_interval": [0, 1]}, errors, torch.empty(0), None) for name, errors in rows.items()}


def test_the_verdict_by_hand():
    """100 images of which the row exposes five: it recovers them as the undefended attacker does, and nothing of the others."""
    prediction, undefended = torch.full((100,), 0.1), torch.full((100,), 0.02)
    row = prediction.clone()
    row[[3, 17, 40, 41, 99]] = 0.02
    rows = {"predmi": prediction, "expmi": undefended, "gnime": row}
    results = of_errors(rows)
    compare(results)
    found = results["gnime"].numbers
    assert found["residual_leakage"] == pytest.approx(5 / 100)
    assert found["residual_leakage_exposed"] == pytest.approx(1.0)  # 5 % of 100 images
    low, high = found["residual_leakage_interval"]  # binomial: 0.05 +- 1.96 sqrt(0.05 * 0.95 / 100)
    assert low == pytest.approx(0.007, abs=0.02) and high == pytest.approx(0.093, abs=0.02)
    assert "residual_leakage_interval" not in results["predmi"].numbers, "0 by definition"


def test_images_that_chance_exposes_are_no_leak():
    """A row whose errors are those without explanations and as much noise again; and one that leaks half of it."""
    generator = torch.Generator().manual_seed(0)
    prediction, undefended = 0.1 + 0.02 * torch.randn(4000, generator=generator), torch.full((4000,), 0.02)
    null = 0.1 + 0.02 * torch.randn(4000, generator=generator)
    assert abs(exposed(null, prediction, undefended)) < 0.05
    assert exposed(null - 0.04, prediction, undefended) > 0.5
    (least,) = re.findall("needs at least ([0-9]+) test images", (REPOSITORY / "docs/threat-model.md").read_text())
    few, enough = ([errors[:n] for errors in (null, prediction, undefended)] for n in (int(least) - 1, int(least)))
    assert exposed(*few) is None and exposed(*enough) is not None


def test_a_row_that_adds_nothing_and_leaks_warns():
    prediction = torch.rand(200) + 1
    rows = {"predmi": prediction, "expmi": prediction - 0.9, "blank": prediction - 0.3, "cond-mean": prediction}
    results = of_errors(rows)
    (warning,) = compare(results)
    assert warning.startswith("blank: its maps add nothing to the prediction, but residual leakage is 33%")


def test_a_leak_that_cannot_be_one_is_none():
    """A row whose best attacker does far worse than one without explanations, or better than one of the undefended ones."""
    prediction = torch.rand(200) + 1
    rows = {"predmi": prediction, "expmi": prediction - 0.1, "gnime": prediction + 0.887, "rnd": prediction - 0.3,
            "ond": prediction - 0.05}
    found = of_errors(rows)
    warnings = compare(found)
    assert [warning.split(":")[0] for warning in warnings] == ["gnime", "rnd"]
    assert "less than one without" in warnings[0] and "-887%" in warnings[0] and "more than one of the undef" in warnings[1]
    for result in found.values():
        result.numbers["best"] = {"attacker": "kernel", "mse": 0.1, "ssim": 0.5}
        result.numbers["mse_strongest"] = 0.1
    lines = {line.split()[0]: line for line in verdict_table(found).splitlines()}
    assert "not converged" in lines["gnime"] and "not converged" in lines["rnd"] and "50.0%" in lines["ond"]
    assert leakage.is_possible(-0.02, [-0.1, 0.01]) and not leakage.is_possible(-0.03, None)
    assert leakage.is_possible(-0.006, [-0.009, -0.003]) and leakage.is_possible(1.02, [1.01, 1.03])
    assert not leakage.is_possible(1.05, [1.03, 1.07])
    assert not leakage.is_possible(None, None) and leakage.is_possible(0.5, None)


def test_where_undefended_maps_hardly_help_no_row_is_judged():
    """The undefended leak is above 0 by chance alone, and the row's error is larger."""
    prediction, chance = torch.full((200,), 0.1), torch.linspace(-0.05, 0.05, 200)
    found = of_errors({"predmi": prediction, "expmi": prediction - 0.001 + chance, "gnime": prediction + 0.01})
    assert compare(found) == [] and found["gnime"].numbers["residual_leakage_interval"] is None
    assert found["gnime"].numbers["residual_leakage"] < -1
    for result in found.values():
        result.numbers |= {"best": {"attacker": "kernel", "mse": 0.1, "ssim": 0.5}, "mse_strongest": 0.1}
    gnime = next(line for line in verdict_table(found).splitlines() if line.startswith("gnime"))
    assert "converged" not in gnime and "%" not in gnime


def test_few_test_images_are_warned_of():
    def warnings(images):
        errors = torch.linspace(0.1, 0.2, images)
        return compare(of_errors({"predmi": errors, "expmi": errors - 0.09, "gnime": errors - 0.05}))

    assert warnings(20) == [] and len(warnings(19)) == 1 and warnings(19)[0].startswith("19 test images cannot carry a verdict")


def test_an_interval_is_paired_over_images():
    """Images differ far more than attackers do; the ratio does not."""
    scale = torch.rand(200) * 10
    low, high = leakage.paired_interval(0.07 * scale, 0.1 * scale, 0.02 * scale)
    assert low == pytest.approx(0.375, abs=1e-6) and high == pytest.approx(0.375, abs=1e-6)


def test_attackers_of_a_row():
    """The paper's always, those asked for where they apply, and those that a row needs."""
    assert ROWS["predmi"].attackers(["expmi", "kernel"]) == (["predmi", "kernel"], {"expmi": "it needs an explanation"})
    assert ROWS["gnime"].attackers(["kernel"]) == (["expmi", "kernel"], {})
    assert ROWS["negative"].attackers(DEFAULT_ATTACKERS) == (["predmi", "expmi", "centred", "kernel"], {})
    assert ROWS["rnd"].attackers(ATTACKERS) == (list(ATTACKERS), {})
    names, reasons = ROWS["gnime"].attackers(ATTACKERS)
    assert [*names, *reasons] == list(ATTACKERS) and list(reasons) == ["averaging"]
    assert "draws nothing" in reasons["averaging"], "all answers are the same map"
    assert [row.name for row in ROWS.values() if row.draws] == ["rnd", "ond", "rnd-0", "rnd-4"]


def trials(mse, **beside):
    numbers = {name: {"attacker": "averaging" if "av" in name else "white-box", "mse": errors.mean().item()}
               for name, errors in beside.items()}
    return Result({"beside": numbers}, torch.full((100,), mse), torch.empty(0), None, beside)


def test_attackers_that_know_more_stand_beside_the_verdict():
    """Of the first 60 images the white-box finds half of what was left; the others are as before."""
    def errors(mse, n=60):
        return torch.full((n,), mse) * (1 + 0.1 * torch.linspace(-1, 1, n))

    results = {"predmi": trials(0.08, white=errors(0.07)), "expmi": trials(0.02, white=errors(0.01)),
               "gnime": trials(0.05, white=errors(0.025)), "blank": trials(0.08, white=errors(0.081)),
               "cond-mean": trials(0.08, white=errors(0.07)),  # as much more as from the prediction alone
               "rnd": trials(0.05, av1=errors(0.05, 100), av64=errors(0.02, 100))}
    results["rnd"].errors[60:] = 9.0  # images that the white-box does not see
    (warning,) = compare_beside(results)
    assert warning == ("gnime: the verdict is optimistic: of the first 60 test images white recovers more (MSE 0.0250) than "
                       "the best attacker that knows the data alone (0.0500); residual leakage there is 75%, not 50%")
    found = results["gnime"].numbers["beside"]["white"]
    assert found["n"] == 60 and found["best_mse"] == pytest.approx(0.05)
    assert found["residual_leakage"] == pytest.approx(0.75) and found["residual_leakage_interval"] == pytest.approx([0.75] * 2)
    assert found["gain"][0] < 0.025 < found["gain"][1]
    rnd = results["rnd"].numbers["beside"]  # relative to the best attackers of the other two rows, on all images
    assert rnd["av64"]["residual_leakage"] == pytest.approx(1.0) and rnd["av1"]["residual_leakage"] == pytest.approx(0.5)
    assert rnd["av64"]["n"] == 100 and rnd["av1"]["best_residual_leakage"] == pytest.approx((0.08 - 3.63) / 0.06)
    assert "residual_leakage_interval" not in results["expmi"].numbers["beside"]["white"], "1 by definition"
    alone = {"gnime": trials(0.05, white=errors(0.025))}
    (warning,) = compare_beside(alone)
    assert warning.endswith("(0.0500)") and "residual_leakage" not in alone["gnime"].numbers["beside"]["white"]
