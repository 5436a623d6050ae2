"""Any JSON in any field of a document: for what reads what others have written."""

from __future__ import annotations

import json

from hypothesis import strategies as st

NUMBERS = st.one_of(
    st.integers().map(str),
    st.sampled_from(
        ["9223372036854775808", "-9223372036854775809", "-1099511627776", "18446744073709551616",
         "1" * 400, "1" * 5000, "1e999", "-1e999", "NaN", "Infinity", "-Infinity", "-0", "-0.0",
         "1.5", "3.0", "1e-999", "1e300", "true", "false", "null"]
    ),
    st.floats().map(json.dumps),
)  # fmt: skip
TEXTS = st.one_of(
    st.text(max_size=6).map(json.dumps),
    st.sampled_from(['"nan"', '"two"', '"\\ud800"', '"\\u0000"', '"\\u202e"', '""', '"7"']),
    st.just(json.dumps("x" * 3000)),
)
ANY_JSON = st.recursive(
    st.one_of(NUMBERS, TEXTS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: f"[{','.join(items)}]"),
        st.lists(st.tuples(TEXTS, inner), max_size=3).map(
            lambda pairs: f"{{{','.join(f'{key}:{value}' for key, value in pairs)}}}"
        ),
    ),
    max_leaves=6,
) | st.sampled_from(["[" * 500 + "]" * 500, "[" * 100_000, '{"a":' * 2000 + "1" + "}" * 2000])


def _places(value, path=()):
    """The path of everything within JSON data."""
    items = value.items() if isinstance(value, dict) else ()
    items = enumerate(value) if isinstance(value, list) else items
    for key, inner in items:
        yield (*path, key)
        yield from _places(inner, (*path, key))


def _has(holder, key):
    if isinstance(holder, dict):
        return key in holder
    return isinstance(holder, list) and key < len(holder)


@st.composite
def odd_documents(draw, documents):
    """The texts of JSON documents with up to three fields replaced, left out, or there twice."""
    documents = json.loads(json.dumps(documents))
    places = list(_places(documents))
    literals = {}
    for number in range(draw(st.integers(1, 3))):
        *path, last = draw(st.sampled_from(places))
        holder = documents
        for key in path:
            # Another change may have taken it away.
            holder = holder[key] if _has(holder, key) else None
        if not _has(holder, last):
            continue
        if path and draw(st.integers(0, 9)) == 0:
            del holder[last]
            continue
        old, new = json.dumps(holder[last]), draw(ANY_JSON)
        if isinstance(holder, dict) and draw(st.integers(0, 4)) == 0:
            both = [old, new] if draw(st.booleans()) else [new, old]
            new = f",{json.dumps(last)}:".join(both)
        mark = f"<{number}>"
        holder[last], literals[json.dumps(mark)] = mark, new
    texts = [json.dumps(document) for document in documents]
    for mark, literal in literals.items():
        texts = [text.replace(mark, literal) for text in texts]
    return texts
