"""Questions about micro scenes, with the answer, wrong options and the facts that lead to it.

Twelve families, six spatial and six temporal. A question comes as a choice among lettered options or as yes/no; as a statement it makes the
captions of caption matching. `fact` is the chain of observations the base model is taught to write before a value; it is training data
for the
base and never reaches the self-alignment loop.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from benchmarks.micro.world import world as w
from benchmarks.micro.world.world import Scene, cell, place

Kind = Literal["spatial", "temporal"]
Form = Literal["choice", "yes_no"]

SPATIAL = ("shape", "color", "place", "beside", "above", "count")
TEMPORAL = ("direction", "speed", "order", "event", "becomes", "ends")
FAMILIES = SPATIAL + TEMPORAL
LETTERS = "ABCDE"

VALUES: dict[str, tuple[str, ...]] = {
    "shape": w.SHAPES,
    "color": tuple(w.COLORS),
    "place": w.PLACES,
    "beside": ("left", "right"),
    "above": ("above", "below"),
    "count": w.NUMBERS,
    "direction": w.DIRECTIONS,
    "speed": w.SPEEDS,
    "order": tuple(w.COLORS),
    "event": w.EVENTS,
    "becomes": tuple(w.COLORS),
    "ends": w.PLACES,
}
QUESTIONS = {
    "shape": "what shape is the {0} object ?",
    "color": "what color is the {0} ?",
    "place": "where is the {0} object at the start ?",
    "beside": "is the {0} object left or right of the {1} object ?",
    "above": "is the {0} object above or below the {1} object ?",
    "count": "how many objects are there ?",
    "direction": "which way does the {0} object move ?",
    "speed": "how fast is the {0} object ?",
    "order": "which object comes first ?",
    "event": "what happens to the {0} object ?",
    "becomes": "what color does the {0} object become ?",
    "ends": "where is the {0} object at the end ?",
}
STATEMENTS = {
    "shape": "the {0} object is a {v}",
    "color": "the {0} is {v}",
    "place": "the {0} object starts {v}",
    "beside": "the {0} object is {v} of the {1} object",
    "above": "the {0} object is {v} the {1} object",
    "count": "there are {v} objects",
    "direction": "the {0} object moves {v}",
    "speed": "the {0} object is {v}",
    "order": "the {v} object comes first",
    "event": "the {0} object {v}",
    "becomes": "the {0} object becomes {v}",
    "ends": "the {0} object ends {v}",
}


@dataclass(frozen=True)
class Fact:
    """What is true: the value asked for and the observations that lead to it."""

    family: str
    args: tuple[str, ...]
    value: str
    fact: str


@dataclass(frozen=True)
class Question:
    """A question with its key. `text` has no options in it; `options[answer]` is right (yes/no: options are ("yes", "no")).

    `others` are the wrong values of the family, for captions and more options."""

    text: str
    options: tuple[str, ...]
    answer: int
    family: str
    kind: Kind
    form: Form
    args: tuple[str, ...]
    value: str
    fact: str
    statement: str
    others: tuple[str, ...]

    @property
    def key(self) -> str:
        """The right reply: a letter, or yes/no."""
        return self.options[self.answer] if self.form == "yes_no" else LETTERS[self.answer]

    @property
    def reply(self) -> str:
        """The right reply as the model gives it of itself: the option's words, then its letter ("ring B"); yes/no alone."""
        return self.reply_of(self.answer)

    def reply_of(self, option: int) -> str:
        """The reply that the option at that position is right."""
        return self.options[option] if self.form == "yes_no" else f"{self.options[option]} {LETTERS[option]}"

    def lettered(self) -> str:
        """The question with its options in one line, as the model itself writes questions."""
        if self.form == "yes_no":
            return self.text
        return self.text + "".join(f" {LETTERS[i]} {o}" for i, o in enumerate(self.options))

    def caption(self, value: str) -> str:
        """The statement that `value` is the answer."""
        return STATEMENTS[self.family].format(*self.args, v=value)


def _seen(scene: Scene) -> str:
    order = sorted(scene.things, key=lambda t: (t.first, list(w.COLORS).index(t.color)))
    return "see " + " ".join(t.color for t in order)


