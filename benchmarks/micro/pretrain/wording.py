"""The micro model's language: its words, its tokenizer and the turns of its conversations.

A word-level tokenizer over the few hundred words of the micro world. Punctuation that only decorates an option ("(A)", "A.",
"Option:") is dropped, so
that the six tasks' ways of writing a letter are one token; each task's fixed instruction sentence is one token too.
"""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.micro.world import questions as q
from benchmarks.micro.world.world import FRAMES

PAD, BOS, EOS, UNK, IMG, USER, ASSISTANT = "<pad>", "<bos>", "<eos>", "<unk>", "<img>", "<user>", "<assistant>"
SPECIAL = (PAD, BOS, EOS, UNK, IMG, USER, ASSISTANT)
INSTRUCTIONS = (
    "Answer with the option's letter from the given choices directly.",
    "Only give the best option.",
    "Please directly give the best option:",
    "Please answer yes or no:",
    "Which caption matches the video better?",
    "Question:",
    "Option:",
)
"""Fixed sentences of lmms-eval 0.7.3's six tasks, one token each."""
THOUGHT = "</think>"
"""Ends what a reply says before its answer; lmms-eval takes what follows it as the reply."""
CHAT_TEMPLATE = (
    "{{ '<bos>' }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '<user>' + m['content'] }}{% elif m['role'] == 'assistant' %}"
    "{{ '<assistant>' + m['content'] + '<eos>' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


def vocabulary() -> list[str]:
    """Every token, specials first, in a fixed order; what came later stands last, so that older bases' numbers stay."""
    words = {"answer", "critique", "revise", "ask", "spatial", "temporal", "caption", "Caption", "?", "yes", "no", "right", "wrong"}
    words |= {"see", "starts", "ends", "goes", "to", "comes", "seen", "then", "so"}
    for t in (*q.QUESTIONS.values(), *q.STATEMENTS.values(), "is it true that"):
        words |= {x for x in t.split() if "{" not in x}
    for v in q.VALUES.values():
        words |= set(v)
    words |= set(q.LETTERS) | {f"{a}{i}" for a in "xy" for i in range(1, 9)} | {f"f{i}" for i in range(1, FRAMES + 1)}
    words |= {f"Frame{i}" for i in range(1, FRAMES + 1)}
    return [*SPECIAL, *INSTRUCTIONS, *sorted(words), THOUGHT]


def write_tokenizer(folder: Path, image_size: int, image_seq_length: int) -> None:
    """Write tokenizer.json, tokenizer_config.json, chat_template.jinja and preprocessor_config.json into `folder`."""
    from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers

    t = Tokenizer(models.WordLevel({w: i for i, w in enumerate(vocabulary())}, unk_token=UNK))
    t.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s.,:()]+"), "removed")
    t.add_special_tokens([AddedToken(s, normalized=False, special=True) for s in SPECIAL])
    t.add_tokens([AddedToken(s, normalized=False, special=False) for s in INSTRUCTIONS])
    folder.mkdir(parents=True, exist_ok=True)
    t.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "bos_token": BOS,
        "eos_token": EOS,
        "unk_token": UNK,
        "extra_special_tokens": {"context_image_token": IMG},
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1024,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    pre = {
        "size": {"height": image_size, "width": image_size},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "image_seq_length": image_seq_length,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(pre, indent=1) + "\n")


class Words:
    """Words to token numbers and back without a tokenizer object: training's inner loop."""

    def __init__(self) -> None:
        self.vocab = vocabulary()
        self.ids = {w: i for i, w in enumerate(self.vocab)}

    def encode(self, text: str) -> list[int]:
        """Token numbers of words that are separated by blanks; a KeyError names a word that is not in the vocabulary."""
        return [self.ids[w] for w in text.split()]

    def decode(self, ids: list[int]) -> str:
        """Words of token numbers, specials left out."""
        return " ".join(self.vocab[i] for i in ids if i >= len(SPECIAL))
