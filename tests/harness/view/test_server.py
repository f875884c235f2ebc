"""`harness view`: what it shows, and what it refuses. Every refusal is tried over a real socket."""

from __future__ import annotations

import http.client
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.view.files import NotAllowed, Part, open_video, part_asked
from harness.view.pages import Site
from harness.view.runs import facts, find_runs, fingerprint
from harness.view.server import Viewer
from tests.harness.fake_run import write_fake_run

VIDEO = bytes(range(256)) * 40


@contextmanager
def served(root: Path, data: list[Path] | None = None) -> Iterator[Viewer]:
    server = Viewer(Site(root, data or []))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, a video, and beside them what must never be read."""
    top = tmp_path_factory.mktemp("top")
    runs = top / "runs"
    write_fake_run(runs / "one", iterations=2, sizes={"egoschema": 24, "nextqa": 16}, videos=True)
    write_fake_run(runs / "group" / "two", iterations=1, sizes={"egoschema": 24}, gates=False)
    (runs / "clip.mp4").write_bytes(VIDEO)
    (runs / "secret.txt").write_text("SECRET")
    (top / "outside.mp4").write_bytes(b"SECRET outside")
    (runs / "out.mp4").symlink_to(top / "outside.mp4")
    (runs / "outfolder").symlink_to(top)
    (runs / "text.mp4").symlink_to(runs / "secret.txt")
    (runs / "inside.mp4").symlink_to(runs / "clip.mp4")
    (runs / "folder.mp4").mkdir()
    os.mkfifo(runs / "pipe.mp4")
    return runs


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[Viewer]:
    with served(root) as s:
        yield s


def ask(
    server: Viewer, path: str, *, method: str = "GET", headers: dict[str, str] | None = None, token: bool = True
) -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=20)
    try:
        connection.request(method, f"/{server.token}{path}" if token else path, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read(), {k.lower(): v for k, v in answer.getheaders()}
    finally:
        connection.close()


def raw(server: Viewer, text: str) -> bytes:
    with socket.create_connection(server.server_address[:2], timeout=20) as s:  # type: ignore[arg-type]
        s.sendall(text.encode("latin-1"))
        s.shutdown(socket.SHUT_WR)
        out = b""
        while chunk := s.recv(65536):
            out += chunk
        return out


def test_the_index_names_all_runs_and_a_report_opens(server: Viewer) -> None:
    status, body, headers = ask(server, "/")
    page = body.decode()
    assert status == 200
    assert headers["content-type"] == "text/html; charset=utf-8"
    links = re.findall(r'<th scope="row"><a href="([^"]+)"', page)
    assert sorted(x.partition("/run/")[2] for x in links) == ["group/two", "one"]
    for link in links:
        status, body, _ = ask(server, link, token=False)
        assert status == 200
        assert b'id="questions"' in body
        assert f'href="/{server.token}/"'.encode() in body, "no way back to the index"


def test_any_two_stages_of_two_runs_side_by_side(server: Viewer) -> None:
    status, body, _ = ask(server, "/compare?a=group/two/base&b=one/iter-2")
    assert status == 200
    assert "Iteration 2 of one" in body.decode()
    assert "Base of two" in body.decode()
    for wrong in ("a=one/base&b=one/iter-9", "a=one/base", "a=nowhere/base&b=one/base", "a=../top/base&b=one/base", "a=&b="):
        assert ask(server, f"/compare?{wrong}")[0] == 404


@pytest.mark.parametrize("path", ["/", "/run/one", "/media/0/clip.mp4", "/state", "/x" + "a" * 32 + "/"])
def test_nothing_without_the_token(server: Viewer, path: str) -> None:
    assert ask(server, path, token=False)[:2] == (404, b"not found\n")
    other = server.token[:-1] + ("A" if server.token[-1] != "A" else "B")
    assert ask(server, f"/{other}{path}", token=False)[:2] == (404, b"not found\n")


def test_tokens_are_long_and_new_each_time(root: Path) -> None:
    tokens = set()
    for _ in range(3):
        with served(root) as s:
            tokens.add(s.token)
    assert len(tokens) == 3
    assert all(len(t) >= 32 for t in tokens)


def test_it_listens_on_loopback_only(server: Viewer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    assert server.address.startswith("http://127.0.0.1:")


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "127.0.0.1:{port}.evil.example", ""])
def test_other_host_names_are_refused(server: Viewer, host: str) -> None:
    port = server.server_address[1]
    answer = raw(server, f"GET /{server.token}/ HTTP/1.1\r\nHost: {host.format(port=port)}\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 403")
    assert b"<html" not in answer


def test_no_host_and_two_hosts_are_refused(server: Viewer) -> None:
    port = server.server_address[1]
    for hosts in ("", f"Host: 127.0.0.1:{port}\r\nHost: evil.example\r\n"):
        assert raw(server, f"GET /{server.token}/ HTTP/1.1\r\n{hosts}Connection: close\r\n\r\n").startswith(b"HTTP/1.1 403")
    good = raw(server, f"GET /{server.token}/ HTTP/1.1\r\nHost: LOCALHOST:{port}\r\nConnection: close\r\n\r\n")
    assert good.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 200),
        ({"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}, 200),
        ({"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"}, 200),
    ],
)
def test_other_sites_may_link_but_not_load(server: Viewer, headers: dict[str, str], status: int) -> None:
    for path in ("/state", "/media/0/clip.mp4", "/run/one"):
        assert ask(server, path, headers=headers)[0] == status
    own = {"Origin": f"http://127.0.0.1:{server.server_address[1]}"}
    assert ask(server, "/state", headers=own)[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_it_only_reads(server: Viewer, root: Path, method: str) -> None:
    before = sorted((str(p), p.lstat().st_mtime_ns) for p in root.rglob("*"))
    status, _, headers = ask(server, "/media/0/clip.mp4", method=method)
    assert (status, headers["allow"]) == (405, "GET, HEAD")
    assert sorted((str(p), p.lstat().st_mtime_ns) for p in root.rglob("*")) == before


REFUSED = [
    "../outside.mp4",
    "%2e%2e/outside.mp4",
    "..%2foutside.mp4",
    "one/../../outside.mp4",
    "/etc/passwd",
    "%2fetc%2fpasswd",
    "out.mp4",
    "outfolder/outside.mp4",
    "text.mp4",
    "secret.txt",
    "folder.mp4",
    "pipe.mp4",
    "nowhere.mp4",
    "clip.mp4%00.txt",
    "secret.txt%00.mp4",
    "./clip.mp4",
    "one//clip.mp4",
    "..\\outside.mp4",
    "%ff.mp4",
    "",
    "one/run.json",
]


@pytest.mark.parametrize("path", REFUSED)
def test_paths_that_are_not_served(server: Viewer, path: str) -> None:
    status, body, _ = ask(server, f"/media/0/{path}")
    assert (status, body) == (404, b"not found\n")


@pytest.mark.parametrize("path", ["/media/1/clip.mp4", "/media/-1/clip.mp4", "/media/x/clip.mp4", "/media/%D9%A0/clip.mp4"])
def test_other_roots_are_not_served(server: Viewer, path: str) -> None:
    assert ask(server, path)[0] == 404


@pytest.mark.parametrize("name", ["../runs/one", "outfolder/runs/one", "one/../one", "one/iter-1", "nowhere", "/", "one/data", "%00"])
def test_runs_outside_of_the_folder_are_not_served(server: Viewer, name: str) -> None:
    assert ask(server, f"/run/{name}")[0] == 404
    assert ask(server, f"/state?run={name}")[0] == 404


@given(st.text(max_size=40))
def test_no_path_at_all_leads_out(root: Path, text: str) -> None:
    try:
        with open_video(root, text) as file:
            assert Path(f"/proc/self/fd/{file.fileno()}").resolve().is_relative_to(root.resolve())
    except NotAllowed:
        pass


def test_a_link_put_in_the_way_meanwhile_gains_nothing(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The path is checked, then a folder of it is exchanged for a link that leads out, then the file is opened."""
    top = tmp_path / "top"
    (top / "a").mkdir(parents=True)
    (top / "a" / "v.mp4").write_bytes(b"fine")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "v.mp4").write_bytes(b"SECRET")
    check = Path.is_relative_to

    def exchanged(self: Path, *others: Path) -> bool:  # type: ignore[override]
        answer = check(self, *others)
        if (top / "a").is_dir() and not (top / "a").is_symlink():
            (top / "a").rename(top / "old")
            (top / "a").symlink_to(tmp_path / "b")
        return answer

    monkeypatch.setattr(Path, "is_relative_to", exchanged)
    with pytest.raises(NotAllowed):
        open_video(top, "a/v.mp4")


