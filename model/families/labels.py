"""The labels of a classifier: as many as its last weight has rows, under the names that `config.json` has for them."""

from collections import Counter
from typing import Any

from heed.model.families.keys import Json

DEFAULT = 2  # labels, where neither the weights nor the config say how many


def label_names(config: Json, rows: int | None = None) -> tuple[str, ...]:
    """The labels' names in order; LABEL_0, LABEL_1, ... for those that the config does not name.

    Where several have one name, their numbers tell them apart: ImageNet has two kinds of "crane".

    Args:
        config: `id2label` and `num_labels` count. Where they contradict each other `num_labels` wins and no label has a
            name, as in `transformers`, unless there is a name for every row.
        rows: of the head's last weight; None: the config alone says how many there are.

    Raises:
        ValueError: a label's number or name is none.
    """
    names, said = _names(config["id2label"]), _number(config["num_labels"])
    if names and said not in (None, len(names)) and rows != len(names):
        names = {}
    number_of_labels = rows or said or len(names) or DEFAULT
    in_order = [names.get(number, f"LABEL_{number}") for number in range(number_of_labels)]
    times = Counter(in_order)
    return tuple(name if times[name] == 1 else f"{name} ({number})" for number, name in enumerate(in_order))


def labels_note(config: Json, names: tuple[str, ...]) -> str:
    """Where a config names other labels than the head has: what became of them. Empty if it names all or none."""
    named = _names(config["id2label"])
    if not named or (named.keys() == set(range(len(names))) and _number(config["num_labels"]) in (None, len(names))):
        return ""
    said = "" if config["num_labels"] is None else f" and num_labels={config['num_labels']}"
    return (
        f"config.json names {len(named)} labels ({min(named)} to {max(named)}){said}, but the head has {len(names)} "
        f"rows, which decide; the labels are {_shortened(names)}"
    )


def _names(names: Any) -> dict[int, str]:
    if names is None:
        return {}
    if not isinstance(names, dict) or not all(str(number).isdecimal() for number in names):
        raise ValueError(f"config.json: id2label={names!r} is not an object with the labels' names by their numbers")
    for name in names.values():
        if not isinstance(name, str | int | float | None):
            raise ValueError(f"config.json: id2label={names!r} names a label {name!r}")
    return {int(number): str(name) for number, name in names.items() if name is not None}


def _number(value: Any) -> int | None:
    if value is not None and (type(value) is not int or value < 1):
        raise ValueError(f"config.json: num_labels={value!r} is not a positive integer")
    return value


def _shortened(names: tuple[str, ...]) -> str:
    return ", ".join(names if len(names) <= 4 else [*names[:3], "...", names[-1]])
