"""Rows by number, and the verdict by hand."""

import pytest
import torch
from handmade import content, row

from gnime.cli import resolve
from gnime.comparison import compare
from gnime.defences import DefenceInputs
from gnime.defences.noise import rnd
from gnime.evaluate import Result
from gnime.registry import find_row, in_order, injector_weights, title
from gnime.report.html import judged
from gnime.report.points import points
from gnime.report.verdict import judge

# --- rows by number --------------------------------------------------------------------------------------------------


def test_rows_of_a_weight_or_a_distortion():
    noise, weighted = find_row("rnd@0.02"), find_row("gnime@100")
    assert (noise.needs, noise.parameters, title(noise)) == ((), {"distortion": 0.02}, "Gaussian noise, D = 0.02")
    assert (weighted.needs, weighted.parameters, title(weighted)) == (("injector",), {"weight": 100.0}, "GNIME, A = 100")
    assert find_row("rnd").identity() == ["rnd", 1, {}] and find_row("gnime").identity() == ["gnime", 1, {}], "the paper's"
    for wrong in ("gnime@", "gnime@010", "gnime@1.0", "gnime@1e3", "gnime@-1", "rnd@.5", "rnd-2", "gnime-3", "ond@2"):
        with pytest.raises(ValueError, match="is none of"):
            find_row(wrong)
    assert in_order(["gnime@1000", "rnd-4", "gnime@30", "cond-mean", "gnime", "rnd@0.5", "rnd"]) == [
        "rnd", "rnd@0.5", "gnime", "gnime@30", "gnime@1000", "cond-mean", "rnd-4"]
    assert injector_weights(["rnd", "gnime@30", "cond-mean", "rnd@0.1", "gnime@300"], 300.0) == (300.0, 30.0)


def test_noise_of_a_distortion():
    e = torch.rand(200, 1, 8, 8)
    shown = rnd(DefenceInputs(0), distortion=0.03)(e, None, None, range(200))
    assert (shown - e).square().mean().item() == pytest.approx(0.03, rel=0.05)


def test_weights_on_the_command_line():
    run = resolve("train", ["--weight", "30", "300", "1000", "30"])
    assert run.weights == (30, 300, 1000) and run.command("train").endswith("--weight 30 300 1000")
    assert run.command("eval").endswith("--settings predmi expmi rnd gnime gnime@30 gnime@1000")
    assert "--weight" not in resolve("train", []).command("train") and "--weight" not in resolve("eval", []).command("train")
    wanted = resolve("eval", ["--settings", "gnime@30", "rnd"]).command("train")
    assert wanted.endswith("--weight 30 300")


# --- the verdict, by hand --------------------------------------------------------------------------------------------


def test_the_sentence():
    found = judge(content(gnime=(0.38, 0.84)))
    assert found.sentence == ("GNIME leaves 38 % [33, 43] of the leak to the best of 2 attackers, and its maps correlate by "
                              "0.84 with the true ones")
    beside = judge(content(gnime=(0.38, 0.84), cond_mean=(0.0, 0.85))).sentence
    assert beside.endswith("0.84 with the true ones, which is no more than maps made from the prediction alone do (0.85)")
    near = judge(content(gnime=(0.38, 0.86), cond_mean=(0.0, 0.85))).sentence
    assert near.endswith("0.86 with the true ones, which is no more than maps made from the prediction alone do (0.85), as "
                         "far as these images can tell")
    above = judge(content(gnime=(0.38, 0.99), cond_mean=(0.0, 0.85))).sentence
    assert above.endswith("0.99 with the true ones, more than maps made from the prediction alone (0.85)")
    unknown = content(gnime=(None, 0.84))
    assert judge(unknown).sentence == ("Nothing can be said of GNIME: the undefended maps help the attackers too little to "
                                       "measure a leak")
    unsure = content(gnime=(0.4, 0.84))
    unsure["settings"]["gnime"]["residual_leakage_interval"] = None
    assert judge(unsure).sentence == judge(unknown).sentence
    impossible = judge(content(gnime=(2.5, 0.84)))
    assert impossible.lines()[0] == ("verdict: Nothing can be said of GNIME: its residual leakage would be 250 %, which no "
                                     "leak can be: its attackers have not converged; train longer.")
    starts, relative = "Nothing can be said of GNIME: the ", ", to which every leak is relative, "
    del unknown["settings"]["predmi"]
    assert judge(unknown).sentence == f"{starts}row predmi{relative}is not measured; add it to --settings"
    del unknown["settings"]["expmi"]
    assert judge(unknown).sentence == f"{starts}rows predmi and expmi{relative}are not measured; add them to --settings"
    unknown["configuration"]["settings"] = ["predmi", "expmi", "gnime"]
    assert judge(unknown).sentence == f"{starts}rows predmi and expmi{relative}are not finished; run the same command again"
    assert judge(unknown).reason.startswith("nothing yet, because no leak is known without predmi and expmi. Not measured")
    assert judged(points(unknown)["gnime"], judge(unknown)) == "not known"


