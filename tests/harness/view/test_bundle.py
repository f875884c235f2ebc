"""The static site: whole, within its size, and silent about the machine it was made on."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.__main__ import app
from harness.records import read_records, write_records
from harness.report.data import ReportError, RunData
from harness.report.read import read_run
from harness.view.bundle import LeakError, Wanted, _unpacked, write_bundle
from harness.view.scrub import LEFT_OUT, Scrubber
from savi.base.errors import UsageError
from tests.harness.browser import READY, Browser, find_browser
from tests.harness.fake_run import write_fake_run

SECRETS = {
    "hf_" + "AbCdEfGhIjKlMnOpQrStUv",
    "ghp_" + "0123456789abcdefghijklmnop",
    "sk-" + "proj-0123456789abcdefghij",
    "AKIA" + "ABCDEFGHIJKLMNOP",
    "hunter2hunter2",
    "value-of-a-variable",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("place") / "runs"
    write_fake_run(runs / "one", iterations=1, sizes={"egoschema": 24, "nextqa": 16}, videos=True)
    write_fake_run(runs / "group" / "two", iterations=1, sizes={"egoschema": 24}, videos=True, gates=False)
    return runs


@pytest.fixture
def runs(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "runs"))


def everything(site: Path) -> str:
    """All text of a site, packed data unpacked."""
    texts = [p.read_text(encoding="utf-8") for p in site.rglob("*") if p.suffix in (".html", ".txt", ".json")]
    return "\n".join([*texts, *(x for t in texts for x in _unpacked(t)), *(p.as_posix() for p in site.rglob("*"))]).replace(
        site.as_posix(), ""
    )


def test_index_and_reports_are_linked_to_each_other(runs: Path, tmp_path: Path) -> None:
    made = write_bundle(runs, tmp_path / "site")
    assert (made.runs, made.problems) == (2, [])
    index = (tmp_path / "site" / "index.html").read_text()
    links = re.findall(r'<th scope="row"><a href="([^"]+)"', index)
    assert links == ["runs/group/two/report.html", "runs/one/report.html"]
    for link in links:
        page = (tmp_path / "site" / link).read_text()
        back = re.search(r'<a href="([^"#]+)">All runs</a>', page)
        assert back
        assert ((tmp_path / "site" / link).parent / back[1]).resolve() == (tmp_path / "site" / "index.html").resolve()
    assert not re.search(r'https?://|\bsrc="|<form', re.sub(r"<script.*?</script>", "", index, flags=re.S))
    assert made.bytes == sum(p.stat().st_size for p in (tmp_path / "site").rglob("*") if p.is_file())


def test_neither_paths_nor_credentials_of_this_machine(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = sorted(SECRETS)
    monkeypatch.setenv("MY_API_KEY", "value-of-a-variable")
    home = str(Path.home())
    run = json.loads((runs / "one" / "run.json").read_text())
    run["command"] = [
        "python",
        "-m",
        "reproduce",
        "paper",
        "--out",
        str(runs / "one"),
        "--hf-token",
        "hunter2hunter2",
        "--videos",
        "/mnt/disk7/star",
    ]
    run["note"] = " ".join(s for s in secret if s != "hunter2hunter2")
    run["machine"]["cache"] = f"{home}/.cache/huggingface and C:\\Users\\somebody\\models"
    run["settings"]["model.base"] = {"value": "/mnt/disk7/models/base", "source": f"ours: {runs}/one"}
    run["settings"]["hub.token"] = {"value": "plainword", "source": "ours"}
    run["settings"]["max_new_tokens"] = {"value": 8192, "source": "paper"}
    (runs / "one" / "run.json").write_text(json.dumps(run))
    rows = [{"what": "a", "where": "b", "why": f"{runs}/x.mp4: broken; password=hunter2hunter2", "stage": "propose"}]
    (runs / "one" / "failures.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    for stage in ("base", "iter-1"):
        path = runs / "one" / stage / "eval" / "egoschema" / "questions.jsonl"
        records = read_records(path)
        answer = f"it is in {runs}/one {secret[0]}"
        write_records(path, [replace(records[0], answer=answer, error="/mnt/disk7/video.mp4: torn"), *records[1:]])
    pairs = runs / "one" / "iter-1" / "pairs.jsonl"
    pairs.write_text(pairs.read_text().replace("red goes", f"the cookie jar at {runs}: red goes", 1))
    score = runs / "one" / "base" / "eval" / "egoschema" / "score.json"
    score.write_text(score.read_text().replace("runs/demo/base/model", f"{runs}/one/base/model"))

    write_bundle(runs, tmp_path / "site", Wanted(media="videos"))
    text = everything(tmp_path / "site")
    for word in (*secret, "plainword", str(runs), runs.parent.as_posix(), f"{home}/", "/mnt/disk7", "Users\\somebody", "C:\\\\Users"):
        assert word not in text, word
    assert LEFT_OUT in text
    assert "8192" in text, "a number of tokens is no credential"
    assert "the cookie jar at" in text, "texts of pairs are kept"
    assert "…/star" in text
    assert "…/one/base/model" in text


def test_what_is_not_known_beforehand_stops_the_bundle(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last look at every page does not rely on the scrubbing: without it nothing is written."""
    run = json.loads((runs / "one" / "run.json").read_text())
    (runs / "one" / "run.json").write_text(json.dumps(run | {"note": f"{runs}/one"}))
    monkeypatch.setattr(Scrubber, "run", lambda self, run: run)
    with pytest.raises(LeakError, match="nothing was written"):
        write_bundle(runs, tmp_path / "site")
    assert not (tmp_path / "site").exists()
    assert not (tmp_path / "site.partial").exists()


