"""Claims, tables and figures on records with known gains."""

from __future__ import annotations

import pytest

from reproduce.study.claims import CLAIMS, LAST, Claim, Side, contrast, hold, verdict
from reproduce.study.estimate import Estimate
from reproduce.study.figures import FIGURES, all_figures
from reproduce.study.records import Record
from reproduce.study.tables import (
    NOT_FROZEN,
    all_tables,
    base_scores,
    bases_table,
    claims_table,
    frozen_line,
    gains_table,
    shipped_by_rule,
    summary,
    variants_of,
)
from reproduce.study.variants import VARIANTS
from tests.reproduce.study.made import QUESTIONS, SCALE, made_records

GAINS = {"dpo": [10, 12, 13, 13], "sft": [10, 12, 13, 13], "reversed": [-9, -9, -9, -9], "no-critique": [1, 1, 1, 1]}


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return made_records(GAINS, 8)


def test_every_claim_names_variants_that_are_there() -> None:
    for claim in CLAIMS.values():
        assert {claim.better.variant, claim.worse.variant} <= set(VARIANTS)
        assert claim.source.startswith(("paper", "ours"))
        assert claim.at_least >= max(claim.better.iteration, claim.worse.iteration)


def test_gains_are_found_with_their_signs(records: list[Record]) -> None:
    for name, low, high in (("dpo", 8, 18), ("reversed", -14, -4), ("no-critique", -4, 6)):
        found = contrast(records, QUESTIONS, Side(name, LAST), Side(name, 0))
        assert found is not None
        assert low < found.points < high
        assert found.bases == 8


def test_a_difference_of_variants_is_paired(records: list[Record]) -> None:
    """dpo and sft changed the same answers here: their difference is 0 without error, though each gain has one."""
    found = contrast(records, QUESTIONS, Side("dpo"), Side("sft"))
    assert found is not None
    assert (found.points, found.half) == (0, 0)


def test_fewer_iterations_are_compared_with_as_many_of_the_method(records: list[Record]) -> None:
    """The last of both sides is the last that both have; against its own base each side has its last."""
    short = [r for r in records if r.variant == "dpo"] + made_records({"reversed": [-9, -9], "sft": [10, 12]}, 8)
    found = contrast(short, QUESTIONS, Side("dpo"), Side("sft"))
    assert found is not None
    assert (found.points, found.half) == (0, 0)  # after iteration 2; dpo goes on to 13
    gain = contrast(short, QUESTIONS, Side("dpo", LAST), Side("dpo", 0))
    assert gain is not None
    assert gain == contrast(records, QUESTIONS, Side("dpo", 4), Side("dpo", 0))
    tables = all_tables(short, QUESTIONS, hold(short, QUESTIONS, list(CLAIMS)), NOT_FROZEN, 1.0)
    assert "Controls and rivals: 2 iterations, compared with the method after as many." in tables[1].to_markdown()
    assert "sft" in all_figures(short, QUESTIONS, NOT_FROZEN)["curves"]


def test_only_bases_and_seeds_with_both_sides_count(records: list[Record]) -> None:
    some = [r for r in records if r.variant == "dpo" or r.base in ("recipe-1", "recipe-5")]
    found = contrast(some, QUESTIONS, Side("dpo"), Side("reversed"))
    assert found is not None
    assert found.bases == 2
    assert contrast(some, QUESTIONS, Side("dpo"), Side("blind")) is None
    other_seed = [r if r.variant == "dpo" else r.model_copy(update={"seed": r.seed + 50}) for r in records]
    assert contrast(other_seed, QUESTIONS, Side("dpo"), Side("sft")) is None


def test_a_bases_seeds_are_its_mean() -> None:
    records = made_records({"dpo": [5]}, 4, seeds=3)
    found = contrast(records, QUESTIONS, Side("dpo"), Side("dpo", 0))
    assert found is not None
    assert found.bases == 4
    one = contrast([r for r in records if r.base == "recipe-2"], QUESTIONS, Side("dpo"), Side("dpo", 0))
    assert one is not None
    assert one.bases == 3  # the loop seeds of one base
    assert found.each[1] == pytest.approx(one.points)


def estimate_of(low: float, high: float) -> Estimate:
    return Estimate((low + high) / 2, low, high, 5, 6, 1.0, 1.0, 1.0, ())


@pytest.mark.parametrize(
    ("low", "high", "bases", "said"),
    [
        (0.1, 3, 6, "holds"),
        (0.1, 0.5, 6, "holds"),
        (-0.1, 3, 6, "not decided"),
        (-2, 0.9, 6, "does not hold"),
        (-3, -1, 6, "does not hold"),
        (0.1, 3, 1, "not decided"),
    ],
)
def test_verdicts(low: float, high: float, bases: int, said: str) -> None:
    assert verdict(estimate_of(low, high), bases) == said
    assert verdict(None, bases) == "not run"


