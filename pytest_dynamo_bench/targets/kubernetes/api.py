"""The API server, through the official client: requests, retries, and errors that say what to do.

Everything is plain data here: the JSON that the API speaks. The official client brings what is hard
(kubeconfigs, exec plugins, tokens that are renewed, TLS); it is imported when first needed.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode

import msgspec

from pytest_dynamo_bench.errors import DeploymentError, TargetError
from pytest_dynamo_bench.outside import admitted, decoded, plain, shown
from pytest_dynamo_bench.plain_text import Secrets, one_line
from pytest_dynamo_bench.targets.kubernetes.yaml_files import REMEDY

Object = dict[str, Any]
T = TypeVar("T")
_BASES = {
    "jobs": "/apis/batch/v1",
    "events": "/api/v1",
    "resourceclaimtemplates": "/apis/resource.k8s.io/v1beta1",
    "selfsubjectaccessreviews": "/apis/authorization.k8s.io/v1",
}
_KIND = "x-kubernetes-group-version-kind"
_WITHOUT_NAMESPACE = frozenset({"nodes", "namespaces", "selfsubjectaccessreviews"})
# 410 is a list that must be restarted; a watch does that itself.
_TRY_AGAIN = frozenset({410, 429, 500, 502, 503, 504})
_CONNECT_SECONDS = 10
_READ_SECONDS = 60
_LONGEST_WAIT_SECONDS = 10.0
# How long a server that has just started may reject everything: it has yet to read the roles.
_UNREAD_ROLES_SECONDS = 15.0


@dataclass(frozen=True)
class Status:
    """What the API server answered instead of what was asked for."""

    code: int
    reason: str
    message: str
    is_status: bool = False
    retry_after_seconds: float = 0.0


class ApiError(DeploymentError):
    """The API server said no; the message says what was asked, why not, and what to do."""

    def __init__(self, message: str, status: Status) -> None:
        super().__init__(message)
        self.status = status

    @property
    def code(self) -> int:
        """The HTTP status; 0 when there was no answer."""
        return self.status.code


class WatchExpiredError(Exception):
    """410: what the watch would go on from is gone, and everything must be listed again."""


class Cluster:
    """A namespace of a cluster.

    A resource is named by its plural, such as ``pods``, or as kubectl writes it with version and
    group: ``dynamographdeployments.v1beta1.nvidia.com``.

    Args:
        connect: makes the official client; called again when a token is not accepted any more.
        namespace: where everything is.
        outage_seconds: how long an API server may be away, or too busy, before that is an error.
    """

    def __init__(
        self,
        connect: Callable[[], Any],
        namespace: str,
        *,
        outage_seconds: float = 120,
    ) -> None:
        self.namespace = namespace
        self._connect = connect
        self._outage_seconds = outage_seconds
        self._client: Any = None
        # Verbs and resources that have been allowed.
        self._allowed: set[tuple[str, str]] = set()

    @property
    def client(self) -> Any:
        """The official client."""
        if self._client is None:
            self._client = self._connect()
        return self._client

    @property
    def secrets(self) -> Secrets:
        """The credentials that requests are made with."""
        configuration = self.client.configuration
        found = {str(value) for value in (configuration.api_key or {}).values()}
        found |= set(self.credentials.values())
        found |= {value.partition(" ")[2] for value in found}
        found.add(str(configuration.password or ""))
        return Secrets(frozenset(value for value in found if len(value) > 3))

    @property
    def host(self) -> str:
        """The API server's address."""
        return str(self.client.configuration.host).rstrip("/")

    @property
    def credentials(self) -> dict[str, str]:
        """The headers that we are known by; a token that runs out is renewed by the client."""
        settings = self.client.configuration.auth_settings().values()
        return {s["key"]: s["value"] for s in settings if s["in"] == "header" and s["value"]}

    # -- requests ---------------------------------------------------------------------------

    def get(self, resource: str, name: str, **query: Any) -> Object:
        """One object.

        Raises:
            ApiError: there is none, or it cannot be read.
        """
        return self._json("get", resource, name, query=query)

    def find(self, resource: str, name: str) -> Object | None:
        """One object, or None when there is none of that name.

        Raises:
            ApiError: for everything but a missing object.
        """
        return _unless_missing(lambda: self.get(resource, name))

    def all(self, resource: str, selector: str = "", **query: Any) -> list[Object]:
        """All objects with some labels.

        Raises:
            ApiError: they cannot be listed.
        """
        return self.all_with_version(resource, selector, **query)[0]

    def all_with_version(
        self, resource: str, selector: str = "", **query: Any
    ) -> tuple[list[Object], str]:
        """All objects with some labels, and the version that a watch can go on from."""
        if selector:
            query["labelSelector"] = selector
        found = self._json("list", resource, query=query)
        listed = admitted(_Listed, found, {})
        version = listed.metadata.resourceVersion if listed.metadata else ""
        named = [item for item in listed.items or () if admitted(_Item, item, {}).metadata]
        return named, version

    def create(self, resource: str, body: Mapping[str, Any], *, dry_run: bool = False) -> Object:
        """Create an object; unknown fields are errors.

        Raises:
            ApiError: it could not be created; 409 when the name is taken.
        """
        query = {"fieldValidation": "Strict"}
        if dry_run:
            query["dryRun"] = "All"
        name = str(body.get("metadata", {}).get("name", ""))
        return self._json("create", resource, body=body, query=query, named=name)

    def delete(self, resource: str, name: str) -> None:
        """Delete in the foreground: dependents first. A missing object is no error."""
        options = {
            "apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Foreground"
        }  # fmt: skip
        _unless_missing(lambda: self._json("delete", resource, name, body=options))

    def may(self, verb: str, group: str, resource: str, subresource: str = "") -> bool | None:
        """Whether we may do that; None when the cluster does not say.

        Raises:
            ApiError: the API server cannot be asked.
        """
        body = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {
                "resourceAttributes": {
                    "namespace": self.namespace, "verb": verb, "group": group,
                    "resource": resource, "subresource": subresource,
                }
            },
        }  # fmt: skip
        try:
            answer = self._json("create", "selfsubjectaccessreviews", body=body)
        except ApiError as error:
            if error.code in (HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND):
                return None
            raise
        allowed = (admitted(_Review, answer, {}).status or _Allowed()).allowed
        if allowed:
            self._allowed.add((verb, f"{resource}/{subresource}".rstrip("/")))
        return allowed

    def log(self, pod: str, container: str, *, previous: bool = False, lines: int = 2000) -> str:
        """The end of a container's log; why there is none, when there is none."""
        query = {"container": container, "tailLines": lines}
        if previous:
            query["previous"] = "true"
        try:
            data = self._raw("get", self._path("pods", pod, "log"), f"log of pod {pod}", query)
        except ApiError as error:
            return "" if previous else f"(no log: {error})\n"
        return data.decode("utf-8", errors="replace")

    def versions(self, group: str) -> list[str] | None:
        """The versions of an API group that are served; None when there is no such group."""
        # Where nothing of the group is installed the answer is plain text, not a Status.
        data = _unless_missing(lambda: self._raw("get", f"/apis/{group}", f"API group {group}", {}))
        if data is None:
            return None
        return [item.version for item in _answered(data, _Group, f"API group {group}").versions]

    def schema(self, group: str, version: str, kind: str) -> Object:
        """The schema of a kind, as OpenAPI; empty where there is none of that kind.

        Raises:
            ApiError: it cannot be read.
        """
        what = f"the schema of {kind}"
        data = self._raw("get", f"/openapi/v3/apis/{group}/{version}", what, {})
        schemas = _answered(data, _OpenApi, what).components.schemas
        return next((s for s in schemas.values() if kind in map(_kind, s.get(_KIND, ()))), {})

    def anywhere(self, resource: str, selector: str) -> list[Object]:
        """All objects with some labels, in all namespaces.

        Raises:
            ApiError: they cannot be listed.
        """
        path = f"{_BASES.get(resource, '/api/v1')}/{resource}"
        data = self._raw("get", path, f"{resource} of all namespaces", {"labelSelector": selector})
        return _answered(data, _Listed, resource).items or []

    def server_version(self) -> str:
        """Of the API server."""
        data = self._raw("get", "/version", "version", {})
        return _answered(data, _Version, "version").gitVersion

    def proxy(self, pod: str, port: int, path: str, body: Any = None) -> bytes:
        """Ask a pod over HTTP, through the API server.

        Raises:
            OSError: there was no answer.
        """
        where = self._path("pods", f"{pod}:{port}", f"proxy/{path}")
        verb = "get" if body is None else "create"
        try:
            return self._raw(verb, where, f"pod {pod}", {}, body, retry=False)
        except ApiError as error:
            raise OSError(str(error)) from None

    def watch(
        self, resource: str, selector: str, version: str, seconds: float
    ) -> Iterator[tuple[str, Object]]:
        """Changes from a version on: ADDED, MODIFIED or DELETED, and the object.

        It ends by itself after some seconds, or when the API server goes away.

        Raises:
            WatchExpiredError: the version is too old.
            ApiError: it is not allowed.
        """
        query = {
            "watch": "true", "labelSelector": selector, "resourceVersion": version,
            "timeoutSeconds": f"{seconds:g}", "allowWatchBookmarks": "true",
        }  # fmt: skip
        what = f"{resource} in namespace {self.namespace}"
        try:
            response = self._once("watch", self._path(resource), query, None, seconds + 10)
        except ApiError as error:
            if error.code == HTTPStatus.GONE:
                raise WatchExpiredError from None
            if error.code in _TRY_AGAIN or error.code == 0:
                return
            if (
                error.code == HTTPStatus.FORBIDDEN
                and ("watch", resource.partition(".")[0]) in self._allowed
            ):
                return
            raise _explained(error.status, "watch", what, self.namespace) from None
        try:
            yield from self._events(response)
        finally:
            response.close()
            response.release_conn()

    def _events(self, response: Any) -> Iterator[tuple[str, Object]]:
        buffer = b""
        while True:
            try:
                piece = response.read1(65536) if hasattr(response, "read1") else response.read(1)
            except _connection_errors():
                return
            if not piece:
                return
            *lines, buffer = (buffer + piece).split(b"\n")
            for line in lines:
                if not line.strip():
                    continue
                try:
                    event = decoded(line, _WatchEvent)
                except ValueError:
                    # The caller lists everything again.
                    return
                if event.type == "ERROR":
                    if event.object.get("code") == HTTPStatus.GONE:
                        raise WatchExpiredError
                    return
                if admitted(_Item, event.object, {}).metadata:
                    yield event.type, event.object

    # -- how a request is made ----------------------------------------------------------------

    def _path(self, resource: str, name: str = "", rest: str = "") -> str:
        resource, _, api = resource.partition(".")
        version, _, group = api.partition(".")
        base = f"/apis/{group}/{version}" if group else _BASES.get(resource, "/api/v1")
        place = "" if resource in _WITHOUT_NAMESPACE else f"/namespaces/{self.namespace}"
        parts = [part for part in (name, rest) if part]
        return "/".join([f"{base}{place}/{resource}", *parts])

    def _resource(self, path: str) -> str:
        """What a path is about, as roles call it: a resource, or ``resource/subresource``.

        The path itself where it is about nothing in the namespace.
        """
        _, _, rest = path.partition(f"/namespaces/{self.namespace}/")
        resource, _, subresource = (*rest.split("/"), "", "")[:3]
        return f"{resource}/{subresource}".rstrip("/") or path

    def _json(
        self,
        verb: str,
        resource: str,
        name: str = "",
        *,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, Any] | None = None,
        named: str = "",
    ) -> Object:
        label = f"{resource} {name or named}".rstrip()
        data = self._raw(verb, self._path(resource, name), label, query or {}, body)
        return _answered(data, dict[str, Any], f"{verb} {label}") if data else {}

    def _raw(
        self,
        verb: str,
        path: str,
        what: str,
        query: Mapping[str, Any],
        body: Any = None,
        *,
        retry: bool = True,
    ) -> bytes:
        """One request, repeated while the server is away or busy; its token renewed once.

        A server that has just started rejects everything until it has read the roles: what it
        has allowed before is asked for again for a while.
        """
        deadline = time.monotonic() + (self._outage_seconds if retry else 0)
        right = verb, self._resource(path)
        wait, renewed, forbidden_at = 0.25, False, 0.0
        while True:
            try:
                response = self._once(verb, path, query, body, _READ_SECONDS)
            except ApiError as error:
                status = error.status
                if status.code == HTTPStatus.UNAUTHORIZED and not renewed:
                    # A token may have run out: read the kubeconfig again, run its plugin again.
                    renewed, self._client = True, None
                    continue
                pause = status.retry_after_seconds or wait
                again = status.code in _TRY_AGAIN or status.code == 0
                if status.code == HTTPStatus.FORBIDDEN and right in self._allowed:
                    forbidden_at = forbidden_at or time.monotonic()
                    again = time.monotonic() < forbidden_at + _UNREAD_ROLES_SECONDS
                    if not again:
                        # It has been taken away, and need not be waited for again.
                        self._allowed.discard(right)
                if not again or time.monotonic() + pause > deadline:
                    raise _explained(status, verb, what, self.namespace) from None
                time.sleep(pause)
                wait = min(2 * wait, _LONGEST_WAIT_SECONDS)
                continue
            self._allowed.add(right)
            try:
                data: bytes = response.data
                return data
            finally:
                response.release_conn()

    def _once(
        self, verb: str, path: str, query: Mapping[str, Any], body: Any, seconds: float
    ) -> Any:
        """One attempt, as a response of urllib3.

        Raises:
            ApiError: with a status of 0 when there was no answer.
        """
        import urllib3

        method = {"create": "POST", "delete": "DELETE"}.get(verb, "GET")
        content = None if body is None else json.dumps(body).encode()
        url = f"{self.host}{path}" + (f"?{urlencode(query)}" if query else "")
        try:
            # The client's own methods differ between its versions; its connections do not.
            found = self.client.rest_client.pool_manager.request(
                method, url, body=content, headers={
                    "Accept": "application/json, */*", "Content-Type": "application/json",
                    **self.credentials,
                },
                preload_content=False, retries=False, redirect=False,
                timeout=urllib3.Timeout(connect=_CONNECT_SECONDS, read=seconds),
            )  # fmt: skip
            if found.status >= HTTPStatus.BAD_REQUEST:
                data = found.data
                found.release_conn()
                raise _from_response(found.status, data, found.headers, self.secrets)
        except _connection_errors() as error:
            text = _in_short(error, self.secrets)
            raise ApiError(text, Status(0, "Unreachable", text)) from None
        return found


