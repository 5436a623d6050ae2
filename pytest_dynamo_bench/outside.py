"""The door for values from outside: what a server, a file or a cluster says, by its type.

What may be said is declared as msgspec Structs whose numbers have limits. :func:`admitted` takes
each field on its own, so that one that cannot be costs that field and not what is beside it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, MutableMapping
from types import UnionType
from typing import Annotated, Any, TypeVar, get_args

import msgspec

MOST = 2**53
"""The largest whole number of which all smaller ones are doubles too."""
MOST_TOKENS = 2**40
Count = Annotated[int, msgspec.Meta(ge=0, le=MOST)]
Tokens = Annotated[int, msgspec.Meta(ge=0, le=MOST_TOKENS)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Amount = Annotated[float, msgspec.Meta(ge=0, le=MOST)]
"""A number that is finite and not negative, such as a time."""
Finite = Annotated[float, msgspec.Meta(ge=-MOST, le=MOST)]
Rank = Annotated[int, msgspec.Meta(ge=0, le=2**16)]
Name = Annotated[str, msgspec.Meta(max_length=500)]
_SHOWN_CHARACTERS = 60

T = TypeVar("T")
S = TypeVar("S", bound=msgspec.Struct)


def plain(data: bytes | str) -> Any:
    """JSON as plain data, with the numbers beyond JSON that some programs write (NaN, 1e999).

    Raises:
        ValueError: it is no JSON, no text, or nested beyond reason.
    """
    try:
        return json.loads(data if isinstance(data, str) else data.decode("utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def decoded(data: bytes | str, kind: type[T]) -> T:
    """JSON as a type, all of it or nothing.

    Raises:
        ValueError: it is no JSON, or of another type; the message names the field.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    except ValueError:
        return msgspec.convert(plain(data), kind)


def admitted(kind: type[S], value: object, odd: MutableMapping[str, Any], name: str = "") -> S:
    """Plain data as a Struct, each field on its own; one that cannot be has its default.

    Args:
        kind: a Struct all of whose fields have a default.
        odd: filled with the impossible fields and their values.
        name: of the whole, where it may be of another type altogether.
    """
    try:
        return msgspec.convert(value, kind)
    except ValueError:
        pass
    if not isinstance(value, Mapping):
        odd[name] = value
        return kind()
    found: dict[str, Any] = {}
    for item in msgspec.structs.fields(kind):
        if item.encode_name not in value:
            continue
        said = value[item.encode_name]
        # Of lists and maps of structs nothing is kept where one is odd.
        choices = get_args(item.type) if isinstance(item.type, UnionType) else (item.type,)
        inner = next(filter(_is_struct, choices), None)
        if inner is not None and said is not None:
            found[item.name] = admitted(inner, said, odd, item.encode_name)
            continue
        try:
            found[item.name] = msgspec.convert(said, item.type)
        except ValueError:
            odd[item.encode_name] = said
    return kind(**found)


def _is_struct(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def shown(value: object, hide: Callable[[str], str] = str) -> str:
    """A value as a message shows it: its beginning, whatever it is.

    Args:
        hide: takes secrets out of the whole text, before it is cut.
    """
    try:
        text = hide(repr(value))
    except (ValueError, RecursionError):
        # A number of thousands of digits, or something nested beyond reason.
        return f"a very long {type(value).__name__}"
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"
