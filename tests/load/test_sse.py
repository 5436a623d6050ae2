"""Any split of any stream gives the same events."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pytest_dynamo_bench.load.sse import EventReader

LINES = st.lists(
    st.one_of(
        st.text("aü→ :", max_size=8).map(lambda text: f"data: {text}"),
        st.just("data:"),
        st.just("event: error"),
        st.just(": a comment"),
        st.just("retry: 3"),
        st.just(""),
    ),
    max_size=12,
)


def events(pieces):
    reader = EventReader()
    return [event for piece in pieces for event in reader.read(piece)]


@given(LINES, st.sampled_from(["\n", "\r\n", "\r"]), st.data())
def test_every_split_gives_the_same_events(lines, ending, data):
    body = ending.join([*lines, "", ""]).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=6)))
    pieces = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    assert events(pieces) == events([body])


@given(LINES)
def test_line_endings_make_no_difference(lines):
    bodies = [ending.join([*lines, "", ""]).encode() for ending in ("\n", "\r\n", "\r")]
    assert events([bodies[0]]) == events([bodies[1]]) == events([bodies[2]])


@given(st.lists(st.binary(max_size=40), max_size=8))
def test_garbage_never_raises(pieces):
    events(pieces)


def test_data_lines_are_joined_and_come_with_the_piece_that_ends_the_event():
    reader = EventReader()
    pieces = [b"data: a\nda", b"ta: b\n", b"\ndata: c\n\n"]
    found = [[data for _, data in reader.read(piece)] for piece in pieces]
    assert found == [[], [], [b"a\nb", b"c"]]


@given(LINES, st.sampled_from(["\n", "\r\n", "\r"]), st.integers(0, 200), st.text("a1", max_size=3))
def test_between_events_means_that_nothing_came_before(lines, ending, cut, text):
    reader = EventReader()
    reader.read(ending.join([*lines, "", ""]).encode()[:cut])
    if reader.between_events:
        assert reader.read(b"data: %s\n\n" % text.encode()) == [(b"", text.encode())]


def test_an_event_without_its_empty_line_is_dropped():
    assert events([b"data: whole\n\ndata: half\n"]) == [(b"", b"whole")]