def test_a_leak_that_is_told_as_0_is_none():
    for low, safe in ((0.004, True), (0.006, False)):
        given = content(prototypes_16=(0.02, 0.9), gnime=(0.4, 0.95))
        given["settings"]["prototypes-16"]["residual_leakage_interval"] = [low, 0.04]
        assert (judge(given).publish == "prototypes-16") == safe


def test_maps_that_the_attacker_ignored_are_named():
    given = content(prototypes_16=(0.0, 0.9))
    assert "made no use" not in judge(given).sentence + judge(given).reason
    given["settings"]["prototypes-16"]["residual_leakage_interval"] = [1e-9, 7e-8]
    assert "attackers, which made no use of its maps, and" in judge(given).sentence
    assert "because the best attacker made no use of its maps" in judge(given).reason


def test_what_is_dominated():
    """Better in one beyond both intervals, and no worse in the other beyond them; controls and the undefended row stay out."""
    found = judge(content(rnd=(0.60, 0.90), gnime=(0.40, 0.84), cond_mean=(0.02, 0.95), prototypes_4=(0.05, 0.945),
                          class_mean=(0.0, 0.99)))
    assert found.dominated == {"rnd": ["cond-mean", "prototypes-4"], "gnime": ["cond-mean", "prototypes-4"]}
    frontier = judge(content(rnd=(0.60, 0.95), gnime=(0.40, 0.90), cond_mean=(0.02, 0.85)))
    assert frontier.dominated == {}, "each keeps more where it leaks more"
    near = judge(content(gnime=(0.40, 0.84), cond_prototypes_8=(0.44, 0.95)))
    assert near.dominated == {"gnime": ["cond-prototypes-8"]}, "leaks that cannot be told apart"
    assert "leaks no more, as far as these images can tell (44 % [39, 49]), and keeps" in near.advice[0].text
    assert judge(content(gnime=(0.40, 0.84), cond_prototypes_8=(0.44, 0.855))).dominated == {}, "touching intervals"
    warned = judge(content(["prototypes-4: its attacker has not converged"], gnime=(0.4, 0.84), prototypes_4=(0.0, 0.95)))
    assert warned.dominated == {}, "a row that cannot be trusted dominates none"


def test_the_less_noisy_row_whose_attacker_failed_is_not_published():
    """The attacker of rnd@0.01 recovers less than that of ten times the noise: it is the one that has not converged."""
    results = {name: Result({"mse": mse, "mse_interval": [mse, mse], "distortion": noise}, torch.full((100,), mse),
                            torch.empty(0), None)
               for name, mse, noise in (("rnd@0.01", 0.09, 0.01), ("rnd@0.2", 0.05, 0.2))}
    (warning,) = compare(results)
    found = content([warning])
    found["settings"] |= {"rnd@0.01": row("rnd@0.01", 0.0, 0.8), "rnd@0.2": row("rnd@0.2", 0.3, 0.7)}
    assert judge(found).publish != "rnd@0.01"
    untold = content()
    untold["settings"] = found["settings"]
    assert judge(untold).publish == "rnd@0.01", "without the warning it would be"


def test_wide_intervals_of_few_images_prove_nothing():
    found = content()
    found["settings"]["rnd@0.1"] = row("rnd@0.1", 0.36, 0.9, spread=0.5)
    assert judge(found).publish == "predmi", "36 % of the leak, though the interval reaches 0"
    found["settings"]["rnd@0.1"] = row("rnd@0.1", 0.05, 0.9, spread=0.5)
    assert judge(found).publish == "rnd@0.1"


