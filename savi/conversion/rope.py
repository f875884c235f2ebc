"""The rotary settings of `llm_config`, which configs of different ages write in three places, as one native `rope_parameters`.

transformers 4 wrote `rope_theta` and `rope_scaling` (`type` or `rope_type`), transformers 5 writes `rope_parameters`. All that are there
are read; where two of them contradict each other, neither is believed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DEFAULT_THETA = 10_000.0
"""Of all five language models: a config that does not say is one that leaves its defaults out."""
_LARGEST = 1e30
_KINDS: dict[str, tuple[str, ...]] = {
    "InternLM2ForCausalLM": ("default", "linear", "dynamic"),
    "Qwen2ForCausalLM": ("default", "linear", "dynamic"),
    "Qwen3ForCausalLM": ("default", "linear", "dynamic"),
    "LlamaForCausalLM": ("default", "linear", "dynamic", "llama3"),
    "Phi3ForCausalLM": ("default", "longrope"),
}
_NEEDS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "longrope": ("short_factor", "long_factor", "original_max_position_embeddings"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
_MAY_HAVE = {"longrope": ("factor", "attention_factor", "partial_rotary_factor")}


class RopeError(ValueError):
    """Rotary settings that contradict each other or that the native class does not compute."""


def rope_parameters(llm_config: Mapping[str, Any], language_model: str) -> dict[str, Any]:
    """Native `rope_parameters` of an `llm_config`.

    Raises:
        RopeError: named, with what the config says.
    """
    said: dict[str, tuple[str, Any]] = {}
    places = [("", {key: llm_config.get(key) for key in ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings")})]
    for place in ("rope_scaling", "rope_parameters"):
        value = llm_config.get(place)
        if value is not None and not isinstance(value, dict):
            raise RopeError(f"{place} is no object")
        places.append((f"{place}.", value or {}))
    for place, values in places:
        for key, value in values.items():
            name, value = _plain(key, value)
            if value is None:
                continue
            if name in said and said[name][1] != value:
                raise RopeError(f"{said[name][0]} is {said[name][1]} but {place}{key} is {value}: which is right?")
            said.setdefault(name, (f"{place}{key}", value))
    found = {name: value for name, (_, value) in said.items()}
    kind = found.pop("rope_type", "default")
    if kind not in _KINDS[language_model]:
        raise RopeError(f"rope type {kind!r} is not supported (supported for {language_model}: {', '.join(_KINDS[language_model])})")
    if missing := [name for name in _NEEDS[kind] if name not in found]:
        raise RopeError(f"rope type {kind!r} needs {', '.join(missing)}")
    if found.get("partial_rotary_factor", 1) != 1 and kind != "longrope":
        raise RopeError(f"partial_rotary_factor {found['partial_rotary_factor']}: not supported")
    if "factor" in found and kind in ("linear", "dynamic") and not (_is_number(found["factor"]) and found["factor"] >= 1):
        raise RopeError(f"{said['factor'][0]} is {found['factor']}; it must be a number of at least 1")
    known = {*_NEEDS[kind], *_MAY_HAVE.get(kind, ())}
    harmless = {"factor"} if kind == "default" else set()
    strange = set(found) - known - harmless - {"rope_theta", "partial_rotary_factor", "original_max_position_embeddings"}
    if strange:
        raise RopeError(f"{said[min(strange)][0]} is not known for rope type {kind!r}")
    theta = found.get("rope_theta", DEFAULT_THETA)
    if not _is_number(theta) or theta <= 0:
        raise RopeError(f"{said['rope_theta'][0]} is {theta!r}; it must be a positive number")
    return {"rope_type": kind, "rope_theta": theta} | {name: found[name] for name in sorted(known & set(found))}


def _is_number(value: Any) -> bool:
    """Neither true, which Python counts as 1, nor one that is not finite or no angle can be computed from."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST


def _plain(key: str, value: Any) -> tuple[str, Any]:
    """One name for a thing that has two."""
    name = "rope_type" if key == "type" else key
    return name, "longrope" if name == "rope_type" and value == "su" else value
