"""Keys, headers and TLS: the options of targets that reach a service by its address."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pytest_dynamo_bench.targets.options import OptionGroup, OptionValue, option

if TYPE_CHECKING:
    from pytest_dynamo_bench.targets.service.address import Access


def _header_name(header: str) -> str:
    name, colon, value = header.partition(":")
    return f"{name}:{value}" if value.strip().startswith("env:") else f"{name}{colon} ***"


ACCESS_OPTIONS = OptionGroup("keys and TLS", (
    option(
        "--dynamo-api-key-env", metavar="VARIABLE", default=None,
        help="environment variable with the API key, sent as a bearer token",
    ),
    option(
        "--dynamo-api-key-file", metavar="FILE", type=Path, default=None,
        help="file with the API key",
    ),
    option(
        "--dynamo-header", metavar="'NAME: VALUE'", action="append", default=[],
        shown=_header_name,
        help="header of every request; the value env:VARIABLE is read from the environment; can be "
        "repeated",
    ),
    option(
        "--dynamo-tls-ca", metavar="FILE", type=Path, default=None,
        help="CA certificates to trust for https (default: the system's)",
    ),
    option(
        "--dynamo-tls-certificate", metavar="FILE", type=Path, default=None,
        help="client certificate, if the server requires one",
    ),
    option(
        "--dynamo-tls-key", metavar="FILE", type=Path, default=None,
        help="private key of the client certificate, if it is in a separate file",
    ),
    option("--dynamo-tls-insecure", action="store_true", help="accept any certificate for https"),
))  # fmt: skip


def given_access(option: OptionValue) -> Access:
    """Keys, headers and TLS as the options give them.

    Raises:
        TargetError: something named is not there.
    """
    from pytest_dynamo_bench.targets.service.address import Tls, read_access

    return read_access(
        api_key_env=option("dynamo_api_key_env"),
        api_key_file=option("dynamo_api_key_file"),
        headers=option("dynamo_header"),
        tls=Tls(
            ca_file=option("dynamo_tls_ca"),
            certificate_file=option("dynamo_tls_certificate"),
            key_file=option("dynamo_tls_key"),
            verify=not option("dynamo_tls_insecure"),
        ),
    )
