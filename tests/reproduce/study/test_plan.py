"""What a study runs: bases, seeds, variants, their settings and commands; and the freezing file."""

from __future__ import annotations

import subprocess
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

from benchmarks.micro.pretrain import recipe as recipe_module
from reproduce.paper.experiment import shipped_base
from reproduce.scale import load_scale, read_settings
from reproduce.study import plan as plan_module
from reproduce.study.claims import CLAIMS
from reproduce.study.frozen import Chosen, check_frozen, differing, freeze, read_frozen
from reproduce.study.plan import Plan, frozen_settings, read_bases, read_variants
from reproduce.study.variants import METHOD, VARIANTS
from savi.base.digests import sha256_file
from savi.base.errors import SaviError, UsageError

ALL = tuple(VARIANTS)


def folder(path: Path, content: bytes = b"weights") -> Path:
    path.mkdir(parents=True)
    (path / "model.safetensors").write_bytes(content)
    return path


def test_how_many_bases_are_the_recipes_first_seeds(tmp_path: Path) -> None:
    bases = read_bases("3", "2", tmp_path)
    assert [(b.name, b.path, b.recipe, b.seeds) for b in bases] == [
        ("recipe-1", tmp_path / "seed-1", 1, (100, 101)),
        ("recipe-2", tmp_path / "seed-2", 2, (200, 201)),
        ("recipe-3", tmp_path / "seed-3", 3, (300, 301)),
    ]
    assert [b.name for b in read_bases("101,102", "1", tmp_path)] == ["recipe-101", "recipe-102"]
    assert [b.name for b in read_bases("7,", "1", tmp_path)] == ["recipe-7"]
    assert [b.name for b in read_bases("recipe-101", "1", tmp_path)] == ["recipe-101"]  # as tables name it
    assert read_bases("12", "1", tmp_path)[:3] == tuple(b for b in read_bases("3", "1", tmp_path))


def test_no_two_bases_share_a_loop_seed(tmp_path: Path) -> None:
    seeds = [seed for base in read_bases("12", "3", tmp_path) for seed in base.seeds]
    assert len(set(seeds)) == 36


def test_bases_of_ones_own(tmp_path: Path) -> None:
    mine, yours = folder(tmp_path / "mine"), folder(tmp_path / "yours")
    bases = read_bases(f"{mine},{yours},shipped", "1", tmp_path)
    assert [(b.name, b.path, b.seeds) for b in bases] == [
        ("mine", mine, (100,)),
        ("yours", yours, (200,)),
        ("shipped", shipped_base(), (300,)),
    ]
    assert all(b.there for b in bases)
    assert read_bases("shipped", "0,1,2", tmp_path)[0].seeds == (0, 1, 2)


