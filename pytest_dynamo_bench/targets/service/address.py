"""Where a service is and how one may talk to it; secrets stay out of whatever is written."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from pytest_dynamo_bench.errors import TargetError
from pytest_dynamo_bench.plain_text import HIDDEN, Secrets, secrets_in

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


@dataclass(frozen=True)
class Tls:
    """Whom to trust, and who we are.

    Attributes:
        ca_file: certificates to trust instead of the system's, PEM.
        certificate_file: our own certificate, PEM, where the server asks for one.
        key_file: its private key; may be in ``certificate_file`` too.
        verify: False accepts any certificate.
    """

    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None
    verify: bool = True

    def context(self) -> ssl.SSLContext:
        """What connections are made with.

        Raises:
            TargetError: a file is missing or is not what it should be.
        """
        for option, path in (
            ("--dynamo-tls-ca", self.ca_file),
            ("--dynamo-tls-certificate", self.certificate_file),
            ("--dynamo-tls-key", self.key_file),
        ):
            if path is not None and not path.is_file():
                raise TargetError(f"{option}: {path}: no such file")
        if self.key_file is not None and self.certificate_file is None:
            raise TargetError("--dynamo-tls-key: needs --dynamo-tls-certificate too")
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
        except ssl.SSLError as error:
            raise TargetError(
                f"--dynamo-tls-ca: {self.ca_file}: is not a file of PEM certificates "
                f"({error.reason})"
            ) from None
        if self.certificate_file is not None:
            try:
                # An encrypted key would make OpenSSL ask on the terminal.
                context.load_cert_chain(self.certificate_file, self.key_file, password="")
            except (ssl.SSLError, OSError) as error:
                raise TargetError(
                    f"--dynamo-tls-certificate: {self.certificate_file}: is not a PEM "
                    f"certificate with its key, or the key is encrypted ({error})"
                ) from None
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


@dataclass(frozen=True)
class Access:
    """What is sent along with every request to be let in.

    Attributes:
        headers: beside those of the protocol; their values are secrets.
        tls: for ``https://``.
    """

    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    tls: Tls = Tls()

    @property
    def secrets(self) -> Secrets:
        """What must not show up in a report: header values, and what follows ``Bearer``."""
        return secrets_in(self.headers)


NO_ACCESS = Access()


@dataclass(frozen=True)
class Address:
    """A service: its base URL without ``/v1``, and how to be let in."""

    url: str
    access: Access = field(default_factory=Access)

    @property
    def chat_url(self) -> str:
        """Where chat completions are posted to."""
        return f"{self.url}/v1/chat/completions"

    def client(self, timeout_seconds: float = 10) -> httpx.AsyncClient:
        """A client for everything that is not measured.

        Raises:
            TargetError: a file of the TLS settings cannot be used.
        """
        secure = self.url.startswith("https:")
        host = urlsplit(self.url).hostname
        return httpx.AsyncClient(
            base_url=self.url,
            headers=dict(self.access.headers),
            timeout=timeout_seconds,
            verify=self.access.tls.context() if secure else True,
            # The measuring client goes straight to the server, so what asks it must as well.
            trust_env=False,
            follow_redirects=host is None,
        )


def check_url(option: str, url: str) -> str:
    """A base URL as it is used: without a trailing slash and without ``/v1``.

    Raises:
        TargetError: it is not the URL of a server; the message has no password in it.
    """
    parts = urlsplit(url)
    example = "give one such as http://127.0.0.1:8000"
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise TargetError(f"{option}: {_without_user(url)!r} is not an http(s) URL; {example}")
    if "@" in parts.netloc:
        raise TargetError(
            f"{option}: {_without_user(url)}: remove user and password from the URL, which appears "
            "in reports; use --dynamo-api-key-file or --dynamo-header"
        )
    if parts.query or parts.fragment:
        raise TargetError(f"{option}: {url.split('?')[0]}: must end before '?' and '#'; {example}")
    try:
        _ = parts.port
    except ValueError:
        raise TargetError(f"{option}: {url}: the port must be a number below 65536") from None
    path = parts.path.rstrip("/")
    for ending in ("/v1/chat/completions", "/v1/models", "/v1"):
        path = path.removesuffix(ending)
    return f"{parts.scheme}://{parts.netloc}{path}"


def _without_user(url: str) -> str:
    before, separator, rest = url.partition("//")
    user, at, host = rest.rpartition("@")
    return f"{before}{separator}{HIDDEN}@{host}" if at and user else url


def read_access(
    *,
    api_key_env: str | None = None,
    api_key_file: Path | None = None,
    headers: Iterable[str] = (),
    tls: Tls | None = None,
    environment: Mapping[str, str] | None = None,
) -> Access:
    """Read what options only name: keys out of the environment or a file.

    Args:
        headers: ``NAME: VALUE``; a value ``env:VARIABLE`` is taken from the environment.

    Raises:
        TargetError: something named is not there; a message never has a value in it.
    """
    variables = os.environ if environment is None else environment
    found: dict[str, str] = {}
    for number, text in enumerate(headers, 1):
        name, colon, value = text.partition(":")
        name, value = name.strip(), value.strip()
        if not colon or not _HEADER_NAME.fullmatch(name):
            raise TargetError(f"--dynamo-header (number {number}): must be 'NAME: VALUE'")
        if value.startswith("env:"):
            value = _variable(f"--dynamo-header {name}", value.removeprefix("env:"), variables)
        if not value.isprintable() or not value.isascii():
            raise TargetError(f"--dynamo-header {name}: the value must be printable ASCII")
        found[name] = value
    if api_key_env is not None and api_key_file is not None:
        raise TargetError("give either --dynamo-api-key-env or --dynamo-api-key-file, not both")
    key = None
    if api_key_env is not None:
        key = _variable("--dynamo-api-key-env", api_key_env, variables)
    if api_key_file is not None:
        try:
            key = api_key_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "is not text"
            raise TargetError(f"--dynamo-api-key-file: {api_key_file}: {reason}") from None
    if key is not None:
        if not key or not key.isprintable() or not key.isascii() or " " in key:
            where = f"file {api_key_file}" if api_key_file else f"variable {api_key_env}"
            raise TargetError(f"the API key in {where} is empty, or not one line of ASCII")
        found["Authorization"] = f"Bearer {key}"
    return Access(found, tls or Tls())


def _variable(option: str, name: str, variables: Mapping[str, str]) -> str:
    value = variables.get(name, "").strip()
    if not value:
        raise TargetError(f"{option}: the environment variable {name!r} is not set, or is empty")
    return value
