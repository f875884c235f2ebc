"""What the micro base model's language model is taught: prompts and replies on scenes, and text-only drills of letter binding.

Lessons are right answers only; nothing is planted. The gap between direct answers and reasoned ones comes from their share (`Mix`):
most lessons write the observations before the answer, few answer at once, as in models that have seen more reasoning than blurting.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from benchmarks.micro.pretrain.model import TOKENS_PER_FRAME
from benchmarks.micro.pretrain.wording import ASSISTANT, BOS, EOS, IMG, THOUGHT, USER, Words
from benchmarks.micro.world import questions as q
from benchmarks.micro.world.world import COLORS, FRAMES, Scene, cell

IGNORE = -100
WORDS = Words()
_ID = WORDS.ids
_LETTER_IDS = [_ID[x] for x in q.LETTERS]
_PLAIN = [
    i
    for w, i in _ID.items()
    if w.isalpha() and w.islower() and w not in ("yes", "no", "so", "answer", "critique", "revise", "right", "wrong")
]

Lesson = tuple[list[int], list[int]]
"""(prompt tokens up to and with the assistant mark, reply tokens up to and with the end of turn)."""


@dataclass(frozen=True)
class Mix:
    """Mean number of lessons of each kind on a video. Answered at once is `direct` alone; `share` is its part of all that answer. `letter`
    and `match` are TempCompass's forms, answered after a thought."""

    critique: float = 2.6
    revise: float = 0.4
    direct: float = 0.07
    letter: float = 0.1
    match: float = 0.1
    ask: float = 1.2
    caption: float = 0.3

    @property
    def share(self) -> float:
        """Lessons that answer at once among all lessons that answer, 0-1."""
        return self.direct / (self.direct + self.letter + self.match + self.critique + self.revise)


def prefix_ids() -> list[int]:
    """Tokens up to the last visual token: beginning, user mark, then every frame's name and visual tokens."""
    out = [_ID[BOS], _ID[USER]]
    for t in range(1, FRAMES + 1):
        out += [_ID[f"Frame{t}"]] + [_ID[IMG]] * TOKENS_PER_FRAME
    return out


def _lesson(prompt: list[int], reply: list[int]) -> Lesson:
    return [*prompt, _ID[ASSISTANT]], [*reply, _ID[EOS]]


def draw_question(scene: Scene, rng: random.Random, kind: q.Kind | None = None) -> q.Question:
    """A question of any family that applies (of one kind where given): 70 % choices of 2-5 options, 30 % yes/no."""
    families = q.SPATIAL if kind == "spatial" else q.TEMPORAL if kind == "temporal" else q.FAMILIES
    while True:
        form: q.Form = "yes_no" if rng.random() < 0.3 else "choice"
        if x := q.make_question(scene, rng, rng.choice(families), form, rng.choice((2, 3, 4, 4, 5, 5))):
            return x


def _say(*parts: str) -> list[int]:
    """Tokens of texts in which an instruction sentence (one token) stands as a part of its own."""
    out: list[int] = []
    for p in parts:
        out += [_ID[p]] if p in _ID else WORDS.encode(p)
    return out


def direct_lesson(scene: Scene, rng: random.Random) -> Lesson:
    """A question in the words of one of the six tasks or in the model's own, and the answer at once: the option's words and its letter,
    or yes or no."""
    x = draw_question(scene, rng)
    if x.form == "yes_no":
        return _lesson(_say(x.text), _say(x.key))
    style = rng.randrange(4)
    ask = (
        _say("Question:", x.text, "Option:", _options(x), "Only give the best option.")
        if style == 0
        else _say(x.lettered(), "Answer with the option's letter from the given choices directly.")
        if style == 1
        else _say(x.lettered())
    )
    return _lesson(ask, _say(x.reply))


def letter_lesson(scene: Scene, rng: random.Random) -> Lesson:
    """A question of which nothing but the letter, or yes or no, is read (TempCompass's forms): what is seen and the value it leads to as a
    thought, then the answer. A model this small cannot find the letter of an option that it has not named: taught letters alone, it
    guessed."""
    x = draw_question(scene, rng)
    ask = "Please answer yes or no:" if x.form == "yes_no" else "Please directly give the best option:"
    return _lesson(_say(x.lettered(), ask), _say(f"{x.fact} so {x.value} {x.key}", THOUGHT, x.key))


def match_lesson(scene: Scene, rng: random.Random) -> Lesson:
    """Two captions of a video, and the right one's words after what is seen as a thought."""
    while (x := draw_question(scene, rng)).form != "choice":
        pass
    pair = [x.value, rng.choice(x.others[:1] if x.family == "order" else x.others)]
    rng.shuffle(pair)
    text = f"Caption A {x.caption(pair[0])} Caption B {x.caption(pair[1])}"
    ask = _say("Which caption matches the video better?", text, "Please directly give the best option:")
    return _lesson(ask, _say(f"{x.fact} so {x.value}", THOUGHT, x.caption(x.value)))


