"""The report's parts one by one: statistics, words, charts, pictures, text."""

from __future__ import annotations

import base64
import itertools
import json
import math
import re
import unicodedata
import xml.etree.ElementTree as ET
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as sps

from harness.records import Evaluation, QuestionRecord, index_records
from harness.report import charts
from harness.report.browse.frames import Budget, collect_pair_pictures, contact_sheet
from harness.report.browse.media import find_data_folder, link_from, pair_clips, question_clips, safe_join
from harness.report.browse.pairs import pairs_payload
from harness.report.browse.questions import question_rows, why
from harness.report.compare import Interval, compare, mean_change, mean_score, score_interval
from harness.report.read import _pairs, read_run
from harness.report.text import legible, script_json
from tests.harness.fake_run import make_records, make_score, write_fake_run, write_videos


def evaluation(records: list[QuestionRecord]) -> Evaluation:
    return Evaluation(make_score(records, scale="micro", stage="base"), records)


def pair(n: int = 200) -> tuple[Evaluation, Evaluation]:
    return tuple(evaluation(make_records("egoschema", n, gain=g, seed=1, per_video=1)) for g in (0.0, 0.3))  # type: ignore[return-value]


def test_change_is_the_paired_t_interval_where_every_video_has_one_question() -> None:
    a, b = pair()
    c = compare(a, b)
    diffs = [100 * (y.strict - x.strict) for x, y in zip(a.records, b.records, strict=True)]
    expected = sps.ttest_1samp(diffs, 0).confidence_interval(0.95)
    assert (c.interval.low, c.interval.high) == pytest.approx(tuple(expected), abs=1e-9)
    assert c.interval.value == pytest.approx(b.score.strict_pct - a.score.strict_pct)
    assert c.better == sum(d > 0 for d in diffs)
    assert c.worse == sum(d < 0 for d in diffs)
    assert c.better + c.worse + c.both_right + c.both_wrong == c.n == 200


def test_change_weighs_tasks_as_the_score_does() -> None:
    a, b = (evaluation(make_records("mvbench", 330, gain=g, seed=2)) for g in (0.0, 0.4))
    assert compare(a, b).interval.value == pytest.approx(b.score.strict_pct - a.score.strict_pct)


def test_upstream_change_is_the_difference_of_the_stated_scores() -> None:
    a, b = pair()
    b = Evaluation(replace(b.score, upstream_pct=77.0), b.records)
    assert compare(a, b, "upstream").interval.value == pytest.approx(77.0 - a.score.upstream_pct)


def test_other_order_changes_nothing_and_strangers_are_counted() -> None:
    a, b = pair()
    assert compare(a, evaluation(b.records[::-1])).interval == compare(a, b).interval
    c = compare(a, evaluation(b.records[:150]))
    assert (c.n, c.unmatched) == (150, 50)
    nothing = compare(a, evaluation([replace(r, question_id=f"other{i}") for i, r in enumerate(b.records)]))
    assert (nothing.n, nothing.unmatched) == (0, 400)


def test_the_same_question_asked_twice_stays_two() -> None:
    rows = make_records("egoschema", 2, gain=0, seed=0)
    twice = [rows[0], replace(rows[0], doc_id=7)]
    assert len(index_records(twice)) == 2


def test_one_video_has_no_interval() -> None:
    a, b = (evaluation([replace(r, video_id="v") for r in e.records]) for e in pair(20))
    assert (compare(a, b).interval.low, compare(a, b).interval.high) == (-100.0, 100.0)


