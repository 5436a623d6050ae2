"""Find out what a server is and how it counts, with a few requests that nothing is timed of."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import httpx
import msgspec

from pytest_dynamo_bench.errors import DeploymentError, TargetError
from pytest_dynamo_bench.load.chat import Dialect
from pytest_dynamo_bench.outside import Name, Tokens, decoded
from pytest_dynamo_bench.plain_text import one_line, printable
from pytest_dynamo_bench.targets.service.address import Address
from pytest_dynamo_bench.traffic.prompts import COMMON_WORDS, WORDS

_POLL_SECONDS = 1.0
_FEWEST_WORDS = 32
_SHOWN_CHARACTERS = 300
_COUNTED = 16
_AT_A_TIME = 16
_REJECTED = (HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY)


@dataclass(frozen=True)
class Service:
    """A server as it was found.

    Attributes:
        address: where it is.
        model: the name that requests ask for.
        dialect: what it understands.
        is_dynamo: its requests are answered by Dynamo's frontend.
    """

    address: Address
    model: str
    dialect: Dialect
    is_dynamo: bool


async def wait_for_models(
    address: Address, ready_seconds: float, *, wanted: str | None = None
) -> list[str]:
    """Ask for the models until there are some, or until ``wanted`` is among them.

    Raises:
        DeploymentError: the server did not answer in time, or said no; with its last answer.
    """
    deadline = time.monotonic() + ready_seconds
    models: list[str] = []
    async with address.client() as client:
        while True:
            try:
                response = await client.get("/v1/models")
            except httpx.HTTPError as error:
                last = _plain(error)
            else:
                if response.status_code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
                    raise DeploymentError(_access_refused(address, response))
                models, last = _models(address, response)
            if models and (wanted is None or wanted in models):
                return models
            if time.monotonic() >= deadline:
                break
            await asyncio.sleep(_POLL_SECONDS)
    if models:
        return models
    raise DeploymentError(f"{address.url} did not list a model within {ready_seconds:g} s: {last}")


def _plain(error: httpx.HTTPError) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _text(address: Address, response: httpx.Response) -> str:
    """What a server answered, as an error shows it."""
    return one_line(address.access.secrets.redact(response.text), _SHOWN_CHARACTERS)


class _Model(msgspec.Struct):
    id: Name


class _Models(msgspec.Struct):
    data: list[_Model]


def _models(address: Address, response: httpx.Response) -> tuple[list[str], str]:
    text = _text(address, response)
    if response.status_code != HTTPStatus.OK:
        return [], f"GET /v1/models: HTTP {response.status_code}: {text}"
    try:
        listed = [printable(model.id) for model in decoded(response.content, _Models).data]
    except ValueError as error:
        return [], f"GET /v1/models is not a list of models ({error}): {text}"
    return listed, "the list of models is empty"


def _access_refused(address: Address, response: httpx.Response) -> str:
    given = "was not accepted" if address.access.headers else "is missing"
    return (
        f"{address.url} answered HTTP {response.status_code}: the API key {given}; give one with "
        f"--dynamo-api-key-env or --dynamo-api-key-file ({_text(address, response)})"
    )


def choose_model(url: str, listed: Sequence[str], wanted: str, given: str | None) -> str:
    """The name to ask for: the given one, else the benchmark's, which must be there.

    Raises:
        TargetError: the server has neither; the message lists what it has.
    """
    name = given or wanted
    if name in listed:
        return name
    has = ", ".join(listed)
    if given:
        raise TargetError(f"--dynamo-endpoint-model: {url} has no model {given!r}; it has {has}")
    raise TargetError(
        f"{url} has no model {wanted!r}, which the benchmark needs; it has {has}. If one of them "
        "is that model under another name, give that name with --dynamo-endpoint-model"
    )


async def probe(address: Address, model: str) -> Service:
    """Find out which fields the server takes, and which words it counts as one token.

    Raises:
        DeploymentError: it does not answer, or its counting cannot be understood.
    """
    async with address.client(timeout_seconds=120) as client:
        asking = _Asking(client, address, model)
        dialect = await asking.fields()
        words, template_tokens = await asking.words(dialect)
        is_dynamo = await asking.is_dynamo()
    dialect = dataclasses.replace(dialect, words=words, template_tokens=template_tokens)
    return Service(address, model, dialect, is_dynamo)


class _Asking:
    def __init__(self, client: httpx.AsyncClient, address: Address, model: str) -> None:
        self._client, self._address, self._model = client, address, model

    async def fields(self) -> Dialect:
        """What may be in a request: all, or all but Dynamo's own, or only OpenAI's."""
        refused = ""
        for dialect in (
            Dialect(),
            Dialect(extension=False),
            Dialect(extension=False, forced_length=False),
        ):
            response = await self._post("hello", dialect)
            if response.status_code == HTTPStatus.OK:
                return dialect
            if response.status_code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
                raise DeploymentError(_access_refused(self._address, response))
            refused = f"HTTP {response.status_code}: {_text(self._address, response)}"
            if response.status_code not in _REJECTED:
                break
        raise DeploymentError(
            f"{self._address.url} lists {self._model!r} but does not serve requests: {refused}"
        )

    async def words(self, dialect: Dialect) -> tuple[tuple[str, ...] | None, int]:
        """Words of one token each, None for the local target's, and tokens of the chat template."""
        seen = []
        for candidates in (WORDS, COMMON_WORDS):
            word = candidates[1]
            few = await self._tokens([word] * _COUNTED, dialect)
            many = await self._tokens([word] * 2 * _COUNTED, dialect)
            template = few - _COUNTED
            if many - few != _COUNTED or template < 0:
                seen.append(f"{_COUNTED} more words {word!r}: {many - few} more tokens")
                continue
            if candidates is WORDS:
                sample = [*candidates[::1024], candidates[-1]]
                if await self._tokens(sample, dialect) - template == len(sample):
                    return None, template
                seen.append(f"{len(sample)} words w0, w1024, …: not one token each")
                continue
            found = await self._single(list(candidates), template, dialect)
            found = await self._single_at_the_start(found, template, dialect)
            if len(found) >= _FEWEST_WORDS:
                return tuple(found), template
            seen.append(f"only {len(found)} of {len(candidates)} common words are one token")
        raise DeploymentError(
            f"{self._address.url} counts tokens in a way that rules out exact prompt lengths "
            f"({'; '.join(seen)}); does a gateway change prompts?"
        )

    async def _single(self, words: list[str], template: int, dialect: Dialect) -> list[str]:
        """Those of the words that are one token, by halving until what is left counts right."""
        if await self._tokens(words, dialect) - template == len(words):
            return words
        if len(words) == 1:
            return []
        half = len(words) // 2
        return [
            *await self._single(words[:half], template, dialect),
            *await self._single(words[half:], template, dialect),
        ]

    async def _single_at_the_start(
        self, words: list[str], template: int, dialect: Dialect
    ) -> list[str]:
        """Those that are one token at the start of a prompt too, where no space precedes them."""
        at_a_time = asyncio.Semaphore(_AT_A_TIME)

        async def tokens(word: str) -> int:
            async with at_a_time:
                return await self._tokens([word], dialect)

        counts = await asyncio.gather(*map(tokens, words))
        return [word for word, count in zip(words, counts, strict=True) if count == template + 1]

    async def is_dynamo(self) -> bool:
        """Whether the metrics beside the API are those of Dynamo's frontend."""
        try:
            response = await self._client.get("/metrics")
        except httpx.HTTPError:
            return False
        return response.status_code == HTTPStatus.OK and "dynamo_frontend" in response.text

    async def _tokens(self, words: Sequence[str], dialect: Dialect) -> int:
        response = await self._post(" ".join(words), dialect)
        if response.status_code == HTTPStatus.OK:
            for line in response.text.splitlines():
                usage = _usage(line)
                if usage is not None:
                    return usage
        raise DeploymentError(
            f"{self._address.url} does not count tokens: a request with "
            f"stream_options.include_usage came back without usage (HTTP {response.status_code}: "
            f"{_text(self._address, response)})"
        )

    async def _post(self, content: str, dialect: Dialect) -> httpx.Response:
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": "user", "content": content}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": 2,
        }
        if dialect.forced_length:
            body |= {"min_tokens": 2, "ignore_eos": True}
        if dialect.extension:
            body["nvext"] = {"extra_fields": ["worker_id", "timing"]}
        try:
            return await self._client.post("/v1/chat/completions", json=body)
        except httpx.HTTPError as error:
            raise DeploymentError(
                f"{self._address.url} does not serve requests: {_plain(error)}"
            ) from None


class _Usage(msgspec.Struct):
    prompt_tokens: Tokens | None = None


class _Event(msgspec.Struct):
    usage: _Usage | None = None


def _usage(line: str) -> int | None:
    """The prompt's tokens, if a line of a stream has them."""
    if not line.startswith("data:"):
        return None
    try:
        event = decoded(line.removeprefix("data:"), _Event)
    except ValueError:
        return None
    return event.usage.prompt_tokens if event.usage is not None else None
