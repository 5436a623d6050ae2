"""An HTTP server on a real port that behaves like Kubernetes, for what this plugin uses of it.

Objects with uid, resourceVersion and generation; 201, 404, 409, 410 as Status objects; label
selectors; watches; deletion in the foreground with finalizers; subject access reviews; logs;
proxies. A thread plays the operator: it makes pods for a DynamoGraphDeployment and takes them
through the steps of a script. It also plays the kubelet of Jobs: it starts the load as processes
of this machine. Faults can be put between.

It is a cluster with the operator of one release, which serves one version of its API or both. It
refuses what real programs refuse: objects that the operator's schema, its admission or Kubernetes'
own types have no place for. Its containers end, again and again, where the parsers of the installed
Dynamo refuse their arguments. A status that the schema has no place for cannot be set.

``test_api.py`` runs the same tests against this and against a real API server, so that the two can
be compared.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from pytest_dynamo_bench.targets.service.address import Address
from pytest_dynamo_bench.targets.service.shards import pack_order, unpack_order
from tests.dynamo_parsers import asked_of_dynamo
from tests.kubernetes.real_schemas import admission_problems, graph_problems, open_api, problems

NAMESPACE = "bench"
TOKEN = "planted-cluster-token-0815"
DGD = "dynamographdeployments"
GROUPS = {
    "": {"v1": ("pods", "configmaps", "secrets", "events", "nodes", "namespaces",
                "persistentvolumeclaims", "services")},
    "batch": {"v1": ("jobs",)},
    "resource.k8s.io": {"v1beta1": ("resourceclaimtemplates",)},
    "authorization.k8s.io": {"v1": ("selfsubjectaccessreviews",)},
}  # fmt: skip
CLUSTER_WIDE = {"nodes", "namespaces", "selfsubjectaccessreviews"}
RELEASE = "1.5"
BOTH = ("v1beta1", "v1alpha1")


# -- what a pod can be like -----------------------------------------------------------------------


def unschedulable(message="0/3 nodes are available: 3 Insufficient nvidia.com/gpu."):
    return {
        "phase": "Pending",
        "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                        "message": message}],
    }  # fmt: skip


def pulling():
    state = {"waiting": {"reason": "ContainerCreating"}}
    return {
        "phase": "Pending",
        "conditions": [{"type": "PodScheduled", "status": "True"}],
        "containerStatuses": [{"name": "main", "restartCount": 0, "state": state}],
    }


def waiting(reason, message=""):
    found = pulling()
    found["containerStatuses"][0]["state"] = {"waiting": {"reason": reason, "message": message}}
    return found


def running(ready=True, restarts=0, last=None):
    return {
        "phase": "Running",
        "conditions": [{"type": "PodScheduled", "status": "True"},
                       {"type": "Ready", "status": "True" if ready else "False"}],
        "containerStatuses": [{"name": "main", "restartCount": restarts, "ready": ready,
                               "state": {"running": {}}, "lastState": last or {}}],
    }  # fmt: skip


def crashing(restarts=1, reason="Error", code=1):
    found = running(False, restarts, {"terminated": {"reason": reason, "exitCode": code}})
    found["containerStatuses"][0]["state"] = {"waiting": {"reason": "CrashLoopBackOff"}}
    return found


def _version(graph):
    return graph.get("apiVersion", "/v1beta1").partition("/")[2]


def _components(graph):
    """Name, type, pods and main container of each component, in either version."""
    spec = graph.get("spec") or {}
    for name, item in spec.get("services", {}).items():
        kind = item.get("subComponentType") or item.get("componentType")
        yield name, kind, item, item.get("extraPodSpec", {}).get("mainContainer", {})
    for item in spec.get("components", ()):
        containers = item.get("podTemplate", {}).get("spec", {}).get("containers", ())
        main = next((c for c in containers if c["name"] == "main"), {})
        yield item["name"], item.get("type"), item, main


def _whole(status, version):
    """A deployment's status with what every one has, where a test says only what it is about."""
    times = {"reason": "Said", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    counts = {"componentKind": "Deployment", "replicas": 1}
    counts |= {"componentName": ""} if version == "v1alpha1" else {"componentNames": []}
    found = dict(status)
    if "conditions" in found:
        found["conditions"] = [{**times, **condition} for condition in found["conditions"]]
    if "services" in found:
        services = found["services"].items()
        key = "services" if version == "v1alpha1" else "components"
        del found["services"]
        found[key] = {k: {**counts, "updatedReplicas": 1, **v} for k, v in services}
    return found


USUAL = ((0.05, pulling()), (0.05, running(False)), (0.05, running()))


@dataclasses.dataclass
class Fault:
    """What happens to requests instead of what should, a number of times."""

    matches: Callable[[str, str], bool]
    status: int
    times: int = 1
    reason: str = ""
    message: str = ""
    headers: dict = dataclasses.field(default_factory=dict)
    after: bool = False
    plain: bool = False


class FakeCluster:
    """See the module. ``frontend_url`` is what the Service of a frontend leads to.

    Args:
        release: whose operator it has, one of ``real_schemas.RELEASES``.
        serves: the versions of its API that are served.
    """

    def __init__(self, release: str = RELEASE, serves: tuple[str, ...] = BOTH) -> None:
        self.release = release
        self.frontend_url: str | None = None
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.objects: dict[tuple[str, str, str], dict] = {}
        self.history: list[tuple[int, str, str, dict]] = []
        self.oldest_version = 0
        self.counter = itertools.count(1)
        self.version = 0
        self.denied: set[tuple[str, str]] = set()
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        self.tokens = {TOKEN}
        self.logs: dict[tuple[str, bool], str] = {}
        self.script: dict[str, tuple] = {}
        self.graph_state: dict | None = None
        self.stuck = False
        self.groups = {name: dict(versions) for name, versions in GROUPS.items()}
        self.groups["nvidia.com"] = dict.fromkeys(serves, (DGD,))
        self.load_processes: dict[str, tuple[subprocess.Popen, int]] = {}
        self.orders: list = []
        self.ended = threading.Event()
        self.directory = tempfile.TemporaryDirectory(prefix="fake-cluster-")
        self.add("namespaces", {"metadata": {"name": NAMESPACE}, "status": {"phase": "Active"}})
        for number in range(4):
            self.add("nodes", {"metadata": {"name": f"node-{number}"}, "spec": {},
                               "status": {"allocatable": {"nvidia.com/gpu": "8"}}})  # fmt: skip
        # The first answer of each takes long, and while it is waited for the server is not there.
        for module in ("frontend", "vllm", "trtllm", "sglang"):
            asked_of_dynamo(["python3", "-m", f"dynamo.{module}"], {})
        self.port = 0
        self.start()
        self.operator = threading.Thread(target=self._operate, daemon=True)
        self.operator.start()

    # -- the server -------------------------------------------------------------------------------

    def start(self) -> None:
        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), _handler(self))
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def restart(self, away_seconds: float) -> None:
        """Be away for a while; watches and requests under way are cut off."""
        self.stop()
        time.sleep(away_seconds)
        self.start()

    def close(self) -> None:
        self.ended.set()
        with self.changed:
            self.changed.notify_all()
        self.operator.join(5)
        for process, _ in self.load_processes.values():
            process.kill()
            process.wait()
        self.stop()
        self.directory.cleanup()

    def kubeconfig(self, directory: Path, token: str = TOKEN) -> Path:
        path = directory / "kubeconfig"
        path.write_text(json.dumps({
            "apiVersion": "v1", "kind": "Config", "current-context": "fake",
            "clusters": [{"name": "fake", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}],
            "users": [{"name": "me", "user": {"token": token}}],
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "me"}}],
        }))  # fmt: skip
        return path

    # -- objects ----------------------------------------------------------------------------------

    def add(self, resource: str, content: dict) -> dict:
        metadata = content.setdefault("metadata", {})
        metadata.setdefault("namespace", "" if resource in CLUSTER_WIDE else NAMESPACE)
        metadata["uid"] = f"uid-{next(self.counter)}"
        metadata["generation"] = 1
        metadata["creationTimestamp"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self.objects[resource, metadata["namespace"], metadata["name"]] = content
        self.note("ADDED", resource, content)
        return content

    def note(self, kind: str, resource: str, content: dict) -> None:
        with self.changed:
            self.version += 1
            content["metadata"]["resourceVersion"] = str(self.version)
            self.history.append((self.version, kind, resource, json.loads(json.dumps(content))))
            self.changed.notify_all()

    def named(self, resource: str) -> dict[str, dict]:
        with self.lock:
            return {key[2]: item for key, item in self.objects.items() if key[0] == resource}

    def remove(self, resource: str, name: str) -> None:
        with self.lock:
            for key in [k for k in self.objects if k[0] == resource and k[2] == name]:
                self.note("DELETED", resource, self.objects.pop(key))

    def set_status(self, resource: str, name: str, status: dict) -> None:
        with self.lock:
            if resource == DGD:
                version = _version(self.named(DGD).get(name, {}))
                status = _whole(status, version)
                assert graph_problems({"status": status}, self.release, version) == [], status
            for key, item in self.objects.items():
                if key[0] == resource and key[2] == name and item.get("status") != status:
                    item["status"] = json.loads(json.dumps(status))
                    self.note("MODIFIED", resource, item)

    def event(self, name: str, reason: str, message: str) -> None:
        self.add("events", {
            "metadata": {"name": f"{name}.{next(self.counter)}"}, "type": "Warning",
            "involvedObject": {"name": name}, "reason": reason, "message": message,
            "lastTimestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        })  # fmt: skip

    def expire_watches(self) -> None:
        """As etcd's compaction does: what happened so far cannot be watched from any more."""
        with self.lock:
            self.oldest_version = self.version + 1

    # -- the operator and the kubelet -----------------------------------------------------------

    def _operate(self) -> None:
        began: dict[str, float] = {}
        while not self.ended.wait(0.02):
            with self.lock:
                for name, graph in list(self.named(DGD).items()):
                    if graph["metadata"].get("deletionTimestamp"):
                        self._take_down(name, graph)
                    else:
                        self._bring_up(name, graph, began.setdefault(name, time.monotonic()))
                for name, job in list(self.named("jobs").items()):
                    self._run_job(name, job)
                # What has no dependents is gone when the garbage collector has seen that.
                for name, item in list(self.named("configmaps").items()):
                    if item["metadata"].get("deletionTimestamp"):
                        self.remove("configmaps", name)
                for name in set(began) - set(self.named(DGD)):
                    del began[name]

    def _bring_up(self, name: str, graph: dict, began: float) -> None:
        finalizers = graph["metadata"].setdefault("finalizers", [])
        if "nvidia.com/finalizer" not in finalizers:
            finalizers.append("nvidia.com/finalizer")
        age, all_ready = time.monotonic() - began, True
        for key, kind, service, container in _components(graph):
            nodes = service.get("multinode", {}).get("nodeCount", 1)
            for number in range(service.get("replicas", 1) * nodes):
                pod = f"{name}-{key.lower()}-{number}"
                if pod not in self.named("pods"):
                    if self.stuck:
                        continue
                    self.add("pods", {
                        "metadata": {"name": pod, "labels": {
                            "nvidia.com/dynamo-graph-deployment-name": name,
                            "nvidia.com/dynamo-component": key,
                            "nvidia.com/dynamo-component-type": kind,
                        }},
                        "spec": {"containers": [{"name": "main", "env": [
                            {"name": "HF_TOKEN", "value": "hf_plantedplantedplanted"}]}]},
                        "status": {"phase": "Pending"},
                    })  # fmt: skip
                steps = self.script.get(f"{key}-{number}") or self.script.get(key) or USUAL
                if refusal := self._refusal(container):
                    steps = ((0.05, crashing(9)),)
                    self.logs[pod, True] = f"{refusal}\n"
                at, status = 0.0, None
                for delay, step in steps:
                    at += delay
                    if age >= at:
                        status = step
                if status is not None:
                    self.set_status("pods", pod, status)
                current = self.named("pods")[pod]["status"].get("conditions", ())
                all_ready &= any(c["type"] == "Ready" and c["status"] == "True" for c in current)
        if self.graph_state is not None:
            self.set_status(DGD, name, self.graph_state)
            return
        self.set_status(DGD, name, {
            "state": "successful" if all_ready else "pending",
            "observedGeneration": graph["metadata"]["generation"],
            "services": {key: {} for key, *_ in _components(graph)},
            "conditions": [{"type": "Ready", "status": str(all_ready),
                            "message": "" if all_ready else "some resources are not ready"}],
        })  # fmt: skip

    def _refusal(self, container: dict) -> str:
        """What a program says of its command line, where Dynamo knows the program."""
        argv = [*container.get("command", ()), *container.get("args", ())]
        env = {v["name"]: v["value"] for v in container.get("env", ()) if "value" in v}
        return asked_of_dynamo(argv, env)

    def _take_down(self, name: str, graph: dict) -> None:
        if self.stuck:
            return
        pods = [n for n in self.named("pods") if n.startswith(f"{name}-")]
        if pods:
            self.remove("pods", pods[0])
            return
        self.remove(DGD, name)

    def _run_job(self, name: str, job: dict) -> None:
        if job["metadata"].get("deletionTimestamp"):
            for pod in [n for n in self.named("pods") if n.startswith(f"{name}-")]:
                process, _ = self.load_processes.pop(pod, (None, 0))
                if process is not None:
                    process.kill()
                    process.wait()
                self.remove("pods", pod)
            self.remove("jobs", name)
            return
        for index in range(job["spec"]["completions"]):
            pod = f"{name}-{index}-abcde"
            if pod in self.named("pods"):
                process, _ = self.load_processes.get(pod, (None, 0))
                code = process.poll() if process is not None else None
                if code is not None:
                    self.set_status("pods", pod, {"phase": "Failed" if code else "Succeeded"})
                continue
            self.add("pods", {
                "metadata": {
                    "name": pod,
                    "labels": {"job-name": name, **job["spec"]["template"]["metadata"]["labels"]},
                    "annotations": {"batch.kubernetes.io/job-completion-index": str(index)},
                },
                "spec": {"containers": [{"name": "load"}]}, "status": {"phase": "Pending"},
            })  # fmt: skip
            if "load" in self.script:
                self.set_status("pods", pod, self.script["load"][0][1])
                continue
            self.load_processes[pod] = self._start_load(job, index, pod)
            self.set_status("pods", pod, running())

    def _start_load(self, job: dict, index: int, pod: str) -> tuple[subprocess.Popen, int]:
        """What the pod's containers would do, as a process here; the Service's name is resolved."""
        directory = Path(self.directory.name) / pod
        directory.mkdir()
        maps = self.named("configmaps")
        pieces: dict[str, bytes] = {}
        for volume in job["spec"]["template"]["spec"]["volumes"]:
            for source in volume.get("projected", {}).get("sources", ()):
                for file, data in maps[source["configMap"]["name"]]["binaryData"].items():
                    pieces[file] = base64.b64decode(data)
        own = b"".join(
            pieces[name] for name in sorted(pieces) if name.startswith(f"order-{index}-")
        )
        service, traffic, settings = unpack_order(own)
        self.orders.append((service, traffic, settings))
        host = urlsplit(service.address.url)
        assert host.port == 8000
        assert host.hostname.endswith(f"-frontend.{NAMESPACE}.svc"), host.hostname
        service = dataclasses.replace(service, address=Address(self.frontend_url))
        (directory / f"order-{index}-000").write_bytes(pack_order(service, traffic, settings))
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            port = sock.getsockname()[1]
        command = job["spec"]["template"]["spec"]["containers"][0]["command"]
        assert command[1:4] == ["-m", "pytest_dynamo_bench.targets.service.shard_server", "/order"]
        with (directory / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, *command[1:3], str(directory), "--port", str(port),
                 "--host", "127.0.0.1"],
                env={**os.environ, "JOB_COMPLETION_INDEX": str(index)}, stderr=log,
            )  # fmt: skip
        return process, port


def _handler(cluster: FakeCluster):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self):
            self._serve("GET")

        def do_POST(self):
            self._serve("POST")

        def do_DELETE(self):
            self._serve("DELETE")

        def log_message(self, *_):
            pass

        def _serve(self, method):
            length = int(self.headers.get("content-length") or 0)
            data = self.rfile.read(length)
            url = urlsplit(self.path)
            path, query = unquote(url.path), {k: v[-1] for k, v in parse_qs(url.query).items()}
            cluster.requests.append((method, path))
            fault = self._fault(method, path)
            if fault is not None and not fault.after:
                self._broken(fault)
                return
            token = self.headers.get("authorization", "").removeprefix("Bearer ")
            if token not in cluster.tokens:
                self._status(401, "Unauthorized", f"token {token} is not valid")
                return
            try:
                self._answer(method, path, query, data, fault)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        def _fault(self, method, path):
            with cluster.lock:
                for fault in cluster.faults:
                    if fault.times > 0 and fault.matches(method, path):
                        fault.times -= 1
                        return fault
            return None

        def _broken(self, fault):
            if fault.status == 0:
                self.close_connection = True
                with contextlib.suppress(OSError):
                    self.connection.shutdown(socket.SHUT_RDWR)
            elif fault.plain:
                self._send(fault.status, (fault.message + "\n").encode(), "text/plain")
            else:
                self._status(fault.status, fault.reason, fault.message, fault.headers)

        def _answer(self, method, path, query, data, fault):
            parts = path.strip("/").split("/")
            if path == "/version":
                self._json(200, {"gitVersion": "v1.33.0-fake"})
            elif parts[0] == "apis" and len(parts) == 2:
                self._group(parts[1])
            elif parts[:4] == ["openapi", "v3", "apis", "nvidia.com"]:
                self._schema(parts[4])
            elif parts[0] == "api":
                self._resource(method, "", parts[1], parts[2:], query, data, fault)
            elif parts[0] == "apis" and len(parts) > 3:
                self._resource(method, parts[1], parts[2], parts[3:], query, data, fault)
            else:
                self._send(404, b"404 page not found\n", "text/plain")

        def _group(self, name):
            versions = cluster.groups.get(name)
            if not versions:
                self._send(404, b"404 page not found\n", "text/plain")
                return
            versions = [{"version": version} for version in versions]
            self._json(200, {"kind": "APIGroup", "versions": versions,
                             "preferredVersion": versions[0]})  # fmt: skip

        def _schema(self, version):
            if version in cluster.groups.get("nvidia.com", {}):
                self._send(200, open_api(cluster.release, version), "application/json")
            else:
                self._send(404, b"404 page not found\n", "text/plain")

        def _resource(self, method, group, version, rest, query, data, fault):
            namespace = ""
            if rest[0] == "namespaces" and len(rest) > 2:
                namespace, rest = rest[1], rest[2:]
            resource, name, sub = rest[0], (rest[1:] or [""])[0], rest[2:]
            self._version = version
            if resource not in cluster.groups.get(group, {}).get(version, ()):
                self._send(404, b"404 page not found\n", "text/plain")
                return
            verb = {"GET": "get" if name else "watch" if "watch" in query else "list",
                    "POST": "create", "DELETE": "delete"}[method]  # fmt: skip
            label = resource + ("/" + sub[0] if sub else "")
            if (verb, label) in cluster.denied:
                self._status(403, "Forbidden", f'{label} is forbidden: User "me" cannot {verb} '
                             f'resource "{label}" in API group "{group}"')  # fmt: skip
            elif resource == "selfsubjectaccessreviews":
                self._review(json.loads(data))
            elif sub[:1] == ["log"]:
                self._log(name, query)
            elif sub[:1] == ["proxy"]:
                self._proxy(method, resource, name, "/".join(sub[1:]), data)
            elif method == "POST":
                self._create(resource, namespace, query, json.loads(data), fault)
            elif method == "DELETE":
                self._delete(resource, namespace, name, json.loads(data or b"{}"))
            elif name:
                self._one(resource, namespace, name)
            elif query.get("watch") == "true":
                self._watch(resource, namespace, query)
            else:
                self._list(resource, namespace, query)

        def _review(self, body):
            wanted = body["spec"]["resourceAttributes"]
            sub = wanted.get("subresource")
            label = wanted["resource"] + (f"/{sub}" if sub else "")
            allowed = (wanted["verb"], label) not in cluster.denied
            self._json(201, {**body, "status": {"allowed": allowed}})

        def _log(self, name, query):
            if name not in cluster.named("pods"):
                self._missing("pods", name)
                return
            previous = query.get("previous") == "true"
            text = cluster.logs.get((name, previous))
            if text is None and previous:
                self._status(400, "BadRequest", f"previous container in {name} not found")
                return
            directory = Path(cluster.directory.name) / name / "log"
            if text is None and directory.exists():
                text = directory.read_text()
            self._send(200, (text or f"log of {name}\n").encode(), "text/plain")

        def _proxy(self, method, resource, name, path, data):
            if resource == "services":
                url = f"{cluster.frontend_url}/{path}"
            else:
                pod = name.partition(":")[0]
                if pod not in cluster.load_processes:
                    self._status(503, "ServiceUnavailable", "no endpoints available")
                    return
                url = f"http://127.0.0.1:{cluster.load_processes[pod][1]}/{path}"
            body = data if method == "POST" else None
            request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    self.send_response(answer.status)
                    self.send_header("Content-Type", answer.headers.get("Content-Type", ""))
                    self.send_header("Transfer-Encoding", "chunked")
                    self.end_headers()
                    while piece := answer.read1(65536):
                        self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                    self.wfile.write(b"0\r\n\r\n")
            except urllib.error.HTTPError as error:
                self._send(error.code, error.read(), "text/plain")
            except OSError as error:
                self._status(503, "ServiceUnavailable", f"dial tcp: {error}")

        def _create(self, resource, namespace, query, body, fault):
            with cluster.lock:
                name = body["metadata"]["name"]
                if namespace and namespace not in cluster.named("namespaces"):
                    self._missing("namespaces", namespace)
                    return
                if (resource, namespace, name) in cluster.objects:
                    self._status(409, "AlreadyExists", f'{resource} "{name}" already exists')
                    return
                problem = self._invalid(body, query)
                if problem:
                    self._status(*problem)
                    return
                body["metadata"]["namespace"] = namespace
                if query.get("dryRun") == "All":
                    self._json(201, body)
                    return
                created = cluster.add(resource, body)
                if fault is None:
                    self._json(201, created)
            if fault is not None:
                self._broken(fault)

        def _invalid(self, body, query):
            found = problems(body, cluster.release)
            unknown = [str(problem) for problem in found if problem.unknown]
            if unknown and query.get("fieldValidation") == "Strict":
                return 400, "BadRequest", f"strict decoding error: {', '.join(unknown)}"
            wrong = [str(problem) for problem in found if not problem.unknown]
            if wrong:
                name = body["metadata"].get("name")
                return 422, "Invalid", f'{body["kind"]} "{name}" is invalid: {", ".join(wrong)}'
            denied = ", ".join(map(str, admission_problems(body, cluster.release)))
            if denied:
                return 422, "Invalid", f"admission webhook denied the request: {denied}"
            return None

        def _delete(self, resource, namespace, name, options):
            with cluster.lock:
                found = cluster.objects.get((resource, namespace, name))
                if found is None:
                    self._missing(resource, name)
                    return
                assert options.get("propagationPolicy") == "Foreground"
                if "deletionTimestamp" not in found["metadata"]:
                    found["metadata"]["deletionTimestamp"] = time.strftime(
                        "%Y-%m-%dT%H:%M:%SZ", time.gmtime()
                    )
                    found["metadata"].setdefault("finalizers", []).append("foregroundDeletion")
                    cluster.note("MODIFIED", resource, found)
                self._json(200, found)

        def _one(self, resource, namespace, name):
            with cluster.lock:
                found = cluster.objects.get((resource, namespace, name))
                if found is None:
                    self._missing(resource, name)
                else:
                    self._json(200, self._as_asked(resource, found))

        def _as_asked(self, resource, item):
            """An object in the version that it is asked for in; we never need another's spec."""
            if resource == DGD and _version(item) != self._version:
                return {**item, "apiVersion": f"nvidia.com/{self._version}", "spec": {}}
            return item

        def _list(self, resource, namespace, query):
            with cluster.lock:
                items = [
                    self._as_asked(resource, item) for key, item in cluster.objects.items()
                    if key[0] == resource and namespace in (key[1], "") and _selected(item, query)
                ]  # fmt: skip
                version = str(cluster.version)
                self._json(200, {"kind": "List", "items": items,
                                 "metadata": {"resourceVersion": version}})  # fmt: skip

        def _watch(self, resource, namespace, query):
            since = int(query.get("resourceVersion") or 0)
            if since < cluster.oldest_version:
                self._status(410, "Expired", f"too old resource version: {since}")
                return
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            deadline = time.monotonic() + float(query.get("timeoutSeconds") or 30)
            server = cluster.server
            while time.monotonic() < deadline and not cluster.ended.is_set():
                with cluster.changed:
                    new = [entry for entry in cluster.history if entry[0] > since]
                    expired = since < cluster.oldest_version
                    if not new and not expired:
                        cluster.changed.wait(0.05)
                if cluster.server is not server:
                    break
                for version, kind, what, item in new:
                    since = version
                    here = what == resource and item["metadata"]["namespace"] == namespace
                    if here and _selected(item, query):
                        self._chunk({"type": kind, "object": self._as_asked(what, item)})
                if expired:
                    status = {"kind": "Status", "code": 410, "reason": "Expired",
                              "message": "too old resource version"}  # fmt: skip
                    self._chunk({"type": "ERROR", "object": status})
                    break
            self.wfile.write(b"0\r\n\r\n")

        def _chunk(self, content):
            line = json.dumps(content).encode() + b"\n"
            self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
            self.wfile.flush()

        def _missing(self, resource, name):
            self._status(404, "NotFound", f'{resource} "{name}" not found')

        def _status(self, code, reason, message, headers=None):
            content = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code,
                       "reason": reason, "message": message}  # fmt: skip
            self._json(code, content, headers)

        def _json(self, code, content, headers=None):
            self._send(code, json.dumps(content).encode(), "application/json", headers)

        def _send(self, code, body, kind, headers=None):
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    return Handler


def _selected(item, query):
    labels = item["metadata"].get("labels", {})
    for part in filter(None, query.get("labelSelector", "").split(",")):
        key, _, value = part.partition("=")
        if labels.get(key) != value:
            return False
    return True