def _unless_missing(ask: Callable[[], T]) -> T | None:
    """What is asked for; None where it is not there."""
    try:
        return ask()
    except ApiError as error:
        if error.code != HTTPStatus.NOT_FOUND:
            raise
        return None


def _connection_errors() -> tuple[type[Exception], ...]:
    from urllib3.exceptions import HTTPError

    return (HTTPError, ConnectionError, TimeoutError)


class _Named(msgspec.Struct):
    name: str


class _Item(msgspec.Struct):
    """An object, in so far as all have this."""

    metadata: _Named | None = None


class _ListMetadata(msgspec.Struct):
    resourceVersion: str = ""  # noqa: N815 as the API calls it


class _Listed(msgspec.Struct):
    metadata: _ListMetadata | None = None
    items: list[dict[str, Any]] | None = None


class _Allowed(msgspec.Struct):
    allowed: bool = False


class _Review(msgspec.Struct):
    status: _Allowed | None = None


class _GroupVersion(msgspec.Struct):
    version: str


class _Group(msgspec.Struct):
    versions: list[_GroupVersion] = []


class _Version(msgspec.Struct):
    gitVersion: str = "unknown"  # noqa: N815 as the API calls it


class _Schemas(msgspec.Struct):
    schemas: dict[str, dict[str, Any]] = {}


