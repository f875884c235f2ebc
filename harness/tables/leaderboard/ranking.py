"""Ranks that respect uncertainty: one table a scale, and for each model the ranks that its answers leave possible.

Two models differ by the paired difference of their answers to the same questions, clustered by video (t test with videos - 1 degrees of
freedom; an exact sign-flip test as well where few videos changed), corrected over all pairs of a column by Holm. A model's rank lies
between 1 + the number of models significantly better and the number of models less those significantly worse: all these intervals hold
together with probability 1 - alpha (Mogstad, Romano, Shaikh and Wilhelm 2024). Published numbers have no answers and therefore no rank.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import TYPE_CHECKING

from benchmarks.catalog import CATALOG, PAPER, in_mean
from harness.tables import html
from harness.tables.latex import INTERVALS
from harness.tables.leaderboard.entry import UNSTATED, Answers, Entry, EntryScore, Key
from harness.tables.table import RULE_NOTES, SYNTHETIC_NOTE, TABLE_SCHEMA, Cell, Format, Row, ScoreRule, Table, pct_cell

if TYPE_CHECKING:
    import numpy as np

    from harness.stats import Design

FEW_CHANGED = 30
"""Up to this many videos with a changed answer, the exact sign-flip test must be significant too: t is too easy there."""
ROUNDING = 1e-9
"""A standard error below this (fraction) is rounding alone."""
_GROUP_TITLES = {"run": "measured by this harness", "lmms-eval": "measured with stock lmms-eval", "published": "published (not ranked)"}


@dataclass(frozen=True)
class Difference:
    """A paired difference on one benchmark in fractions; `totals` are the videos' weighted sums."""

    estimate: float
    se: float
    df: int
    totals: np.ndarray | None
    """None for a difference over loop seeds, of which there is one number each."""


@dataclass(frozen=True)
class Ranking:
    """(best, worst) rank in one column by entry position; what has none says why."""

    ranks: Mapping[int, tuple[int, int]]
    unranked: Mapping[int, str]
    differences: Mapping[tuple[int, int], Difference] = field(default_factory=dict)
    """Of every ranked pair (i < j)."""

    def note(self, index: int) -> str:
        """What a reader may want to know of entry i's rank."""
        if index in self.ranks and len(self.ranks) > 1:
            (best, worst), k = self.ranks[index], len(self.ranks)
            return f"significantly better than {k - worst} and worse than {best - 1} of {k - 1} others"
        return self.unranked.get(index, "")


def rank_text(rank: tuple[int, int] | None) -> str:
    """`2`, `1–3`, a dash for none."""
    return "–" if rank is None else f"{rank[0]}" if rank[0] == rank[1] else f"{rank[0]}–{rank[1]}"


class Designs:
    """How the questions of each benchmark hang together, worked out once for each set of questions.

    A question's video is taken from any entry that says it. Where none does, each question stands alone and the standard error is widened
    as if all questions on a video were answered alike (factor sqrt(n / videos), from the catalog): the worst case for equal videos.
    """

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._videos: dict[str, dict[Key, str]] = {}
        self._made: dict[tuple[str, tuple[Key, ...]], tuple[Design, float]] = {}
        for e in entries:
            for name, s in e.scores.items():
                if s.answers is not None and s.answers.videos is not None:
                    self._videos.setdefault(name, {}).update(zip(s.answers.keys, s.answers.videos, strict=True))

    def of(self, benchmark: str, keys: tuple[Key, ...]) -> tuple[Design, float]:
        """The design of these questions, and the factor by which to widen standard errors (1 where the videos are known)."""
        from harness.stats import design

        if (benchmark, keys) not in self._made:
            videos = self._videos.get(benchmark, {})
            known = all(k in videos for k in keys)
            clusters = [videos[k] for k in keys] if known else [str(i) for i in range(len(keys))]
            info = CATALOG[benchmark]
            widen = 1.0 if known else math.sqrt(max(1.0, info.n / info.videos))
            self._made[benchmark, keys] = design(clusters, [k[0] for k in keys]), widen
        return self._made[benchmark, keys]


def leaderboard(
    entries: Sequence[Entry],
    *,
    rule: ScoreRule = "upstream",
    alpha: float = 0.05,
    benchmarks: Sequence[str] | None = None,
    title: str = "Leaderboard",
) -> list[Table]:
    """One table a scale, and one a study: real data before synthetic, named sizes (`38b`) from large to small, then all others by name."""
    synthetic = {e.scale: e.synthetic for e in entries}

    def order(scale: str) -> tuple[bool, float, str]:
        size = re.fullmatch(r"(\d+(?:\.\d+)?)b", scale)
        return synthetic[scale], -float(size[1]) if size else 0.0, scale

    names = [b for b in CATALOG if not benchmarks or b in benchmarks]
    out = []
    for scale in sorted(synthetic, key=order):
        for study in sorted({e.study for e in entries if e.scale == scale}):
            some = [e for e in entries if (e.scale, e.study) == (scale, study)]
            out.append(_table(some, scale, names, rule, alpha, f"{title}: study {study}" if study else title))
    return out