def test_mean_of_benchmarks() -> None:
    a, b = pair()
    c = compare(a, b)
    m = mean_change([c, c])
    assert m.value == pytest.approx(c.interval.value)
    assert m.high - m.value == pytest.approx((c.interval.high - c.interval.value) / math.sqrt(2), rel=0.01)
    one = score_interval(a)
    assert one.low < a.score.strict_pct < one.high
    assert mean_score({"x": a, "y": b}, ["x", "y"]).value == pytest.approx((a.score.strict_pct + b.score.strict_pct) / 2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"status": "ok", "parsed": "B", "strict": 1.0, "upstream": 1.0}, "Read as “B”, the key is “B”: right."),
        ({"status": "ok", "parsed": "C", "strict": 0.0, "upstream": 0.0}, "Read as “C”, the key is “B”: wrong."),
        ({"status": "unparsed", "parsed": None, "strict": 0.0, "upstream": 1.0}, "lmms-eval itself gave 100 % by a random guess"),
        ({"status": "empty", "parsed": None, "strict": 0.0, "upstream": 0.0}, "The answer is empty, so the strict rule counts it wrong"),
        (
            {"status": "failed", "parsed": None, "strict": 0.0, "upstream": 0.0, "error": "0 decodable frames"},
            "No answer was made (0 decodable frames)",
        ),
        ({"status": "judged", "parsed": None, "strict": 0.5, "upstream": 0.5}, "An outside judge decided (key “B”): 50 % of the credit"),
    ],
)
def test_why(changes: dict[str, object], words: str) -> None:
    record = replace(make_records("egoschema", 1, gain=0, seed=0)[0], target="B", **changes)  # type: ignore[arg-type]
    assert words in why(record)


@given(st.text(alphabet=st.characters(codec=None), max_size=200))
def test_visible_leaves_nothing_that_acts(text: str) -> None:
    shown = legible(text)
    shown.encode("utf-8")
    assert not [c for c in shown if unicodedata.category(c) == "Cc" and c not in "\n\t"]
    assert not [c for c in shown if unicodedata.bidirectional(c) in {"RLO", "LRO", "RLE", "LRE", "PDF", "RLI", "LRI", "FSI", "PDI"}]
    assert "\u2028" not in shown


def test_visible_keeps_text_and_says_what_it_cuts() -> None:
    assert legible("a\tb\nc – ü 中 🙂") == "a\tb\nc – ü 中 🙂"
    assert legible("x" * 1_000_000, 10) == "xxxxxxxxxx… [+999,990 characters]"
    assert legible("\x1b[31m\x00\u202e") == "⟨ESC⟩[31m⟨NUL⟩⟨RLO⟩"


@given(st.recursive(st.text() | st.integers(-(2**40), 2**40), lambda x: st.lists(x, max_size=4), max_leaves=8))
def test_script_json_is_json_that_cannot_leave_its_element(data: object) -> None:
    text = script_json(data)
    assert not re.search(r"[<>&\u2028\u2029]|[^\x00-\x7f]", text)
    assert json.loads(text) == data


@pytest.mark.parametrize(("value", "chance", "paper"), [(41.0, 42.2, None), (25.0, 25.0, 25.5), (0.5, 1.0, None), (99.0, 97.0, 98.0)])
def test_labels_beside_a_score_chart_do_not_overlap(value: float, chance: float, paper: float | None) -> None:
    ref = charts.PaperScores(None, paper, 1.5) if paper is not None else None
    points: list[Interval | None] = [Interval(50.0, 40.0, 60.0), Interval(value, value - 3, value + 3)]
    root = ET.fromstring(str(charts.score_chart("TempCompass", ["base", "1"], points, (0, 100), chance, ref)))
    texts = [t for t in root.iter() if t.tag.endswith("text") and set((t.get("class") or "").split()) & {"aside", "value"}]
    assert {"chance", f"{value:.1f}"} <= {t.text for t in texts}
    places = sorted(float(t.get("y") or "nan") for t in texts)
    assert all(b - a >= 12.9 for a, b in itertools.pairwise(places))
    assert places[-1] <= 186 - 38 + 4


def test_every_chart_names_its_axes() -> None:
    i = Interval(50.0, 40.0, 60.0)
    said = {
        charts.score_chart("TempCompass", ["base", "1"], [i, i], (0, 100), None, None): ["Iteration", "Score, %"],
        charts.hero_chart(["base", "1"], [i, i]): ["Iteration", "Mean score, %"],
        charts.line_chart("Loss", [("1", [(1.0, 2.0), (2.0, 1.0)])]): ["Training step", "Loss"],
        charts.interval_axis((-5.0, 5.0), "Change, points"): ["Change, points"],
    }
    for picture, titles in said.items():
        root = ET.fromstring(str(picture))
        assert [t.text for t in root.iter() if "title" in (t.get("class") or "").split()] == titles


