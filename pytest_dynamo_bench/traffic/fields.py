"""Checks of the fields of a traffic source or file, with messages that name the field."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from pytest_dynamo_bench.errors import BenchmarkError, TrafficError
from pytest_dynamo_bench.outside import MOST, plain, shown


def check_whole(owner: str, name: str, value: object, minimum: int) -> None:
    """A field must be a whole number of at least ``minimum``.

    Raises:
        BenchmarkError: it isn't.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise BenchmarkError(
            f"{owner}: {name}: must be a whole number, {minimum} or more, got {value!r}"
        )


def check_number(
    owner: str,
    name: str,
    value: object,
    *,
    above: float | None = None,
    least: float | None = None,
    most: float | None = None,
) -> None:
    """A field must be a number within limits: greater than, at least, at most.

    Raises:
        BenchmarkError: it isn't.
    """
    limits = [f"greater than {above:g}"] if above is not None else []
    limits += [f"at least {least:g}"] if least is not None else []
    limits += [f"at most {most:g}"] if most is not None else []
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not (above is None or value > above)
        or not (least is None or value >= least)
        or not (most is None or value <= most)
    ):
        raise BenchmarkError(
            f"{owner}: {name}: must be a number {' and '.join(limits)}, got {value!r}"
        )


def problem_of_number(value: object, minimum: float, most: float = MOST) -> str:
    """Why a value of a file is no finite number within limits; empty when it is one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"must be a number, got {shown(value)}"
    if not value >= minimum:
        return f"must be {minimum:g} or more, got {shown(value)}"
    return "" if value <= most else f"must be {most:g} at most, got {shown(value)}"


def problem_of_name(value: object) -> str:
    """Why a value of a file names nothing; empty when it is a text, a whole number or null."""
    if value is None or isinstance(value, str | int):
        return ""
    return f"must be a text or a whole number, got {shown(value)}"


def number_of(
    row: Mapping[str, Any],
    name: str,
    minimum: float,
    fail: Callable[[str, str], TrafficError],
    *,
    most: float = MOST,
    default: float | None = None,
) -> float:
    """A number in a row of a file.

    Args:
        fail: makes the error of a field's name and what is wrong.

    Raises:
        TrafficError: it is missing, or none within the limits.
    """
    value = row.get(name, default)
    if value is None:
        raise fail(name, "is missing")
    if problem := problem_of_number(value, minimum, most):
        raise fail(name, problem)
    return float(value)


def object_of(text: str, where: str) -> dict[str, Any]:
    """A JSON object of a file; otherwise as :func:`json_of`."""
    found = json_of(text, where)
    if not isinstance(found, dict):
        raise TrafficError(f"{where}: must be a JSON object, got {type(found).__name__}")
    return found


def json_of(text: str, where: str) -> Any:
    """JSON of a file.

    Args:
        where: names the file, and the line where ``text`` is one.

    Raises:
        TrafficError: it is none; the message has the place.
    """
    try:
        return plain(text)
    except json.JSONDecodeError as error:
        line = f", line {error.lineno}" if "\n" in text.strip() else ""
        raise TrafficError(
            f"{where}{line}: is not JSON ({error.msg} at column {error.colno})"
        ) from None
    except ValueError as error:
        raise TrafficError(f"{where}: cannot be read ({error})") from None