def _table(entries: Sequence[Entry], scale: str, names: Sequence[str], rule: ScoreRule, alpha: float, title: str) -> Table:
    measured = [e for e in entries if e.kind != "published"]
    shown = [b for b in names if any(b in e.scores for e in (measured or entries))]
    designs = Designs(measured)
    rankings = {b: rank_benchmark([e.scores.get(b) for e in measured], b, alpha, designs) for b in shown}
    averaged = in_mean(shown)
    overall = _rank_mean(measured, averaged, alpha, rankings)
    means = [_mean(e, averaged) for e in entries]
    intervals = {id(e): {b: _interval(e.scores[b], b, designs) for b in shown if b in e.scores} for e in measured}

    def order(index: int) -> tuple[bool, float, float, str]:
        e, mean = entries[index], means[index]
        if e.kind == "published":
            return True, 0.0, 1.0 if mean is None else -mean, e.label
        ranked = measured.index(e) in overall.ranks
        return False, 0.0 if ranked else 1.0, 1.0 - len(e.scores) / 100 if mean is None else -mean, e.label

    rows = []
    for i in sorted(range(len(entries)), key=order):
        e = entries[i]
        at = measured.index(e) if e.kind != "published" else -1
        place = overall.ranks.get(at)
        best, worst = place or (None, None)
        cells = [Cell(best, rank_text(place), rank=best, worst_rank=worst, source="derived", note=overall.note(at))]
        if e.kind == "published":
            cells = [Cell(None, "published", source="published", link=e.link, note=e.place)]
        for b in shown:
            cells.append(_cell(e, b, rankings[b], at, intervals.get(id(e), {}).get(b)))
        cells.append(pct_cell(means[i], source="derived", rank=best, note="" if means[i] is not None else "a benchmark is missing"))
        group = _GROUP_TITLES["published"] if e.kind == "published" else _measured_group(measured)
        rows.append(Row(e.label + e.marks, tuple(cells), group))
    mean_title = "Mean" if len(averaged) == len(PAPER) else f"Mean of {len(averaged)}"
    columns = ("Rank", *(CATALOG[b].title for b in shown), mean_title)
    return Table(title, scale, columns, tuple(rows), tuple(_notes(entries, rule, alpha, scale, shown, rankings)))


def _measured_group(measured: Sequence[Entry]) -> str:
    kinds = sorted({e.kind for e in measured}, reverse=True)
    return _GROUP_TITLES[kinds[0]] if len(kinds) == 1 else "measured (lmms-eval: stock adapter)"


def _cell(entry: Entry, benchmark: str, ranking: Ranking, at: int, interval: tuple[float, float] | None) -> Cell:
    s = entry.scores.get(benchmark)
    if s is None:
        return pct_cell(None, note="not reported" if entry.kind == "published" else "not measured")
    if entry.kind == "published":
        return pct_cell(s.pct, source="published", note=entry.place)
    rank = ranking.ranks.get(at)
    sizes = f"n = {s.n}" if s.n == s.n_expected else f"n = {s.n} of {s.n_expected}"
    best, worst = rank or (None, None)
    cell = pct_cell(s.pct, interval, rank=best, link=entry.link, note="; ".join(x for x in (sizes, s.note, ranking.note(at)) if x))
    part = "" if s.n == s.n_expected else " (part)"
    return replace(cell, text=cell.text + part + (f" · {rank_text(rank)}" if rank else ""), worst_rank=worst)


def _notes(
    entries: Sequence[Entry], rule: ScoreRule, alpha: float, scale: str, shown: Sequence[str], rankings: Mapping[str, Ranking]
) -> list[str]:
    out = [f"Accuracy in percent; {RULE_NOTES[rule]}."]
    if any(e.study for e in entries):
        seeds = max(len(s.seeds) for e in entries for s in e.scores.values())
        out.append(
            f"After the dot: the ranks that the loop seeds leave possible (means over up to {seeds} seeds; t tests paired by seed, alpha "
            f"{alpha:g} after Holm over the column's pairs; same base and same questions, whose luck is not in them)."
        )
    elif any(r.ranks for r in rankings.values()):
        out.append(
            "After the dot: the ranks that the answers leave possible (1 + models significantly better, to all but those significantly "
            f"worse; paired by question, clustered by video, alpha {alpha:g} after Holm over the column's pairs). {INTERVALS} of the score "
            "alone, clustered by video."
        )
    if scale == UNSTATED:
        out.append("Stock results do not state their scale: give it, to have them ranked with others of theirs.")
    if any(e.synthetic for e in entries):
        out.append(SYNTHETIC_NOTE.format(scale=scale))
    reasons = Counter(reason for b in shown for reason in rankings[b].unranked.values())
    out += [f"Without rank: {reason}." for reason in reasons]
    assumed: set[str] = set()
    for e in entries:
        out += [n for n in e.notes if n not in out]
        assumed |= {b for b, s in e.scores.items() if b in shown and s.answers is not None and s.answers.videos is None}
    if assumed:
        titles = ", ".join(CATALOG[b].title for b in shown if b in assumed)
        out.append(f"Where a stock result does not say the videos ({titles}), the worst clustering is taken.")
    return out


