"""Rotary positions as a `config.json` describes them: `rope_parameters`, in earlier folders `rope_theta` and
`rope_scaling`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from heed.model.families.keys import Json

KEYS: Json = {"rope_parameters": None, "rope_scaling": None, "rope_theta": None}

# Scaling that changes nothing for rows of up to `max_position_embeddings`, and longer ones are not taken: how fast it
# turns depends on the longest row of a batch.
UNSCALED = ("default", "dynamic")


@dataclass(frozen=True)
class Rotary:
    """What `AttentionConfig` calls `rotary_base` and `rotary_factor`."""

    base: float
    factor: float = 1.0


def read_rotary(config: Json, default_base: float) -> Rotary:
    """
    Args:
        config: what `Keys.read` makes of a config, with `KEYS` among the optional ones.
        default_base: what the family means where the config names none.

    Raises:
        ValueError: the positions are of another kind than those of Su et al. (2021), or not to be computed.
    """
    name = "rope_parameters" if config["rope_parameters"] else "rope_scaling"
    said = config[name] or {}
    if not isinstance(said, dict):
        raise ValueError(f"config.json: {name}={said!r} is not an object")
    kind = said.get("rope_type", said.get("type", "default"))
    known = {"rope_type", "type", "rope_theta"} | ({"factor"} if kind in ("dynamic", "ntk") else set())
    if kind not in (*UNSCALED, "ntk") or any(said[key] is not None for key in said.keys() - known):
        raise ValueError(
            f"config.json: {name}={said!r} is not supported, only rope_type 'default', 'dynamic' with a factor (rows "
            "of up to max_position_embeddings) and 'ntk' with a factor"
        )
    base = said.get("rope_theta", default_base if config["rope_theta"] is None else config["rope_theta"])
    factor = said.get("factor", 1.0) if kind == "ntk" else 1.0
    return Rotary(positive(base, "the rotary base"), positive(factor, f"the factor of {name}"))


def base_of_kind(config: Json, kind: str, kinds: Mapping[str, str]) -> float:
    """The rotary base of a kind of layer, where each kind has its own.

    Args:
        kinds: every kind, and the key that held its base before there were `rope_parameters`.

    Raises:
        ValueError: the rotary positions are of another kind than those of Su et al. (2021).
    """
    by_kind = config["rope_parameters"] or {}
    if not isinstance(by_kind, dict) or not by_kind.keys() <= kinds.keys():
        raise ValueError(f"config.json: rope_parameters={by_kind!r} is not supported, only one of each of {[*kinds]}")
    parameters: dict[str, Any] = by_kind.get(kind) or {}
    if parameters.get("rope_type", "default") != "default" or not parameters.keys() <= {"rope_type", "rope_theta"}:
        raise ValueError(f"config.json: rope_parameters={by_kind!r} is not supported, only rope_type='default'")
    return positive(parameters.get("rope_theta", config[kinds[kind]]), f"the rotary base of {kind}")


def positive(value: Any, what: str) -> float:
    """
    Raises:
        ValueError: it is no positive number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise ValueError(f"config.json: {what} is {value!r}, not a positive number")
    return value