def test_a_link_within_the_folder_is_served(server: Viewer) -> None:
    assert ask(server, "/media/0/inside.mp4")[:2] == (200, VIDEO)


def test_a_second_folder_is_served_when_asked_for(root: Path, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "v.mp4").write_bytes(b"more")
    with served(root, [tmp_path / "more"]) as s:
        assert ask(s, "/media/1/v.mp4")[:2] == (200, b"more")
        assert ask(s, "/media/2/v.mp4")[0] == 404


@pytest.mark.parametrize(
    ("asked", "status", "first", "last"),
    [
        ("bytes=0-9", 206, 0, 9),
        ("bytes=100-", 206, 100, len(VIDEO) - 1),
        ("bytes=-5", 206, len(VIDEO) - 5, len(VIDEO) - 1),
        (f"bytes=5-{10**12}", 206, 5, len(VIDEO) - 1),
        (f"bytes=-{10**12}", 206, 0, len(VIDEO) - 1),
        ("bytes=9-3", 200, 0, len(VIDEO) - 1),
        ("bytes=0-1,5-6", 200, 0, len(VIDEO) - 1),
        ("bytes=-", 200, 0, len(VIDEO) - 1),
        ("lines=0-1", 200, 0, len(VIDEO) - 1),
        ("bytes=x-1", 200, 0, len(VIDEO) - 1),
    ],
)
def test_parts_of_a_video(server: Viewer, asked: str, status: int, first: int, last: int) -> None:
    for method in ("GET", "HEAD"):
        found, body, headers = ask(server, "/media/0/clip.mp4", method=method, headers={"Range": asked})
        assert found == status
        assert body == (VIDEO[first : last + 1] if method == "GET" else b"")
        assert int(headers["content-length"]) == last - first + 1
        assert headers["accept-ranges"] == "bytes"
        assert headers.get("content-range") == (f"bytes {first}-{last}/{len(VIDEO)}" if status == 206 else None)
    assert headers["content-type"] == "video/mp4"


