"""Checks of the fields of a traffic source, with messages that name the field."""

from __future__ import annotations

from pytest_dynamo_bench.errors import BenchmarkError


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
