"""Text from elsewhere, made safe to print: servers and users put anything into an error."""

from __future__ import annotations

import re

LONGEST = 600
# A terminal acts on these: escape sequences as a whole, then what is left of control characters,
# and characters that reverse the direction of the text around them.
_SEQUENCES = re.compile(
    "\x1b\\[[0-?]*[ -/]*[@-~]|\x1b\\][^\x07\x1b]*(?:\x07|\x1b\\\\)?|\x1b[@-Z\\\\-_]?"
)
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str, longest: int | None = None) -> str:
    """The text without what a terminal would act on, or cannot encode.

    Line feeds and tabs are kept.

    Args:
        text: from elsewhere.
        longest: cut in the middle what is longer, and say how much is missing.
    """
    if longest is not None and len(text) > 4 * longest:
        # The middle is dropped before it is looked at: it may be a megabyte.
        missing = len(text) - 3 * longest
        text = f"{text[: 2 * longest]}{text[-longest:]}"
    else:
        missing = 0
    clean = _CONTROL.sub("\ufffd", _SEQUENCES.sub("", text))
    if longest is None or len(clean) <= longest:
        return clean
    head, tail = longest * 2 // 3, longest // 4
    missing += len(clean) - head - tail
    return f"{clean[:head]} … [{missing:,} characters left out] … {clean[-tail:]}"


def one_line(text: str, longest: int = LONGEST) -> str:
    """The text as one printable line of limited length."""
    return printable(" ".join(printable(text, 4 * longest).split()), longest)