class _OpenApi(msgspec.Struct):
    components: _Schemas = msgspec.field(default_factory=_Schemas)


class _WatchEvent(msgspec.Struct):
    type: str
    object: dict[str, Any] = {}


def _answered(data: bytes, kind: type[T], what: str) -> T:
    """What the API server said.

    Raises:
        ApiError: it is no answer of an API server, such as the page of a proxy.
    """
    try:
        return decoded(data, kind)
    except ValueError as error:
        text = (
            f"the response to {what} is not from an API server ({error}): {shown(data)}; is there "
            "a proxy or login page in front of it?"
        )
        raise ApiError(text, Status(HTTPStatus.OK, "NoAnswer", text)) from None


def _kind(said: Any) -> str:
    return str(said.get("kind")) if isinstance(said, dict) else ""


def _in_short(error: Exception, secrets: Secrets) -> str:
    reason = getattr(error, "reason", None) or error
    return one_line(secrets.redact(str(reason)))


def _from_response(
    code: int, body: bytes, headers: Mapping[str, str], secrets: Secrets
) -> ApiError:
    text = secrets.redact(body.decode("utf-8", "replace"))
    content: Any = None
    with contextlib.suppress(ValueError):
        content = plain(text)
    is_status = isinstance(content, dict) and content.get("kind") == "Status"
    said = content if is_status else {}
    message = one_line(str(said.get("message") or text))
    after = (headers or {}).get("Retry-After", "")
    pause = min(float(after), _LONGEST_WAIT_SECONDS) if after.isdecimal() else 0.0
    return ApiError(message, Status(code, str(said.get("reason", "")), message, is_status, pause))


