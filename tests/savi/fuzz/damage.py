"""Damaged files from whole ones, by a seed: bytes flipped, cut, doubled or replaced, and values of a JSON file changed to odd ones."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1, 7, 10**6, 10**30, -0.5, 1e308, float("nan"), float("inf"), "", "x" * 10_000, "\ud800", "\x1b[2J[red]",
    "../../etc",
    "\u2028", [], {}, [[]], {"a": {"b": None}}, ["<pad>"] * 3, "float12", "<unk>",
)  # fmt: skip


def damage_bytes(data: bytes, rng: random.Random) -> bytes:
    """One to four changes of the bytes."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at, length = rng.randrange(len(out) + 1), rng.choice((1, 2, 8, 64, 1000))
        match rng.randrange(6):
            case 0:
                out = out[:at]
            case 1:
                del out[at : at + length]
            case 2:
                out[at:at] = out[at : at + length]
            case 3:
                out[at : at + length] = rng.randbytes(length)
            case 4:
                out[at:at] = rng.choice((b"\x00", b"\xff\xfe", b"{", b"]", b'"', b"\n", "\u2028".encode()))
            case _:
                if at < len(out):
                    out[at] ^= 1 << rng.randrange(8)
        if not out:
            break
    return bytes(out)


def damage_json(data: bytes, rng: random.Random) -> bytes:
    """One to three values, anywhere in the file, replaced, removed or added."""
    value = json.loads(data)
    for _ in range(rng.randint(1, 3)):
        places = list(_places(value))
        if not places:
            break
        container, key = rng.choice(places)
        if isinstance(container, dict) and rng.random() < 0.2:
            container.pop(key)
        elif isinstance(container, dict) and rng.random() < 0.1:
            container[rng.choice(("", "auto_map", "\x1b[31m", "quantization_config"))] = rng.choice(ODD)
        else:
            container[key] = rng.choice(ODD)
    return json.dumps(value).encode("utf-8")


def _places(value: Any) -> Any:
    if isinstance(value, dict):
        for key, inner in list(value.items()):
            yield value, key
            yield from _places(inner)
    elif isinstance(value, list):
        for index, inner in enumerate(value[:50]):
            yield value, index
            yield from _places(inner)


def damage_template(data: bytes, rng: random.Random) -> bytes:
    """A chat template with something hostile in it, or damaged bytes."""
    hostile = (
        "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}", "{{ 'x' * 10**10 }}", "{{ 2**(10**9) }}",
        "{{ ''.__class__.__mro__ }}", "{{ 1/0 }}", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "{% include '/etc/passwd' %}",
        "{{ raise_exception('no') }}", "{{ messages[9].content }}", "{% if %}", "{{ range(10**9)|list }}", "{{ lipsum(n=1000) }}",
        "\x1b[2J",
    )  # fmt: skip
    if rng.random() < 0.1:
        at = rng.randrange(len(data))
        return data[:at] + rng.choice(hostile).encode() + data[at:]
    return damage_bytes(data, rng)


Damage = Callable[[bytes, random.Random], bytes]


def damage_either(data: bytes, rng: random.Random) -> bytes:
    """A JSON file, damaged in its values or in its bytes."""
    return (damage_json if rng.random() < 0.6 else damage_bytes)(data, rng)