def _mean(entry: Entry, shown: Sequence[str]) -> float | None:
    known = [entry.scores[b].pct for b in shown if b in entry.scores]
    return sum(known) / len(known) if known and len(known) == len(shown) else None


def p_value(parts: Sequence[Difference]) -> float:
    """Two-sided p of the mean of `parts` (one benchmark, or several taken as independent)."""
    import numpy as np
    from scipy import stats

    from harness.stats import sign_flip

    k = len(parts)
    estimate = sum(d.estimate for d in parts) / k
    se = math.sqrt(sum(d.se**2 for d in parts)) / k
    if estimate == 0 or min(d.df for d in parts) < 1 or math.isinf(se):
        return 1.0
    p = float(2 * stats.t.sf(abs(estimate) / se, min(d.df for d in parts))) if se > 0 else 0.0
    if any(d.totals is None for d in parts):
        return p if se > ROUNDING else 1.0  # the same difference in each of a few seeds is no estimate of their spread
    totals = np.concatenate([d.totals for d in parts if d.totals is not None]) / k
    if int((np.abs(totals) > 1e-15).sum()) <= FEW_CHANGED:
        p = max(p, min(1.0, 2 * min(sign_flip(totals, draws=9_999))))
    return p


def rank_intervals(models: Sequence[int], better: Mapping[tuple[int, int], bool]) -> dict[int, tuple[int, int]]:
    """(best, worst) possible rank of each model: 1 + those significantly better, and all but those significantly worse."""
    return {x: (1 + sum(better[y, x] for y in models if y != x), len(models) - sum(better[x, y] for y in models if y != x)) for x in models}


def rank_benchmark(scores: Sequence[EntryScore | None], benchmark: str, alpha: float, designs: Designs) -> Ranking:
    """Rank the entries that answered the same questions (the set most of them share)."""
    import numpy as np

    by_seed = {i: s.seeds for i, s in enumerate(scores) if s is not None and s.seeds}
    if by_seed:
        return Ranking(_ranks_by_seed(by_seed, alpha), {i: "not measured" for i in range(len(scores)) if i not in by_seed})
    comparable, unranked = _comparable(scores)
    if not comparable:
        return Ranking({}, unranked)
    d, widen = designs.of(benchmark, _a(scores, comparable[0]).keys)
    diffs = differences({i: np.asarray(_a(scores, i).credits, dtype=np.float64) for i in comparable}, d, widen)
    return Ranking(ranks(comparable, {pair: [x] for pair, x in diffs.items()}, alpha), unranked, diffs)


def differences(credits: Mapping[int, np.ndarray], design: Design, widen: float = 1.0) -> dict[tuple[int, int], Difference]:
    """Of every pair of models (in the order given), from their `credits` [Q]; `widen` multiplies standard errors."""
    from harness.stats import cluster_mean

    out = {}
    for i, j in combinations(credits, 2):
        m = cluster_mean(credits[i] - credits[j], design)
        out[i, j] = Difference(float(m.estimate), float(m.se) * widen, int(m.df), m.totals)
    return out


def _ranks_by_seed(models: Mapping[int, Mapping[int, float]], alpha: float) -> dict[int, tuple[int, int]]:
    """Rank intervals from percent by loop seed: paired t tests over the seeds that two models share."""
    import numpy as np

    from harness.stats import cluster_mean, design

    found = {}
    for i, j in combinations(models, 2):
        shared = sorted(models[i].keys() & models[j].keys())
        change = [(models[i][s] - models[j][s]) / 100 for s in shared]
        m = cluster_mean(np.array(change), design([str(s) for s in shared], ["t"] * len(shared))) if shared else None
        found[i, j] = [Difference(float(m.estimate), float(m.se), int(m.df), None) if m else Difference(0.0, math.inf, 0, None)]
    return ranks(list(models), found, alpha)


def _a(scores: Sequence[EntryScore | None], index: int) -> Answers:
    s = scores[index]
    assert s is not None
    assert s.answers is not None
    return s.answers