def test_the_page_of_a_scrubbed_run_is_else_the_same(runs: Path) -> None:
    found = read_run(runs / "one")
    scrubbed = Scrubber([runs]).run(found)
    assert [s.evaluations for s in scrubbed.stages] == [s.evaluations for s in found.stages]
    assert [s.pairs for s in scrubbed.stages] == [s.pairs for s in found.stages]
    assert [s.gates for s in scrubbed.stages] == [s.gates for s in found.stages]
    assert scrubbed.timings == found.timings


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("read https://example.org/a/b and 3/4 of it", True),
        ("max_new_tokens: 16384, pad_token_id: 151643", True),
        ("tokenizer=Qwen2Tokenizer", True),
        ("/home/someone/x.bin", False),
        ("file:///home/someone/x", False),
        ("~/models/base", False),
        ("api_key: 12345678", False),
        ("https://user:pa55word@example.org", False),
        ("Authorization: Bearer abcdefgh12345678", False),
    ],
)
def test_what_counts_as_a_path_or_a_credential(text: str, kept: bool) -> None:
    note = Scrubber([], environment={}).note(text)
    assert (note == text) is kept, note
    assert not re.search(r"someone|12345678|pa55|~/models", note)


def test_videos_go_along_up_to_the_limit_and_only_once(runs: Path, tmp_path: Path) -> None:
    for video in runs.rglob("*.mp4"):
        video.write_bytes(video.read_bytes() + bytes(200_000))
    whole = write_bundle(runs, tmp_path / "all", Wanted(media="videos"))
    files = sorted((tmp_path / "all" / "media").iterdir())
    assert whole.videos == len(files) == len({p.read_bytes() for p in files}) > 5
    assert whole.videos_left_out == 0
    size = sum(p.stat().st_size for p in files)
    limit = (1.05 * (whole.bytes - size) + 100_000 + size / 2) / 1e6
    part = write_bundle(runs, tmp_path / "part", Wanted(media="videos", max_mb=limit))
    assert part.bytes <= limit * 1e6
    assert 0 < part.videos < whole.videos
    assert part.videos_left_out > 0
    none = write_bundle(runs, tmp_path / "none", Wanted(media="none"))
    assert "data:image/webp" not in everything(tmp_path / "none")
    assert none.bytes < write_bundle(runs, tmp_path / "frames").bytes < whole.bytes
    with pytest.raises(UsageError, match="more than --max-mb"):
        write_bundle(runs, tmp_path / "no", Wanted(max_mb=0.01))
    assert not (tmp_path / "no").exists()


