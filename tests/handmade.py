"""Rows of results.json by hand."""

from gnime.registry import find_row, title


def row(name, leak, kept, spread=0.05, attacker="kernel", **more):
    """A row of results.json: its residual leakage and usefulness, both with an interval of 2 * spread and 0.02."""
    numbers = {"title": title(find_row(name)), "bits": find_row(name).bits, "residual_leakage": leak, "mse": 0.1,
               "best": {"attacker": attacker, "mse": 0.1, "ssim": 0.5}, "not_applicable": {},
               "attackers": {"expmi": {"mse": 0.2, "validation": 0.2}, "kernel": {"mse": 0.1, "validation": 0.1}}}
    if kept is not None:
        numbers |= {"pearson": kept, "pearson_interval": [kept - 0.01, kept + 0.01]}
    if leak is not None and name not in ("predmi", "expmi"):
        numbers["residual_leakage_interval"] = [leak - spread, leak + spread]
    return numbers | more


def content(warnings=(), networks=None, **rows):
    rows = {name.replace("_", "-"): row(name.replace("_", "-"), *numbers) for name, numbers in rows.items()}
    rows = {"predmi": row("predmi", 0.0, None), "expmi": row("expmi", 1.0, 1.0)} | rows
    return {"settings": rows, "warnings": list(warnings), "networks": networks or {},
            "configuration": {"stages": {"inverter": {"epochs": 150}}}}