def test_a_map_of_no_bits_is_not_dominated_by_one_that_leaks_less():
    found = judge(content(cond_mean=(0.2, 0.93), prototypes_4=(0.0, 0.93), gnime=(0.4, 0.93)))
    assert found.dominated == {"gnime": ["cond-mean", "prototypes-4"]}
    more = judge(content(cond_mean=(0.2, 0.9), prototypes_4=(0.2, 0.93)))
    assert more.dominated == {"cond-mean": ["prototypes-4"]}, "which keeps more"


def test_what_to_publish():
    several = judge(content(gnime=(0.4, 0.84), cond_mean=(0.02, 0.93), prototypes_4=(0.04, 0.94),
                            cond_prototypes_8=(0.2, 0.97)))
    assert several.publish == "prototypes-4" and "Pearson 0.94" in several.reason
    assert several.reason.endswith("more than 2 bits about an image from its map, beyond the prediction.")
    none = judge(content(rnd=(0.60, 0.90), gnime=(0.40, 0.84)))
    assert none.publish == "predmi" and "The least is gnime (GNIME): kernel ridge regression gets 40 % [35, 45]" in none.reason
    assert "Not measured here, and bounded: cond-mean and prototypes-16" in none.reason
    floor = judge(content(["cond-mean: its maps add nothing to the prediction, but"], gnime=(0.4, 0.84), cond_mean=(0.1, 0.93)))
    assert floor.publish == "cond-mean", "no attacker can gain by what follows from the prediction"
    either = judge(content(gnime=(0.4, 0.84), cond_mean=(0.1, 0.93), prototypes_16=(0.0, 0.92)))
    assert either.reason == floor.reason + (
        " In the maps of prototypes-16 no leak was found either, but they may say more than the prediction.")
    worthless = judge(content(gnime=(0.0, -0.59), prototypes_4=(0.0, 0.01)))  # both intervals reach below 0
    assert worthless.publish == "predmi" and worthless.reason.endswith(
        "In the maps of prototypes-4 the attackers found no more than in the prediction, but these maps do not correlate with "
        "the true ones (0.01).")
    assert judge(content(gnime=(0.0, 0.02))).publish == "gnime"
    stronger = content(gnime=(0.0, 0.84))
    stronger["settings"]["gnime"]["beside"] = {"white-box": {"attacker": "white-box", "residual_leakage": 0.5,
                                                                 "residual_leakage_interval": [0.4, 0.6]}}
    stronger["warnings"] = ["gnime: the verdict is optimistic: of the first 60 test images white-box recovers more"]
    found = judge(stronger)
    assert "of 2 attackers (50 % [40, 60] to white-box), and" in found.sentence
    assert found.publish == "predmi" and "white-box gets 50 % [40, 60]" in found.advice[0].text


def test_what_to_do():
    networks = {"rnd": {"early": False, "epochs": 150, "best_epoch": 150},
                "gnime": {"early": True, "epochs": 90, "best_epoch": 80}}
    found = judge(content(["gnime: it has not converged"], networks, rnd=(0.6, 0.9), gnime=(0.4, 0.84), cond_mean=(0.0, 0.93)))
    advice = {(advice.kind, *advice.rows): advice.text for advice in found.advice}
    assert list(advice) == [("unsound", "gnime"), ("unsound", "rnd"), ("dominated", "rnd"), ("dominated", "gnime")]
    assert advice["unsound", "rnd"].endswith("train it longer: eval.py --epochs 300")
    assert "kernel ridge regression gets 60 % [55, 65] of the leak" in advice["dominated", "rnd"]
    assert advice["dominated", "gnime"].endswith("keeps no less (0.93 against 0.84): take cond-mean")
    (alone,) = judge(content(gnime=(0.4, 0.84))).advice
    assert alone.kind == "unsafe" and "train.py --weight A" in alone.text

def averaged(leak, low, high):
    return {"averaging 64": {"attacker": "averaging", "residual_leakage": leak, "residual_leakage_interval": [low, high]}}