def test_a_record_cannot_make_it_copy_another_file(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "private.mp4").write_bytes(b"PRIVATE")
    (runs / "one" / "hf_home" / "link.mp4").symlink_to(tmp_path / "private.mp4")
    path = runs / "one" / "base" / "eval" / "egoschema" / "questions.jsonl"
    records = read_records(path)
    hostile = ["../../../private.mp4", str(tmp_path / "private.mp4"), "link.mp4", "../run.json"]
    write_records(path, [*(replace(r, video_path=h) for r, h in zip(records, hostile, strict=False)), *records[len(hostile) :]])
    pairs = runs / "one" / "iter-1" / "pairs.jsonl"
    rows = [json.loads(x) for x in pairs.read_text().splitlines()]
    for row, video in zip(rows, ["../../../private.mp4", str(tmp_path / "private.mp4"), "../hf_home/link.mp4"], strict=False):
        row["video"] = video
    pairs.write_text("".join(json.dumps(r) + "\n" for r in rows))
    write_bundle(runs, tmp_path / "site", Wanted(media="videos"))
    assert all(b"PRIVATE" not in p.read_bytes() for p in (tmp_path / "site").rglob("*") if p.is_file())


def test_an_older_bundle_is_replaced_and_nothing_else(runs: Path, tmp_path: Path) -> None:
    write_bundle(runs, tmp_path / "site")
    shutil.rmtree(runs / "group")
    write_bundle(runs, tmp_path / "site")
    assert not (tmp_path / "site" / "runs" / "group").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    for place in (tmp_path / "other", runs, tmp_path):
        with pytest.raises(UsageError):
            write_bundle(runs, place)
    assert (tmp_path / "other" / "thesis.txt").read_text() == "mine"
    assert (runs / "one" / "run.json").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no run"):
        write_bundle(tmp_path / "empty", tmp_path / "site2")


def test_the_command(runs: Path, tmp_path: Path) -> None:
    ok = CliRunner().invoke(app, ["bundle", str(runs), "--out", str(tmp_path / "site"), "--media", "none", "--json"])
    assert ok.exit_code == 0, ok.output
    assert json.loads(ok.stdout)["runs"] == 2
    (runs / "bad").mkdir()
    (runs / "bad" / "run.json").write_text("[]")
    found = CliRunner().invoke(app, ["bundle", str(runs), "--out", str(tmp_path / "site"), "--media", "none"])
    assert "index.html: " in found.output
    assert CliRunner().invoke(app, ["bundle", str(tmp_path / "nowhere"), "--out", str(tmp_path / "site")]).exit_code == 2


def test_a_run_that_cannot_be_read_is_left_out_and_named(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(run: Path) -> RunData:
        if run.name == "two":
            raise ReportError(f"{run}: no run here")
        return read_run(run)

    monkeypatch.setattr("harness.view.bundle.read_run", read)
    found = CliRunner().invoke(app, ["bundle", str(runs), "--out", str(tmp_path / "site"), "--media", "none"])
    assert found.exit_code == 4
    assert "group/two: left out: …/group/two: no run here" in found.output
    index = (tmp_path / "site" / "index.html").read_text()
    assert "group/two: left out" in index
    assert re.findall(r'<th scope="row"><a href="([^"]+)"', index) == ["runs/one/report.html"]


@pytest.mark.browser
@pytest.mark.skipif(find_browser() is None, reason="no Chromium here: the site was not looked at in a browser")
@pytest.mark.parametrize("width", [1366, 390])
def test_the_site_in_a_browser_from_files(runs: Path, tmp_path: Path, width: int) -> None:
    write_bundle(runs, tmp_path / "site", Wanted(media="videos"))
    shutil.rmtree(runs)
    binary = find_browser()
    assert binary
    with Browser(binary) as browser:
        browser.show(width, 844, mobile=width < 500)
        browser.open(tmp_path / "site" / "index.html", ready=READY)
        assert browser.run("document.documentElement.scrollWidth") == width
        link = browser.run("document.querySelector('#runs a').href")
        browser.open(link, ready=f"location.href === '{link}' && {READY}")
        browser.wait("document.querySelector('#q-detail video')?.readyState >= 1")
        assert browser.run("document.querySelector('#q-detail video').videoWidth") == 64
        assert browser.errors == []
        folder = (tmp_path / "site").resolve().as_uri()
        assert [r for r in browser.requests if not r.startswith((folder, "data:"))] == []