def truth(scene: Scene, family: str, args: tuple[str, ...]) -> Fact | None:
    """The right value with its facts, or None where the question does not apply to the scene (no such object, no clear answer)."""
    if family == "count":
        return Fact(family, (), w.NUMBERS[len(scene.things) - 1], _seen(scene))
    if family == "order":
        first = sorted(scene.things, key=lambda t: t.first)
        if len(first) < 2 or first[0].first == first[1].first:
            return None
        return Fact(family, (), first[0].color, " ".join(f"{t.color} comes f{t.first + 1}" for t in first))
    if family == "color":
        same = [t for t in scene.things if t.shape == args[0]]
        return Fact(family, args, same[0].color, f"see {same[0].shape} {same[0].color}") if len(same) == 1 else None
    t = scene.by_color(args[0])
    if t is None:
        return None
    (x0, y0), (x1, y1) = t.start, t.end
    if family == "shape":
        return Fact(family, args, t.shape, f"see {t.color} {t.shape}")
    if family == "place":
        return Fact(family, args, place(x0, y0), f"{t.color} starts x{cell(x0)} y{cell(y0)}")
    if family == "ends":
        return Fact(family, args, place(x1, y1), f"{t.color} ends x{cell(x1)} y{cell(y1)}")
    if family in ("direction", "speed"):
        fact = f"{t.color} goes x{cell(x0)} y{cell(y0)} to x{cell(x1)} y{cell(y1)}"
        return Fact(family, args, t.direction if family == "direction" else t.speed, fact)
    if family in ("event", "becomes"):
        if family == "becomes" and not t.later_color:
            return None
        until = t.change if t.change is not None else t.last + 1
        fact = f"{t.color} seen f{t.first + 1} f{until}" + (f" then {t.later_color}" if t.later_color else "")
        return Fact(family, args, t.event if family == "event" else str(t.later_color), fact)
    other = scene.by_color(args[1])
    if other is None or other is t:
        return None
    a, b = (x0, other.start[0]) if family == "beside" else (y0, other.start[1])
    if abs(a - b) < 9:
        return None
    axis = "x" if family == "beside" else "y"
    return Fact(family, args, VALUES[family][0 if a < b else 1], f"{t.color} starts {axis}{cell(a)} {other.color} starts {axis}{cell(b)}")


def possible_args(scene: Scene, family: str) -> list[tuple[str, ...]]:
    """Every argument tuple a question of this family could have on this scene."""
    colors = [t.color for t in scene.things]
    if family in ("count", "order"):
        return [()]
    if family == "color":
        return [(s,) for s in sorted({t.shape for t in scene.things})]
    if family in ("beside", "above"):
        return [(a, b) for a in colors for b in colors if a != b]
    return [(c,) for c in colors]


def _fact(scene: Scene, rng: random.Random, family: str) -> Fact | None:
    facts = [f for a in possible_args(scene, family) if (f := truth(scene, family, a))]
    if not facts:
        return None
    # Every value as likely as the scene allows: the commonest event would otherwise be right too often.
    values = sorted({f.value for f in facts})
    v = rng.choice(values)
    return rng.choice([f for f in facts if f.value == v])


def make_question(scene: Scene, rng: random.Random, family: str | None, form: Form, n_options: int = 4) -> Question | None:
    """Draw a question of a family (None: any) on a scene; None where the family does not apply or has fewer than 2 values.

    `n_options` is an upper bound: families with fewer values give fewer options. The right option's place is uniform."""
    if family is None:
        apply = [f for f in FAMILIES if any(truth(scene, f, a) for a in possible_args(scene, f))]
        family = rng.choice(apply)
    f = _fact(scene, rng, family)
    if f is None:
        return None
    kind: Kind = "spatial" if family in SPATIAL else "temporal"
    others = tuple(v for v in VALUES[family] if v != f.value)
    if family == "order":  # objects that are there make the harder wrong options
        here = [t.color for t in scene.things if t.color != f.value]
        others = tuple(here) + tuple(v for v in others if v not in here)
    if form == "yes_no":
        yes = rng.random() < 0.5
        stated = f.value if yes else (others[0] if family == "order" else rng.choice(others))
        text = "is it true that " + STATEMENTS[family].format(*f.args, v=stated) + " ?"
        return Question(text, ("yes", "no"), 0 if yes else 1, family, kind, form, f.args, f.value, f.fact, stated, others)
    k = min(n_options, len(others) + 1) - 1
    wrong = list(others[:1]) + rng.sample(others[1:], k - 1) if family == "order" else rng.sample(others, k)
    options = [*wrong, f.value]
    rng.shuffle(options)
    text = QUESTIONS[family].format(*f.args)
    return Question(text, tuple(options), options.index(f.value), family, kind, form, f.args, f.value, f.fact, f.value, others)