def test_charts_are_well_formed_and_escape_their_words() -> None:
    nasty = '"><script>alert(1)</script>'
    i = Interval(50.0, 40.0, 60.0)
    pictures = [
        charts.score_chart(nasty, ["base", nasty], [i, None], (0, 100), 25.0, charts.PaperScores(40.0, 51.0, 1.5)),
        charts.hero_chart([nasty], [i]),
        charts.hero_chart(["base", "1"], [i, i]),
        charts.interval_cell((-5, 5), 1.0, -math.inf, 99.0, "pass", margins=[-2.0], paper=3.0),
        charts.interval_cell((-5, 5), None, None, None, "other"),
        charts.interval_axis((-5.0, 5.0)),
        charts.line_chart(nasty, [(nasty, [(1.0, 2.0)]), ("2", [(1.0, 1.0), (9.0, 1.0)])]),
        charts.discordance_cell(0, 0, 0),
        charts.bar_cell(0.0, 0.0, nasty),
    ]
    for p in pictures:
        root = ET.fromstring(str(p))
        assert root.attrib["aria-label"]
        assert "NaN" not in p
        assert not [e for e in root.iter() if e.tag == "script"]


@pytest.mark.parametrize(("low", "high"), [(0.0, 100.0), (-3.2, 7.9), (0.0, 1e-7), (5.0, 5.0), (-1e6, 1e6)])
def test_ticks_are_few_and_within(low: float, high: float) -> None:
    marks = charts.ticks(low, high)
    assert len(marks) <= 6
    assert all(low - 1e-9 <= t <= high + 1e-9 for t in marks)


def test_signs() -> None:
    assert [charts.signed(x) for x in (1.25, -0.5, 0.0, -0.01, None, -math.inf)] == ["+1.2", "−0.5", "0.0", "0.0", "—", "−∞"]


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../../etc/passwd", "a/../../x", "nul\0l", "missing.mp4", "x" * 5000])
def test_paths_that_lead_elsewhere_are_refused(tmp_path: Path, path: str) -> None:
    assert safe_join(tmp_path, path) is None


def test_contact_sheets(tmp_path: Path) -> None:
    import io

    from PIL import Image

    write_videos(tmp_path, ["egoschema"], count=1)
    video = safe_join(tmp_path, "egoschema/videos/0000.mp4")
    assert video
    sheet = contact_sheet(video)
    assert sheet
    with Image.open(io.BytesIO(sheet)) as im:
        assert im.size == (4 * 64 + 3 * 2, 2 * 64 + 2)
    for name, content in (("empty.mp4", b""), ("text.mp4", b"no video at all"), ("torn.mp4", video.read_bytes()[:300])):
        (tmp_path / name).write_bytes(content)
        assert contact_sheet(tmp_path / name) is None


def test_data_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HOME", raising=False)
    assert find_data_folder(tmp_path, None) is None
    (tmp_path / "videos").mkdir()
    assert find_data_folder(tmp_path, {"hf_home": "videos"}) == tmp_path / "videos"
    assert find_data_folder(tmp_path / "elsewhere", {"hf_home": str(tmp_path / "videos")}) == tmp_path / "videos"
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert find_data_folder(tmp_path, {"hf_home": "/nowhere\0"}) == tmp_path


def test_pairs_of_unchanged_answers_are_counted_apart(tmp_path: Path) -> None:
    row = {"kind": "spatial", "video": "v.mp4", "question": "q ?", "critique": "c", "rejected": "left", "chosen": "right"}
    rows = [row, row | {"chosen": "left"}, row | {"kind": "temporal", "chosen": "left"}]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    found = _pairs(tmp_path, [])
    assert found is not None
    assert found.kinds == {"spatial": 1, "unchanged spatial": 1, "unchanged temporal": 1}
    assert [(p.outcome, p.chosen, p.rejected) for p in found.rows] == [
        ("pair", "right", "left"),
        ("unchanged", "left", "left"),
        ("unchanged", "left", "left"),
    ]


