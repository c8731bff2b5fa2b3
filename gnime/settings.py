"""The settings that are evaluated side by side, as data. Imports nothing heavy: the command line takes its choices here."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Setting:
    """What the attacker of one row of the table sees.

    Attributes:
        defence: name in `defences.DEFENCES`, or None where the explanation is withheld.
        inverters: kinds of attacker that are tried (names in `networks.NETWORKS`); the one with the better validation
            error counts.
        injector: whether the noise injector must have been trained: it protects, or its distortion is matched.
        level: of added noise, in variances of GNIME's distortion.
    """

    name: str
    title: str
    defence: str | None
    inverters: tuple[str, ...] = ("expmi",)
    injector: bool = False
    level: float = 1.0


SETTINGS = {
    setting.name: setting
    for setting in (
        Setting("predmi", "prediction only", None, inverters=("predmi",)),
        Setting("expmi", "undefended", "none"),
        Setting("rnd", "Gaussian noise", "rnd", injector=True),
        Setting("ond", "adversarial noise (ours)", "ond", injector=True),
        Setting("gnime", "GNIME", "gnime", injector=True),
        # controls: noise of no size and of a larger one, two fake defences that hide nothing, and the least that an
        # explanation can say
        Setting("rnd-0", "control: no noise", "rnd", injector=True, level=0.0),
        Setting("rnd-4", "control: Gaussian noise, 4 times the distortion", "rnd", injector=True, level=4.0),
        Setting("negative", "control: 1 - e", "negative", inverters=("expmi", "centred")),
        Setting("permutation", "control: secret pixel permutation", "permutation", inverters=("expmi", "dense")),
        Setting("class-mean", "control: mean explanation of the predicted class", "class-mean"),
        Setting("blank", "control: a blank explanation", "blank"),
    )
}
DEFAULT_SETTINGS = ("predmi", "expmi", "rnd", "gnime")
CONTROLS = ("rnd-0", "rnd-4", "negative", "permutation", "class-mean", "blank")