def test_attackers_that_know_more_count_where_rows_are_compared():
    found = content(gnime=(0.4, 0.84))
    found["settings"]["rnd@0.3"] = row("rnd@0.3", 0.0, 0.9, beside=averaged(0.72, 0.65, 0.77))
    verdict = judge(found)
    assert verdict.dominated == {}, "GNIME leaks less, and keeps less"
    assert verdict.publish == "predmi" and "The least is gnime" in verdict.reason
    found["settings"]["gnime"] = row("gnime", 0.4, 0.95)
    verdict = judge(found)
    told = {advice.kind: advice.text for advice in verdict.advice}
    assert verdict.dominated == {"rnd@0.3": ["gnime"]} and "gnime leaks no more (40 % [35, 45])" in told["dominated"]
    found["settings"]["gnime"]["beside"] = averaged(0.9, 0.8, 0.95)
    assert judge(found).dominated == {}, "gnime keeps more, but leaks more"
    assert ("The least is rnd@0.3 (Gaussian noise, D = 0.3): kernel ridge regression gets 0 % [-5, 5] of the leak, and "
            "averaging 64 gets 72 % [65, 77].") in judge(found).reason


def test_nothing_that_cannot_be_ruled_out_is_not_told():
    unused = content()
    unused["settings"]["prototypes-4"] = row("prototypes-4", 0.0, 0.9, spread=0.0)
    reason = judge(unused).reason
    assert "0 % [0, 0], because the best attacker made no use of its maps. No attacker can learn more than 2 bits" in reason
    assert "so 5 % cannot be ruled out. No attacker" in judge(content(prototypes_4=(0.0, 0.9))).reason


def test_a_warning_of_any_attacker_that_knows_more_is_in_its_number():
    found = content(["rnd: of the first 60 test images white-box recovers more"], rnd=(0.3, 0.9))
    found["settings"]["rnd"]["beside"] = averaged(0.72, 0.65, 0.77) | {
        "white-box": {"attacker": "white-box", "residual_leakage": 0.5, "residual_leakage_interval": [0.4, 0.6]}}
    assert points(found)["rnd"].sound and not any(advice.kind == "unsound" for advice in judge(found).advice)


def test_a_leak_beside_that_cannot_be_given_as_a_share_bars_a_row():
    """White-box recovers more from the row than from undefended maps."""
    found = content(["gnime: the verdict is optimistic: white-box recovers more"], gnime=(0.01, 0.84))
    found["settings"]["gnime"]["beside"] = {
        "white-box": {"attacker": "white-box", "residual_leakage": 1.4, "residual_leakage_interval": [1.2, 1.6]}}
    assert judge(found).publish is None and not points(found)["gnime"].sound


def test_a_leak_that_one_attacker_has_proved_counts_though_another_has_not_converged():
    leaky = content(["gnime: the paper's attacker does worse: it has not converged"], gnime=(0.9, 0.84))
    assert judge(leaky).publish == "predmi" and "Every defended row leaks" in judge(leaky).reason
    leaky["settings"]["rnd"] = row("rnd", 0.02, 0.9)
    leaky["warnings"].append("rnd: its attacker has not converged")
    assert judge(leaky).publish == "predmi" and "Every defended row whose numbers hold leaks" in judge(leaky).reason
    del leaky["settings"]["gnime"]
    assert judge(leaky).publish is None and "no defence has numbers that hold" in judge(leaky).reason


def test_where_undefended_maps_hardly_help_nothing_is_advised_that_changes_nothing():
    found = judge(content(gnime=(None, 0.84), cond_mean=(None, 0.9)))
    assert found.publish is None and found.reason == (
        "nothing yet, because the undefended maps help the attackers too little to measure a leak. More images may show one.")


def test_what_an_attacker_of_the_ends_that_still_learns_means():
    learning = {"early": False, "epochs": 150, "best_epoch": 150}
    found = judge(content((), {"predmi": learning, "gnime": learning}, gnime=(0.4, 0.84)))
    of_row, of_ends = (advice.text for advice in found.advice if advice.kind == "unsound")
    assert of_row.startswith("gnime: the paper's") and "the row leaks more" in of_row
    assert of_ends.startswith("predmi: the paper's") and "the other rows' leakage is smaller" in of_ends
    assert found.publish == "predmi" and "see below" not in found.reason
