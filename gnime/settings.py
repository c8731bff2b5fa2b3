"""The settings that are evaluated side by side, as data. Imports nothing heavy: the command line takes its choices from here."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Setting:
    """What the attacker of one row of the table sees.

    Attributes:
        defence: name in `defences.DEFENCES`, or None where the explanation is withheld.
        inverter: name in `networks.INVERTERS`.
        injector: whether the noise injector must have been trained.
    """

    name: str
    title: str
    defence: str | None
    inverter: str = "expmi"
    injector: bool = False


SETTINGS = {
    setting.name: setting
    for setting in (
        Setting("predmi", "prediction only", None, inverter="predmi"),
        Setting("expmi", "undefended", "none"),
        Setting("rnd", "Gaussian noise", "rnd", injector=True),
        Setting("gnime", "GNIME", "gnime", injector=True),
    )
}
DEFAULT_SETTINGS = ("predmi", "expmi", "rnd", "gnime")