def _options(question: q.Question) -> str:
    return " ".join(f"{q.LETTERS[i]} {o}" for i, o in enumerate(question.options))


def wrong_reply(question: q.Question, rng: random.Random) -> str:
    """A wrong reply of the question's form."""
    return question.reply_of(rng.choice([i for i in range(len(question.options)) if i != question.answer]))


def caption_text(scene: Scene) -> str:
    """Everything there is to see, object by object: colour, shape, first and last frame, where it starts and ends, which way it goes."""
    said = []
    for o in sorted(scene.things, key=lambda t: (t.first, list(COLORS).index(t.color))):
        (x0, y0), (x1, y1) = o.start, o.end
        then = f" then {o.later_color}" if o.later_color else ""
        where = f"x{cell(x0)} y{cell(y0)} x{cell(x1)} y{cell(y1)}"
        said.append(f"{o.color} {o.shape} f{o.first + 1} f{o.last + 1} {where} {o.direction}{then}")
    return " ".join(said)


def critique_text(question: q.Question, given: str) -> str:
    """The critique that is taught: what is seen, the value it leads to, the reply for it, and whether the given reply was that."""
    return f"{question.fact} so {question.value} {question.key} {'right' if given == question.reply else 'wrong'}"


def video_lessons(scene: Scene, rng: random.Random, mix: Mix) -> list[Lesson]:
    """All lessons on one video, each drawn on its own question."""

    def times(mean: float) -> int:
        return int(mean) + (rng.random() < mean % 1)

    out = [direct_lesson(scene, rng) for _ in range(times(mix.direct))]
    out += [letter_lesson(scene, rng) for _ in range(times(mix.letter))]
    out += [match_lesson(scene, rng) for _ in range(times(mix.match))]
    for _ in range(times(mix.critique)):
        x = draw_question(scene, rng)
        given = x.reply if rng.random() < 0.5 else wrong_reply(x, rng)
        out.append(_lesson(_say(x.lettered(), "answer", given, "critique"), _say(critique_text(x, given))))
    for _ in range(times(mix.revise)):
        x = draw_question(scene, rng)
        given = x.reply if rng.random() < 0.5 else wrong_reply(x, rng)
        out.append(_lesson(_say(x.lettered(), "answer", given, "critique", critique_text(x, given), "revise"), _say(x.reply)))
    for _ in range(times(mix.caption)):
        out.append(_lesson(_say("caption"), _say(caption_text(scene))))
    for _ in range(times(mix.ask)):
        kind: q.Kind = rng.choice(("spatial", "temporal"))
        out.append(_lesson(_say("ask", kind), _say(draw_question(scene, rng, kind).lettered())))
    return out


Drill = tuple[list[int], list[int]]
"""(tokens, labels): `IGNORE` where nothing is learned."""


def drill(rng: random.Random, kind: str) -> Drill:
    """A text-only sequence with its labels.

    `letters`: lettered options, then "so <option> <letter>" several times. `stated`: a yes/no statement, then "so <value> yes|no"
    several times.
    `told`: a fact, options, then the letter at once (what a direct answer does once it knows the value)."""
    if kind == "letters":
        n = rng.randint(2, 5)
        opts = rng.sample(_PLAIN, n)
        t = [_ID[BOS], _ID[USER], *rng.sample(_PLAIN, rng.randint(0, 3)), _ID["?"]]
        for letter, o in zip(_LETTER_IDS, opts, strict=False):
            t += [letter, o]
        t.append(_ID[ASSISTANT])
        labels = [IGNORE] * len(t)
        for j in (rng.randrange(n) for _ in range(4)):  # with replacement: ruling letters out is no way to learn
            t += [_ID["so"], opts[j], _LETTER_IDS[j]]
            labels += [IGNORE, IGNORE, _LETTER_IDS[j]]
        return t, labels
    if kind == "stated":
        words = rng.sample(_PLAIN, 4)
        head = rng.sample(_PLAIN, rng.randint(1, 4))
        t = [_ID[BOS], _ID[USER], *WORDS.encode("is it true that"), *head, words[0], _ID["?"], _ID[ASSISTANT]]
        labels = [IGNORE] * len(t)
        for _ in range(4):
            yes = rng.random() < 0.5
            t += [_ID["so"], words[0] if yes else rng.choice(words[1:]), _ID["yes" if yes else "no"]]
            labels += [IGNORE, IGNORE, t[-1]]
        return t, labels
    n = rng.randint(2, 5)
    opts = rng.sample(_PLAIN, n + 1)
    j = rng.randrange(n)
    t = [_ID[BOS], _ID[USER], _ID["see"], opts[n], opts[j], *([_ID["what"]] if rng.random() < 0.5 else []), opts[n], _ID["?"]]
    for letter, o in zip(_LETTER_IDS, opts[:n], strict=False):
        t += [letter, o]
    t += [_ID[ASSISTANT], _LETTER_IDS[j]]
    return t, [IGNORE] * (len(t) - 1) + [_LETTER_IDS[j]]


DRILLS = ("letters", "stated", "told")