def _explained(status: Status, verb: str, what: str, namespace: str) -> ApiError:
    """The error as a person can act on it."""
    asked = f"{verb} {what} (namespace {namespace})"
    text = status.message
    match status.code:
        case 0:
            message = f"the API server cannot be reached to {asked}: {text}"
        case HTTPStatus.UNAUTHORIZED:
            message = (
                f"the API server does not accept our credentials to {asked}: {text}; a token may "
                "have expired: log in again, and check with `kubectl auth whoami`"
            )
        case HTTPStatus.FORBIDDEN:
            message = (
                f"not allowed to {asked}: {text}; docs/run-on-a-cluster.md has the required role"
            )
        case HTTPStatus.NOT_FOUND if not status.is_status:
            message = f"the API server does not know this resource, to {asked}: {text}"
        case HTTPStatus.NOT_FOUND:
            message = f"there is nothing to {asked}: {text}"
        case HTTPStatus.CONFLICT:
            message = f"could not {asked}: {text}"
        case HTTPStatus.TOO_MANY_REQUESTS:
            message = f"the API server stayed too busy to {asked}: {text}"
        case code if code >= HTTPStatus.INTERNAL_SERVER_ERROR:
            message = f"the API server failed repeatedly to {asked} (HTTP {code}): {text}"
        case code:
            message = f"the API server rejected the request to {asked} (HTTP {code}): {text}"
    return ApiError(message, status)


def connector(context: str) -> Callable[[], Any]:
    """A function that makes the official client from the kubeconfig, or from within a pod.

    Raises:
        TargetError: when called: the package is missing, or no cluster is configured.
    """

    def connect() -> Any:
        try:
            from kubernetes import client, config
        except ImportError:
            raise TargetError(f"target 'kubernetes' needs the official client; {REMEDY}") from None
        configuration = client.Configuration()
        try:
            # Named here, since the client reads the variable only once, when it is imported.
            config.load_kube_config(
                config_file=os.environ.get("KUBECONFIG") or None,
                context=context or None,
                client_configuration=configuration,
                persist_config=False,
            )
        except config.ConfigException as error:
            if context or not _in_pod():
                raise TargetError(
                    f"no cluster is configured: {error}; set KUBECONFIG, or 'context' in the "
                    "cluster's settings"
                ) from None
            config.load_incluster_config(client_configuration=configuration)
        return client.ApiClient(configuration)

    return connect


def _in_pod() -> bool:
    return Path("/var/run/secrets/kubernetes.io/serviceaccount/token").is_file()