@pytest.mark.parametrize("asked", [f"bytes={len(VIDEO)}-", f"bytes={10**15}-", "bytes=-0"])
def test_a_part_that_is_not_there(server: Viewer, asked: str) -> None:
    status, _, headers = ask(server, "/media/0/clip.mp4", headers={"Range": asked})
    assert (status, headers["content-range"]) == (416, f"bytes */{len(VIDEO)}")


@given(st.integers(1, 60), st.integers(0, 80), st.integers(0, 80))
def test_parts_lie_in_the_file(size: int, first: int, last: int) -> None:
    for header in (f"bytes={first}-{last}", f"bytes={first}-", f"bytes=-{last}"):
        try:
            part = part_asked(header, size)
        except ValueError:
            continue
        assert part is None or 0 <= part.first <= part.last < size
        assert part is None or part.length == Part(part.first, part.last).length > 0


def test_answers_say_that_they_are_private(server: Viewer) -> None:
    for path in ("/", "/run/one", "/media/0/clip.mp4", "/nowhere"):
        headers = ask(server, path)[2]
        assert headers["cache-control"] == "no-store"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["x-frame-options"] == "DENY"
        assert "python" not in headers["server"].lower()


def test_an_unfinished_run_is_read_anew(tmp_path: Path) -> None:
    run = write_fake_run(tmp_path / "runs" / "live", iterations=1, sizes={"egoschema": 24}, gates=False)
    later = write_fake_run(tmp_path / "later", iterations=2, sizes={"egoschema": 24}, gates=False)
    with served(run.parent) as s:
        before, page = ask(s, "/state?run=live")[1], ask(s, "/run/live")[1]
        assert ask(s, "/state?run=live")[1] == before
        assert b"Iteration 2" not in page
        assert f'data-version="{before.decode().strip()}"'.encode() in page
        (run / "iter-2" / "eval" / "egoschema").mkdir(parents=True)
        (run / "iter-2" / "eval" / "egoschema" / "journal.jsonl").write_text('{"header": 1}\n{"key": 1}\n{"key": 2}\n')
        assert b"2 answers of an unfinished evaluation" in ask(s, "/")[1]
        for name in ("questions.jsonl", "score.json"):
            (run / "iter-2" / "eval" / "egoschema" / name).write_bytes((later / "iter-2" / "eval" / "egoschema" / name).read_bytes())
        assert ask(s, "/state?run=live")[1] != before
        assert b"Iteration 2" in ask(s, "/run/live")[1]