@pytest.mark.parametrize(
    ("bases", "seeds", "said"),
    [
        ("", "1", "--bases"),
        ("0", "1", "needs a base"),
        ("nowhere", "1", "no checkpoint"),
        ("shipped,shipped", "1", "twice"),
        ("2", "0,1", "each base has its own"),
        ("2", "0", "between 1 and 100"),
        ("2", "one", "--seeds"),
        ("2", "", "--seeds"),
    ],
)
def test_what_cannot_be_is_usage(bases: str, seeds: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        read_bases(bases, seeds, tmp_path)


def test_variants_by_name() -> None:
    assert read_variants("none") == (METHOD,)
    assert read_variants("sft,reversed", "no-critique") == (METHOD, "reversed", "sft", "no-critique")
    with pytest.raises(UsageError, match=r"magic; there are dpo, reversed"):
        read_variants("magic")


@pytest.mark.parametrize("scale", ["micro", "smoke"])
def test_every_variant_is_settings_that_can_be_typed(scale: str, tmp_path: Path) -> None:
    """What the command line says is what the digest is of, and no two variants are the same."""
    made = Plan(tmp_path, (*read_bases("shipped", "1", tmp_path), *read_bases(str(folder(tmp_path / "b")), "1", tmp_path)), ALL, scale)
    digests = set()
    for run in made.runs():
        words = made.command(run)
        typed = read_settings([words[i + 1] for i, word in enumerate(words) if word == "--set"])
        assert load_scale(scale, {k: (v, "ours: test") for k, v in typed.items()}).section("loop") == made.resolved(run).section("loop")
        assert typed["loop.seed"] == run.seed
        assert words[words.index("--processes") + 1] == "1"
        assert ("--base" in words) == (run.base.name != "shipped")
        digests.add(made.settings_digest(run))
    assert len(digests) == len(made.runs()) == 2 * len(ALL)


def test_controls_and_rivals_may_have_fewer_iterations(tmp_path: Path) -> None:
    made = Plan(tmp_path, read_bases("shipped", "1", tmp_path), ("dpo", "sft", "no-critique", "lora"), other_iterations=1)
    has = {run.variant: made.resolved(run).loop.iterations.value for run in made.runs()}
    assert has == {"dpo": 4, "sft": 1, "no-critique": 1, "lora": 4}
    assert "loop.iterations=1" in made.command(next(run for run in made.runs() if run.variant == "no-critique"))
    with pytest.raises(UsageError, match="which has 4"):
        replace(made, other_iterations=5)
    freeze(made, Chosen(bases={"recipe-101": [10100]}, twins_seed=7), tmp_path / "frozen.yaml")
    assert differing(read_frozen(tmp_path / "frozen.yaml"), made) == []
    assert "other_iterations: 1 is frozen, 2 now" in differing(read_frozen(tmp_path / "frozen.yaml"), replace(made, other_iterations=2))


def test_a_variant_takes_from_the_methods_run_once_it_is_there(tmp_path: Path) -> None:
    made = Plan(tmp_path, read_bases("shipped", "1", tmp_path), ("dpo", "sft"))
    method, sft = made.runs()
    assert "--take-from" not in made.command(sft)
    made.folder(method).mkdir(parents=True)
    (made.folder(method) / "run.json").write_text("{}")
    words = made.command(sft)
    assert words[words.index("--take-from") + 1] == str(made.folder(method))
    assert "--take-from" not in made.command(method)


def test_the_outside_critic_is_the_next_base(tmp_path: Path) -> None:
    bases = tuple(base for name in "abc" for base in read_bases(str(folder(tmp_path / name, name.encode())), "1", tmp_path))
    made = Plan(tmp_path, bases, ("dpo", "other-critic"))
    critics = {run.base.name: run.critic.name for run in made.runs() if run.critic}
    assert critics == {"a": "b", "b": "c", "c": "a"}
    run = next(run for run in made.runs() if run.critic)
    assert f"loop.critic={tmp_path / 'b'}" in made.command(run)
    with pytest.raises(UsageError, match="at least two"):
        Plan(tmp_path, bases[:1], ("dpo", "other-critic"))


def test_one_kind_of_questions_asks_as_many(tmp_path: Path) -> None:
    made = Plan(tmp_path, read_bases("shipped", "1", tmp_path), ("dpo", "spatial"))
    both, spatial = (made.resolved(run).loop for run in made.runs())
    assert len(both.kinds.value) * both.questions_per_kind.value == len(spatial.kinds.value) * spatial.questions_per_kind.value


def test_a_digest_knows_weights_and_no_path(tmp_path: Path) -> None:
    def digest(at: Path, weights: bytes, **settings: object) -> str:
        made = Plan(tmp_path, read_bases(str(folder(at, weights)), "1", tmp_path), ("dpo",), settings=settings)
        return made.settings_digest(made.runs()[0])

    first = digest(tmp_path / "1" / "x", b"w")
    assert digest(tmp_path / "2" / "y", b"w") == first
    assert digest(tmp_path / "3" / "x", b"v") != first
    assert digest(tmp_path / "4" / "x", b"w", **{"training.beta": 0.3}) != first
    assert digest(tmp_path / "5" / "x", b"w", **{"machine.processes": 2}) == first


def a_plan(tmp_path: Path, variants: tuple[str, ...] = ("dpo", "sft"), **settings: object) -> Plan:
    return Plan(tmp_path / "out", read_bases("2", "1", tmp_path), variants, settings=settings)


TUNED = Chosen(bases={"recipe-101": [10100]}, twins_seed=7)


def test_a_freezing_file_says_all_that_decides(tmp_path: Path) -> None:
    made, path = a_plan(tmp_path), tmp_path / "frozen.yaml"
    freeze(made, TUNED, path)
    found = read_frozen(path)
    assert found.settings == frozen_settings(made.common)
    assert {"loop.iterations", "loop.critic", "training.beta", "evaluation.twins_seed"} <= set(found.settings)
    assert found.reported.bases == {"recipe-1": [100], "recipe-2": [200]}
    assert found.claims == [n for n, c in CLAIMS.items() if {c.better.variant, c.worse.variant} <= {"dpo", "sft"}]
    assert "median" in found.ship
    assert check_frozen(path, made) == sha256_file(path)
    assert check_frozen(path, a_plan(tmp_path, ("dpo",)))  # a part of it: the rest can follow
    with pytest.raises(UsageError, match="not changed"):
        freeze(made, TUNED, path)


def test_a_study_that_differs_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "frozen.yaml"
    freeze(a_plan(tmp_path), TUNED, path)
    for made, said in (
        (a_plan(tmp_path, **{"training.beta": 0.5}), "training.beta: 0.2 is frozen, 0.5 now"),
        (a_plan(tmp_path, ("dpo", "sft", "blind")), "variant blind"),
        (Plan(tmp_path, read_bases("3", "1", tmp_path), ("dpo",)), r"recipe-1 \(100\), recipe-2 \(200\) are frozen"),
        (Plan(tmp_path, read_bases("2", "2", tmp_path), ("dpo",)), r"recipe-1 \(100 101\)"),
        (Plan(tmp_path, read_bases("2", "1", tmp_path), ("dpo",), "smoke"), "scale micro is frozen"),
    ):
        with pytest.raises(UsageError, match=said):
            check_frozen(path, made)


def test_bases_of_another_recipe_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, before = tmp_path / "frozen.yaml", recipe_module.Recipe()
    freeze(a_plan(tmp_path), TUNED, path)
    assert read_frozen(path).recipe == {key: value for key, value in asdict(before).items() if key != "seed"}
    monkeypatch.setattr(recipe_module, "Recipe", lambda: replace(before, mix=replace(before.mix, direct=1.0)))
    with pytest.raises(UsageError, match=r"recipe of the bases, mix: .*'direct': 0.07.* is frozen, .*'direct': 1.0"):
        check_frozen(path, a_plan(tmp_path))


@pytest.mark.parametrize(
    ("tuned", "said"),
    [
        (Chosen(bases={"recipe-1": [10100]}, twins_seed=7), "base recipe-1 is tuned on and reported"),
        (Chosen(bases={"recipe-101": [100]}, twins_seed=7), "loop seed 100"),
        (Chosen(bases={"recipe-101": [10100]}, twins_seed=1000), "same questions"),
    ],
)
def test_what_was_tuned_on_is_not_reported(tuned: Chosen, said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        freeze(a_plan(tmp_path), tuned, tmp_path / "frozen.yaml")
    assert not (tmp_path / "frozen.yaml").exists()


@pytest.mark.parametrize("text", ["", "[]", "scale: micro", "a: [", "date: 2026-13-45"])
def test_a_damaged_freezing_file_is_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "frozen.yaml"
    path.write_text(text)
    with pytest.raises(SaviError, match="no freezing file") as caught:
        read_frozen(path)
    assert "\n" not in str(caught.value)


def test_unknown_names_in_a_freezing_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "frozen.yaml"
    freeze(a_plan(tmp_path), TUNED, path)
    content = yaml.safe_load(path.read_text())
    for key, value in (("variants", ["dpo", "magic"]), ("claims", ["magic"])):
        path.write_text(yaml.safe_dump({**content, key: value}))
        with pytest.raises(UsageError, match="magic"):
            read_frozen(path)


def test_it_must_be_committed_where_there_is_git(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        subprocess.run(
            ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@example.org", *words], check=True, capture_output=True
        )

    git("init", "-q")
    made, path = a_plan(tmp_path), tmp_path / "frozen.yaml"
    freeze(made, TUNED, path)
    with pytest.raises(UsageError, match="commit it"):
        check_frozen(path, made)
    git("add", "frozen.yaml")
    with pytest.raises(UsageError, match="commit it"):
        check_frozen(path, made)
    git("commit", "-qm", "Freeze")
    assert check_frozen(path, made)
    path.write_text(path.read_text() + "# later\n")
    with pytest.raises(UsageError, match="commit it"):
        check_frozen(path, made)


def test_the_recipes_own_command_makes_a_base(tmp_path: Path) -> None:
    """Its options are those of `python -m benchmarks micro`."""
    import typer

    from benchmarks.__main__ import app

    words = read_bases("1", "1", tmp_path)[0].command()
    options = {name for p in typer.main.get_command(app).commands["micro"].params for name in p.opts}  # type: ignore[attr-defined]
    assert {word for word in words if word.startswith("--")} <= options
    assert plan_module.RECIPE == "recipe-"
