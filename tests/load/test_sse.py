"""Any split of any stream gives the same events."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pytest_dynamo_bench.load.sse import parse_events

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
    return [(name, data) for name, data, _ in parse_events(enumerate(pieces))]


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


def test_data_lines_are_joined_and_the_arrival_is_that_of_the_piece_that_ended_the_event():
    pieces = [(10, b"data: a\nda"), (20, b"ta: b\n"), (30, b"\ndata: c\n\n")]
    found = list(parse_events(pieces))
    assert [(data, piece) for _, data, piece in found] == [(b"a\nb", 30), (b"c", 30)]


def test_an_event_without_its_empty_line_is_dropped():
    assert events([b"data: whole\n\ndata: half\n"]) == [(b"", b"whole")]
