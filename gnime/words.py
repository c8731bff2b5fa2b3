"""Numbers of things, and the difference of two values, in words for messages. Imports nothing heavy."""

from .errors import printable

NAMES = {"pool": "--official gradcam", "official": "--official", "drop_duplicates": "--drop-duplicates", "limit": "--limit",
         "stage": "record of batch and learning rate", "image_size": "image size", "batch_size": "batch", "lr": "learning rate",
         "eps": "epsilon"}  # of keys of a record, where the key is not the word
PARTS = {"stage": ("batch", "learning rate", "betas", "epsilon", "patience"),  # of values that are lists: see their `identity`
         "definition": ("defence", "version", "parameters"), "attacker": ("name", "version"),
         "row": ("name", "defence", "version", "parameters")}


def counted(n: int, noun: str, plural: str = "") -> str:
    """ "1 image", "2 images", and with a plural of its own "2 classes"."""
    return f"{n} {noun if n == 1 else plural or noun + 's'}"


def difference(key: str, found: object, wanted: object) -> str:
    """How two values of a record's key differ: "width 64, this run has 128". Of lists and dictionaries only what differs."""
    if key == "pool":  # one number where it is given
        return f"{NAMES[key]}, this run does not have it" if found else f"no {NAMES[key]}, this run has it"
    pairs = [_by_name(key, value) for value in (found, wanted)]
    if all(isinstance(pair, dict) for pair in pairs):
        had, has = _differing(*pairs, of="" if key in ("stage", "stages") else f"{key} ")
        return f"{had}, this run has {has}"
    had, has = (_in_words(pair) for pair in pairs)
    name = NAMES.get(key, key)
    return f"{f'{name} {had}' if had else f'no {name}'}, this run has {has or 'none'}"


def _by_name(key: str, value: object) -> object:
    """The parts of a list with their names, where they have some."""
    if key in PARTS and isinstance(value, (list, tuple)) and len(value) == len(PARTS[key]):
        return dict(zip(PARTS[key], value, strict=True))
    return value


def _differing(found: dict, wanted: dict, of: str = "") -> tuple[str, str]:
    """What each of two dictionaries has where they differ. of: the key that they themselves have, with a space."""
    had, has = [], []
    for key in dict.fromkeys([*found, *wanted]):
        one, other, name = found.get(key), wanted.get(key), of + NAMES.get(key, key)
        if isinstance(one, dict) and isinstance(other, dict):
            inner = _differing(one, other, f"{name} ")
        else:
            inner = tuple(f"{name} {words}" if (words := _in_words(value)) else f"no {name}" for value in (one, other))
        if one != other:
            had.append(inner[0])
            has.append(inner[1])
    return ", ".join(had), ", ".join(has)


def _in_words(value: object) -> str:
    """A value as text; empty where there is none. A digest is cut."""
    if value is False or value in (None, "", [], (), {}):
        return ""
    if isinstance(value, dict):
        return ", ".join(f"{NAMES.get(key, key)} {_in_words(inner) or 'none'}" for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        text = ", ".join(_in_words(inner) or "none" for inner in value)
        return text if all(isinstance(inner, str) for inner in value) else f"({text})"
    text = str(value)
    return text[:12] if len(text) == 64 else printable(text)