def test_every_pair_and_every_reason_is_kept(tmp_path: Path) -> None:
    run = read_run(write_fake_run(tmp_path / "r", iterations=2, gates=False))
    found = pairs_payload(run, lambda stage: lambda video: None)
    assert found is not None
    assert (found.shown, found.total, found.cut) == (920, 920, None)
    box = json.loads(found.text)
    data = box["data"] if box["encoding"] == "json" else json.loads(zlib.decompress(base64.b64decode(box["data"])))
    assert data["n"] == 920
    texts = {k: [data["strings"][i] for i in data["columns"][k]] for k in ("outcome", "reason", "chosen", "id")}
    assert texts["outcome"].count("dropped") == 440
    assert {r for r, o in zip(texts["reason"], texts["outcome"], strict=True) if o == "pair"} == {""}
    small = pairs_payload(run, lambda stage: lambda video: None, max_chars=6_000)
    assert small is not None
    assert len(small.text) <= 6_000
    assert 0 < small.shown < small.total == 920


def test_frames_of_pairs_come_from_the_runs_folder_only(tmp_path: Path) -> None:
    run = write_fake_run(tmp_path / "r", iterations=1, gates=False, sizes={"egoschema": 4})
    write_videos(run / "data", ["egoschema"], count=1)
    write_videos(tmp_path / "elsewhere", ["egoschema"], count=1)
    (video,), (private,) = (list(p.rglob("*.mp4")) for p in (run / "data", tmp_path / "elsewhere"))
    (run / "link.mp4").symlink_to(private)
    named = [f"../{video.relative_to(run).as_posix()}", f"../../{private.relative_to(tmp_path).as_posix()}", str(private), "../link.mp4"]
    path = run / "iter-1" / "pairs.jsonl"
    rows = [json.loads(x) | {"video": named[i % 4]} for i, x in enumerate(path.read_text().splitlines())]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    found = collect_pair_pictures(read_run(run), Budget())
    assert found.index == {("iter-1", named[0]): 0}
    assert len(found.sheets) == 1
    assert collect_pair_pictures(read_run(run), Budget(max_videos=3)).sheets == [], "a quarter of three videos is none"


def test_numbers_of_questions_follow_the_video_and_not_the_order_in_the_file(tmp_path: Path) -> None:
    run = read_run(write_fake_run(tmp_path / "r", iterations=1, gates=False, sizes={"tempcompass": 24}))
    shuffled = replace(
        run,
        stages=[replace(s, evaluations={b: replace(e, records=e.records[::-1]) for b, e in s.evaluations.items()}) for s in run.stages],
    )
    addresses = [r.address for r in question_rows(run)]
    assert addresses == [r.address for r in question_rows(shuffled)]
    assert len(set(addresses)) == 24
    assert {a.rpartition("/")[2] for a in addresses} == {"1", "2", "3", "4"}


def test_an_address_is_quoted(tmp_path: Path) -> None:
    run = read_run(write_fake_run(tmp_path / "r", iterations=1, gates=False, sizes={"egoschema": 4}))
    row = replace(question_rows(run)[0], found=[replace(question_rows(run)[0].record, video_id="a/b?c#d é")])
    assert row.address == "egoschema/a%2Fb%3Fc%23d%20%C3%A9/1"


def test_only_video_files_that_are_there_are_played(tmp_path: Path) -> None:
    (tmp_path / "data" / "v").mkdir(parents=True)
    for name in ("a b.mp4", "notes.txt"):
        (tmp_path / "data" / "v" / name).write_bytes(b"x")
    link = link_from(tmp_path / "page" / "report.html")
    clip = question_clips(tmp_path / "data", link)
    assert clip("v/a b.mp4") == "../data/v/a%20b.mp4"
    assert [clip(x) for x in ("v/notes.txt", "v/gone.mp4", "../data/v/a b.mp4", str(tmp_path / "data/v/a b.mp4"), "")] == [None] * 5
    assert question_clips(None, link)("v/a b.mp4") is None
    pairs = pair_clips(tmp_path / "data" / "iter-1", link)
    assert pairs("../v/a b.mp4") == "../data/v/a%20b.mp4"
    assert [pairs(x) for x in ("../v/notes.txt", "../v/gone.mp4", "nul\0.mp4", "")] == [None] * 4
