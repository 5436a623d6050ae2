"""Text from elsewhere, made safe to print: servers and users put anything into an error."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

LONGEST = 600
# A terminal acts on these: escape sequences as a whole, then what is left of control characters,
# and characters that reverse the direction of the text around them.
_SEQUENCES = re.compile(
    "\x1b\\[[0-?]*[ -/]*[@-~]|\x1b\\][^\x07\x1b]*(?:\x07|\x1b\\\\)?|\x1b[@-Z\\\\-_]?"
)
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)

HIDDEN = "***"
# Values of variables with such names are never shown.
SECRET_NAME = re.compile(
    r"TOKEN$|_TOKEN(?!S|IZER)|SECRET|PASSWORD|API_?KEY|_KEY$|CREDENTIAL", re.IGNORECASE
)
# So much of the beginning of a secret is taken for a part of it anywhere, or at the end of a text.
_PART, _LAST_PART = 8, 4

T = TypeVar("T")


@dataclass(frozen=True)
class Secrets:
    """Values that must not be written anywhere.

    A text is redacted before it is cut: a half of a secret is not distinguished from other text.
    """

    values: frozenset[str] = frozenset()

    def redact(self, text: str) -> str:
        """The text with every secret in it replaced, and every beginning of one.

        Who wrote the text may have cut a secret, so that only its beginning is there.
        """
        text = self._whole(text)
        for value in sorted(self.values, key=len, reverse=True):
            while len(value) > _PART and (at := text.find(value[:_PART])) >= 0:
                end = at + _PART
                while text[end : end + 1] == value[end - at : end - at + 1] != "":
                    end += 1
                text = text[:at] + HIDDEN + text[end:]
            for length in range(min(len(value) - 1, _PART), _LAST_PART - 1, -1):
                if text.endswith(value[:length]):
                    text = text[:-length] + HIDDEN
                    break
        return text

    def clean(self, data: T) -> T:
        """Plain data with every secret in its strings replaced."""
        return _map_strings(data, self._whole) if self.values else data

    def _whole(self, text: str) -> str:
        for value in sorted(self.values, key=len, reverse=True):
            text = text.replace(value, HIDDEN)
        return text


NO_SECRETS = Secrets()


def secrets_in(headers: Mapping[str, str]) -> Secrets:
    """The values of headers, and what follows ``Bearer``, also as JSON and Python write them."""
    found = set()
    for value in headers.values():
        for part in (value, value.partition(" ")[2].strip()):
            if len(part) >= _LAST_PART:
                found |= {part, json.dumps(part)[1:-1], repr(part)[1:-1]}
    return Secrets(frozenset(found))


def _map_strings(data: Any, change: Any) -> Any:
    if isinstance(data, str):
        return change(data)
    if isinstance(data, Mapping):
        return {_map_strings(k, change): _map_strings(v, change) for k, v in data.items()}
    if isinstance(data, list | tuple):
        return type(data)(_map_strings(item, change) for item in data)
    return data


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


def did_you_mean(
    name: str, known: Iterable[str], *, before: str = "", after: str = "", cutoff: float = 0.6
) -> str:
    """A question with the closest known name, for an error; empty where none is close.

    Args:
        name: that is not known.
        known: names that there are.
        before: put in front of a question.
        after: put behind it.
        cutoff: how alike two names must be, from 0 to 1.
    """
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"{before}did you mean {close[0]!r}?{after}" if close else ""