def _comparable(scores: Sequence[EntryScore | None]) -> tuple[list[int], dict[int, str]]:
    unranked: dict[int, str] = {}
    with_answers = []
    whole = any(s is not None and s.n == s.n_expected for s in scores)
    for i, s in enumerate(scores):
        if s is not None and whole and s.n != s.n_expected:
            unranked[i] = f"a part only, {s.n} of {s.n_expected} questions"
        elif s is not None and s.answers is None:
            unranked[i] = s.note or "no per-question answers"
        elif s is not None:
            with_answers.append(i)
    if not with_answers:
        return [], unranked
    sets = Counter(_a(scores, i).keys for i in with_answers)
    most = max(sets, key=lambda k: (sets[k], len(k), k))
    same = [i for i in with_answers if _a(scores, i).keys == most]
    unranked |= dict.fromkeys((i for i in with_answers if i not in same), "answered other questions than the rest")
    # The same numbers may mean other questions: entries of one kind must agree on their content.
    contents: dict[str, Counter[tuple[str, ...]]] = {}
    for i in same:
        contents.setdefault(_a(scores, i).content_kind, Counter())[_a(scores, i).content] += 1
    usual = {kind: max(c, key=lambda x: (c[x], x)) for kind, c in contents.items()}
    differing = [i for i in same if _a(scores, i).content != usual[_a(scores, i).content_kind]]
    unranked |= dict.fromkeys(differing, "the same question numbers stand for other questions")
    return [i for i in same if i not in differing], unranked


def ranks(models: Sequence[int], diffs: Mapping[tuple[int, int], Sequence[Difference]], alpha: float) -> dict[int, tuple[int, int]]:
    """The rank intervals of `models`, Holm-corrected over all their pairs."""
    from harness.stats import holm

    pairs = list(diffs)
    adjusted = dict(zip(pairs, (float(p) for p in holm([p_value(diffs[x]) for x in pairs])), strict=True)) if pairs else {}

    def better(one: int, other: int) -> bool:
        pair = (min(one, other), max(one, other))
        sign = sum(d.estimate for d in diffs[pair]) * (1 if one < other else -1)
        return sign > 0 and adjusted[pair] <= alpha

    return rank_intervals(models, {(x, y): better(x, y) for x in models for y in models if x != y})


def _rank_mean(measured: Sequence[Entry], shown: Sequence[str], alpha: float, rankings: Mapping[str, Ranking]) -> Ranking:
    if measured and all(e.study for e in measured):
        means = {i: _mean_by_seed(e, shown) for i, e in enumerate(measured)}
        return Ranking(_ranks_by_seed({i: m for i, m in means.items() if m}, alpha), {})
    full = [i for i in range(len(measured)) if shown and all(i in rankings[b].ranks for b in shown)]
    unranked = {i: "not comparable on every benchmark" for i in range(len(measured)) if i not in full}
    diffs = {pair: [rankings[b].differences[pair] for b in shown] for pair in combinations(full, 2)}
    return Ranking(ranks(full, diffs, alpha), unranked)


def _mean_by_seed(entry: Entry, shown: Sequence[str]) -> dict[int, float]:
    """The mean over the benchmarks by loop seed; of seeds that have all of them."""
    parts = [entry.scores[b].seeds for b in shown if b in entry.scores]
    if not parts or len(parts) < len(shown):
        return {}
    return {seed: sum(p[seed] for p in parts) / len(parts) for seed in parts[0] if all(seed in p for p in parts)}


def _interval(score: EntryScore, benchmark: str, designs: Designs) -> tuple[float, float] | None:
    if score.answers is None or not score.answers.keys:
        return None
    import numpy as np

    from harness.stats import cluster_mean, t_quantile

    d, widen = designs.of(benchmark, score.answers.keys)
    m = cluster_mean(np.asarray(score.answers.credits, dtype=np.float64), d)
    if m.df < 1 or m.se == 0:
        return None
    half = 100 * t_quantile(0.975, m.df) * float(m.se) * widen
    return max(0.0, score.pct - half), min(100.0, score.pct + half)


def render(tables: Sequence[Table], fmt: Format, *, title: str = "Leaderboard") -> str:
    """All tables in one text of the format: one page of HTML, one list of JSON, one CSV with a column for the scale."""
    if fmt == "json":
        raw = [json.loads(t.to_json()) for t in tables]
        return json.dumps({"schema_version": TABLE_SCHEMA, "title": title, "tables": raw}, indent=1, allow_nan=False) + "\n"
    if fmt == "html":
        return html.page(tables, title)
    if fmt == "csv" and len(tables) > 1:
        import pandas as pd

        frames = [pd.read_csv(io.StringIO(t.to_csv()), dtype=str, keep_default_na=False) for t in tables]
        return str(pd.concat(frames, ignore_index=True).fillna("").to_csv(index=False, lineterminator="\n"))
    return "\n".join(t.render(fmt) for t in tables)
