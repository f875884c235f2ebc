"""How an `internvl_chat` checkpoint writes a conversation, and the chat template that writes the same.

The system message and the tags come from the checkpoint's conversation.py, which is parsed and never run, else from the published ones.
"""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from savi.conversion.config import CheckpointError


@dataclass(frozen=True)
class Conversation:
    """How turns are written (the MPT style of the original's conversation.py): tag, text, separator."""

    system_template: str
    """The system turn with its tag; `{system_message}` stands for the message."""
    system_message: str
    user: str
    assistant: str
    separator: str

    @property
    def system(self) -> str:
        """The system turn whole, without its separator."""
        return self.system_template.replace("{system_message}", self.system_message)

    @property
    def end_of_turn(self) -> str:
        """The token that ends a turn."""
        return self.separator.strip()


_INTERNVL2_5 = "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
_INTERNVL2 = "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
_TAGS = ("<|im_start|>user\n", "<|im_start|>assistant\n")
_SYSTEM = "<|im_start|>system\n{system_message}"
KNOWN_CONVERSATIONS = {
    "internvl2_5": Conversation(_SYSTEM, _INTERNVL2_5, *_TAGS, "<|im_end|>\n"),
    "internlm2-chat": Conversation(_SYSTEM, _INTERNVL2, *_TAGS, "<|im_end|>"),
    "Hermes-2": Conversation(_SYSTEM, _INTERNVL2, *_TAGS, "<|im_end|>"),
    "phi3-chat": Conversation("<|system|>\n{system_message}", _INTERNVL2, "<|user|>\n", "<|assistant|>\n", "<|end|>"),
}
"""Used where the checkpoint comes without its conversation.py."""


def read_conversation(folder: Path, name: str, system_message: str | None = None) -> Conversation:
    """The conversation called `name`: from the checkpoint's conversation.py, parsed and never run, else from the known ones.

    `system_message`: config.json's, which the original takes instead of the conversation's own.

    Raises:
        CheckpointError: no such conversation, or one written in a style other than MPT.
    """
    found = _find_conversation(folder, name)
    return found if system_message is None else replace(found, system_message=system_message)


def _find_conversation(folder: Path, name: str) -> Conversation:
    path = folder / "conversation.py"
    if path.is_file():
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, ValueError) as error:
            raise CheckpointError(f"{path}: cannot be parsed ({error})") from error
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Conversation":
                fields = {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
                if "name" in fields and _literal(fields["name"]) == name:
                    return _from_source(path, name, fields)
    if name in KNOWN_CONVERSATIONS:
        return KNOWN_CONVERSATIONS[name]
    known = ", ".join(sorted(KNOWN_CONVERSATIONS))
    raise CheckpointError(f"{folder}: template {name!r} is not known (known: {known}) and {path.name} does not define it")


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def _from_source(path: Path, name: str, fields: dict[str, ast.expr]) -> Conversation:
    style = fields.get("sep_style")
    if not isinstance(style, ast.Attribute) or style.attr != "MPT":
        raise CheckpointError(f"{path}: conversation {name!r} has another style than MPT, the only one supported")
    values = {key: _literal(fields[key]) if key in fields else None for key in ("system_template", "system_message", "roles", "sep")}
    template, message = values["system_template"] or "{system_message}", values["system_message"] or ""
    roles, separator = values["roles"], values["sep"]
    if not isinstance(roles, tuple) or len(roles) != 2 or not isinstance(separator, str):
        raise CheckpointError(f"{path}: conversation {name!r} does not spell out its roles and sep")
    return Conversation(str(template), str(message), str(roles[0]), str(roles[1]), separator)


_END = "\n"
_IMAGE = "<IMG_CONTEXT>" + _END


def chat_template(conversation: Conversation, *, bos: bool, video: str = "") -> str:
    """The jinja template that writes what the original's `get_prompt` writes, after a `bos_token` where its tokenizer adds one.

    A picture or a video becomes the mark that transformers' InternVL processor replaces by frames (`video`: the one for videos). The
    family's system turn stands first unless the caller's messages begin with a system message.
    """

    def quoted(text: str) -> str:
        return json.dumps(text, ensure_ascii=False)

    system_tag = conversation.system.partition("\n")[0] + "\n"
    tags = f"{{'user': {quoted(conversation.user)}, 'assistant': {quoted(conversation.assistant)}, 'system': {quoted(system_tag)}}}"
    return (
        ("{{ bos_token }}" if bos else "")
        + f"{{% set tags = {tags} %}}{{% set sep = {quoted(conversation.separator)} %}}"
        + f"{{% if messages[0]['role'] != 'system' %}}{{{{ {quoted(conversation.system)} + sep }}}}{{% endif %}}"
        + "{% for message in messages %}"
        + "{{ tags[message['role']] }}"
        + "{% if message['content'] is string %}{{ message['content'] }}"
        + "{% else %}{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
        + f"{{% elif part['type'] == 'image' %}}{{{{ {quoted(_IMAGE)} }}}}"
        + f"{{% elif part['type'] == 'video' %}}{{{{ {quoted(video + _END)} }}}}"
        + "{% else %}{{ raise_exception('only text, images and videos') }}{% endif %}{% endfor %}{% endif %}"
        + "{{ sep }}{% endfor %}"
        + "{% if add_generation_prompt %}{{ tags['assistant'] }}{% endif %}"
    )