def test_verdicts_of_known_gains(records: list[Record]) -> None:
    said = {one.claim.id: one.verdict for one in hold(records, QUESTIONS, list(CLAIMS))}
    assert said["gain"] == said["rise-1"] == said["self-over-none"] == said["dpo-over-reversed"] == "holds"
    assert said["dpo-over-blind"] == "not run"


def test_equal_answers_of_few_questions_do_not_show_that_there_is_no_difference(records: list[Record]) -> None:
    """dpo and sft answer alike here, without any error: 240 questions rule out four points between them, not one."""
    assert [one.verdict for one in hold(records, QUESTIONS, ["dpo-over-sft-plus"], smallest=1.0)] == ["not decided"]
    assert [one.verdict for one in hold(records, QUESTIONS, ["dpo-over-sft-plus"], smallest=4.0)] == ["does not hold"]


def test_claims_of_iterations_that_were_not_run_are_left_out() -> None:
    held = hold(made_records({"dpo": [3, 4]}, 3), QUESTIONS, list(CLAIMS))
    assert {"rise-1", "rise-2", "gain"} <= {one.claim.id for one in held}
    assert not {"rise-3", "rise-4", "four-over-one"} & {one.claim.id for one in held}


def test_one_base_decides_nothing() -> None:
    records = made_records({"dpo": [15]}, 1, seeds=4)
    assert {one.verdict for one in hold(records, QUESTIONS, ["gain"])} == {"not decided"}
    assert "nothing is said of others" in gains_table(records, QUESTIONS, NOT_FROZEN).to_markdown()


def test_tables_say_scale_freezing_and_every_variant(records: list[Record]) -> None:
    held = hold(records, QUESTIONS, list(CLAIMS))
    tables = all_tables(records, QUESTIONS, held, NOT_FROZEN, 1.0)
    text = "\n".join(table.to_markdown() for table in tables)
    assert text.count(f"(scale: {SCALE})") == 5
    assert text.count("NOT FROZEN") == 2
    for name in GAINS:
        assert VARIANTS[name].title in text
    for said in ("holds", "not decided", "egoschema", "recipe-8", "iteration 4", "precision %", "reproduce no number of the paper"):
        assert said in text
    assert variants_of(records)[0] == "dpo"
    assert claims_table(held, records, NOT_FROZEN).rows[0].cells[2].text == "holds"


def test_frozen_lines() -> None:
    a, b = "a" * 64, "b" * 64
    assert frozen_line(made_records({"dpo": [1]}, 1), {}) == NOT_FROZEN
    frozen = made_records({"dpo": [1]}, 1, frozen=a)
    assert frozen_line(frozen, {a: "2026-11-27"}) == f"Settings frozen before the runs: 2026-11-27 ({a[:12]})."
    assert "not here" in frozen_line(frozen, {b: "2026-11-27"})
    assert frozen_line([*frozen, *made_records({"sft": [1]}, 1)], {a: "2026-11-27"}).startswith("MIXED")


def test_the_median_base_ships(records: list[Record]) -> None:
    ranked = sorted(base_scores(records, QUESTIONS).items(), key=lambda item: item[1])
    assert shipped_by_rule(records, QUESTIONS) == ranked[3][0]  # the lower of the two in the midst of eight
    assert f"{ranked[3][0]} ships" in bases_table(records, QUESTIONS).to_markdown()


def test_the_summary_has_effects_and_verdicts(records: list[Record]) -> None:
    found = summary(records, QUESTIONS, hold(records, QUESTIONS, list(CLAIMS)), NOT_FROZEN)
    assert found["gains"]["dpo"][3]["n"] == 8
    assert next(c for c in found["claims"] if c["id"] == "gain")["verdict"] == "holds"
    assert found["frozen"] == NOT_FROZEN


def test_figures_say_scale_and_freezing_and_are_the_same_twice(records: list[Record]) -> None:
    made = all_figures(records, QUESTIONS, NOT_FROZEN)
    assert set(made) == set(FIGURES)
    for name, svg in made.items():
        assert f"{FIGURES[name]} (scale: {SCALE})" in svg
        assert "NOT FROZEN" in svg
    assert made == all_figures(records, QUESTIONS, NOT_FROZEN)
    for name in GAINS:
        assert name in made["curves"]
    assert "slope" in made["gain_by_gap"]


def test_figures_without_pairs_or_with_two_bases() -> None:
    bare = [record.model_copy(update={"pairs": []}) for record in made_records({"dpo": [1, 2]}, 3)]
    assert set(all_figures(bare, QUESTIONS, NOT_FROZEN)) == {"curves"}
    two = all_figures(made_records({"dpo": [1]}, 2), QUESTIONS, NOT_FROZEN)
    assert "slope" not in two["gain_by_gap"]
    assert isinstance(CLAIMS["gain"], Claim)