def test_a_broken_run_does_not_end_the_others(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    write_fake_run(runs / "fine", iterations=1, sizes={"egoschema": 24}, gates=False)
    bad = write_fake_run(runs / "bad", iterations=1, sizes={"egoschema": 24}, gates=False)
    (bad / "base" / "eval" / "egoschema" / "score.json").write_text("{")
    (runs / "odd").mkdir()
    (runs / "odd" / "run.json").write_text("[" * 100_000)
    with served(runs) as s:
        page = ask(s, "/")[1].decode()
        assert page.count('<th scope="row">') == 3
        assert "cannot be shown" in page
        assert str(tmp_path) not in page
        assert ask(s, "/run/fine")[0] == 200
        assert ask(s, "/run/odd")[0] in (200, 404)


def test_a_reader_that_goes_away_harms_nobody(server: Viewer) -> None:
    port = server.server_address[1]
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", port)) as s:
            s.sendall(f"GET /{server.token}/run/one HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
    assert ask(server, "/")[0] == 200


def test_runs_are_found_below_but_not_inside_each_other_nor_behind_links(root: Path) -> None:
    assert [r.relative_to(root).as_posix() for r in find_runs(root)] == ["group/two", "one"]
    assert find_runs(root / "one") == [root / "one"]
    assert facts(root / "one", root / "one").name == "."
    evaluation = root / "one" / "base" / "eval"
    assert find_runs(evaluation) == [evaluation]
    assert [s.key for s in facts(evaluation, evaluation).stages] == ["model"]


def test_the_index_states_the_means_of_the_scores(root: Path) -> None:
    from harness.records import read_evaluations

    found = facts(root, root / "one")
    for mean, stage in ((found.first_mean, "base"), (found.last_mean, "iter-2")):
        scores = [e.score.strict_pct for e in read_evaluations(root / "one" / stage).values()]
        assert mean == pytest.approx(sum(scores) / len(scores))
    assert found.questions == 40
    assert found.verdict in {"pass", "fail", "inconclusive", "integrity"}


def test_a_fingerprint_follows_the_files(tmp_path: Path) -> None:
    run = write_fake_run(tmp_path / "r", iterations=1, sizes={"egoschema": 24}, gates=False)
    before = fingerprint(run)
    assert fingerprint(run) == before
    time.sleep(0.01)
    (run / "failures.jsonl").write_text("")
    assert fingerprint(run) != before
