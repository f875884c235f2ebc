"""What is asked together, and which process asks it."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from harness.run.requests import Chunk, Row, chunked, deal


def rows(videos: list[int]) -> list[Row]:
    return [Row(i, "task", i, "?", None, f"v{v}", None, f"q{i}") for i, v in enumerate(videos)]


def dealt(chunks: list[Chunk], processes: int) -> list[list[Chunk]]:
    return [[chunks[i] for i in hand] for hand in deal(chunks, processes)]


SETS = st.lists(st.integers(0, 12), min_size=1, max_size=60)


@given(videos=SETS, at_least=st.integers(1, 20), processes=st.integers(1, 4))
def test_every_question_is_dealt_once_and_videos_stay_whole(videos: list[int], at_least: int, processes: int) -> None:
    chunks = chunked(rows(videos), at_least, processes)
    hands = dealt(chunks, processes)
    asked = [row.index for hand in hands for chunk in hand for group in chunk for row in group.rows]
    assert sorted(asked) == list(range(len(videos)))
    groups = [group.video for hand in hands for chunk in hand for group in chunk]
    assert len(groups) == len(set(groups)) == len(set(videos))
    for hand in hands:
        assert [chunks.index(c) for c in hand] == sorted(chunks.index(c) for c in hand)


@given(videos=SETS, at_least=st.integers(1, 20))
def test_chunks_are_full_but_the_last(videos: list[int], at_least: int) -> None:
    counts = [sum(len(group.rows) for group in chunk) for chunk in chunked(rows(videos), at_least)]
    assert all(count >= at_least for count in counts[:-1])


def test_hands_weigh_alike() -> None:
    chunks = chunked(rows([v for v in range(64) for _ in range(1 + v % 9)]), 8, 4)
    weights = [sum(8 + len(group.rows) for chunk in hand for group in chunk) for hand in dealt(chunks, 4)]
    assert max(weights) - min(weights) <= max(sum(8 + len(g.rows) for g in chunk) for chunk in chunks)
    assert all(deal(chunks, 4))


def test_long_videos_weigh_more(tmp_path: Path) -> None:
    """One video of nine times the bytes of the others is decoded by one process while the other one has all the rest."""
    made = rows(list(range(9)))
    for i, row in enumerate(made):
        row.video = str(tmp_path / f"{i}.mp4")
        Path(row.video).write_bytes(bytes(90_000 if i == 4 else 1000))
    hands = dealt(chunked(made, 1), 2)
    alone = next(hand for hand in hands if any(group.video.endswith("4.mp4") for chunk in hand for group in chunk))
    assert sum(map(len, alone)) < sum(map(len, hands[1 - hands.index(alone)])) / 2
    assert sum(map(len, hands[0])) + sum(map(len, hands[1])) == 9


def test_a_small_set_is_split_so_that_nobody_waits() -> None:
    assert len(chunked(rows(list(range(12))), 384)) == 1
    assert [len(hand) for hand in deal(chunked(rows(list(range(12))), 384, 3), 3)] == [1, 1, 1]
