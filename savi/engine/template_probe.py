"""Renders a chat template in a process of its own, since a template may be endless: run as a script, it reads the template from stdin.

It prints how many characters come out, or nothing where rendering fails (which the caller finds out, and says, by itself). Only jinja2 is
needed, so it starts in a tenth of a second; the sandbox is the one that transformers uses.
"""

from __future__ import annotations

import re
import sys
from typing import Any

MEMORY = 1 << 30
"""Bytes of address space; a template that wants more is refused."""

_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


def render(template: str) -> int:
    """The longest of the renderings of a turn as text, as parts, and of a conversation."""
    from jinja2 import ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[ext.loopcontrols])
    environment.globals |= {"raise_exception": _refuse, "strftime_now": str}
    compiled = environment.from_string(re.sub(r"{%-?\s*(?:end)?generation\s*-?%}", "", template))
    parts = [{"type": "video"}, {"type": "text", "text": "What falls?"}]
    longest, failure = -1, None
    for content in ("What falls?", parts, parts[1:]):
        turn = {"role": "user", "content": content}
        for messages in ([turn], [turn, {"role": "assistant", "content": content}]):
            try:
                text = compiled.render(messages=messages, add_generation_prompt=True, **_TOKENS)
            except Exception as error:  # noqa: BLE001 - a template may refuse a form by any error
                failure = error
                continue
            longest = max(longest, len(text))
    if longest < 0 and failure is not None:
        raise failure
    return longest


def _refuse(message: Any = "") -> None:
    raise ValueError(message)


if __name__ == "__main__":
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    try:
        sys.stdout.write(str(render(sys.stdin.buffer.read().decode("utf-8", "surrogatepass"))))
    except MemoryError:
        sys.exit(3)
    except Exception:  # noqa: BLE001 - the caller meets it again and says so
        sys.exit(0)
