"""The Kubernetes target: a configuration on a cluster, measured where it runs."""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pytest_dynamo_bench.benchmark import Benchmark, Configuration
from pytest_dynamo_bench.errors import DeploymentError, DynamoBenchError, TargetError
from pytest_dynamo_bench.load.chat import DYNAMO
from pytest_dynamo_bench.plain_text import Secrets
from pytest_dynamo_bench.records import Run
from pytest_dynamo_bench.targets.aftermath import Aftermath
from pytest_dynamo_bench.targets.base import PlannedRun, Progress
from pytest_dynamo_bench.targets.kubernetes.api import ApiError, Cluster, Object, connector
from pytest_dynamo_bench.targets.kubernetes.deployment import Deployment
from pytest_dynamo_bench.targets.kubernetes.graph import (
    OLD_OPERATOR,
    Operator,
    asks_for_nats,
    graphs_in,
    resource_of,
)
from pytest_dynamo_bench.targets.kubernetes.load_job import restart_problems, send_from_cluster
from pytest_dynamo_bench.targets.kubernetes.manifest import (
    FRONTEND,
    FRONTEND_PORT,
    OWNER,
    OWNER_LABEL,
    RUN_LABEL,
    given_for,
    image_of,
    labels,
    render,
    with_image,
)
from pytest_dynamo_bench.targets.kubernetes.preflight import operator_in, preflight
from pytest_dynamo_bench.targets.kubernetes.settings import ClusterSettings
from pytest_dynamo_bench.targets.kubernetes.user_manifest import read_manifest
from pytest_dynamo_bench.targets.kubernetes.yaml_files import dump_all
from pytest_dynamo_bench.targets.running import run
from pytest_dynamo_bench.targets.service import measure
from pytest_dynamo_bench.targets.service.address import (
    NO_ACCESS,
    Access,
    Address,
    Tls,
    check_url,
)
from pytest_dynamo_bench.targets.service.measure import Measured
from pytest_dynamo_bench.targets.service.probe import Service
from pytest_dynamo_bench.traffic import Traffic


@dataclass(frozen=True)
class KubernetesOptions:
    """What the user says of the cluster and of this session.

    Attributes:
        settings: of the cluster.
        manifests: own manifest files by configuration, or by ``benchmark/configuration``.
        images: own images of the engine, by the same names; of all configurations under ``""``.
        dry_run: only let the API server check what would be created.
        access: what is sent along where the service is reached by a URL.
        seconds: length of the traffic that is cut from the benchmark's; None for all of it.
        seed: chooses among equally good cuts.
        load_processes: processes that send.
    """

    settings: ClusterSettings
    manifests: Mapping[str, Path] = field(default_factory=dict)
    images: Mapping[str, str] = field(default_factory=dict)
    dry_run: bool = False
    access: Access = NO_ACCESS
    seconds: float | None = None
    seed: int = 0
    load_processes: int = 1


class KubernetesTarget:
    """A DynamoGraphDeployment for each configuration, made, measured and deleted.

    Args:
        cluster: the API server; the one of the kubeconfig by default.
        run_id: what everything of this session is labelled with.
    """

    name = "kubernetes"

    def __init__(
        self,
        options: KubernetesOptions,
        cluster: Cluster | None = None,
        *,
        run_id: str | None = None,
    ) -> None:
        self._options = options
        self._settings = options.settings
        self._cluster = cluster or Cluster(
            connector(self._settings.context), self._settings.namespace
        )
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        self.run_id = run_id or f"{stamp}-{secrets.token_hex(3)}"
        self._operator: Operator | None = None
        self._unknown: Sequence[str] = ()
        self.named_configurations: Mapping[str, Collection[str]] = {
            "--dynamo-manifest": options.manifests.keys(),
            "--dynamo-image": options.images.keys(),
        }

    def check(self, benchmark: Benchmark) -> None:
        """Look at the cluster; with ``dry_run`` let it check all manifests as well.

        Raises:
            TargetError: something is missing or not allowed; all of it in one message.
        """
        configurations = benchmark.configurations
        # What is wrong with a manifest for any operator is told without a cluster.
        asking = {
            item.name: asks_for_nats(self._documents(benchmark, item, OLD_OPERATOR)[-1])
            for item in configurations
        }
        if self._settings.load.source == "url":
            check_url("load.url", self._settings.load.url)
        asking = {name: what for name, what in asking.items() if what}
        found = preflight(self._cluster, self._settings, configurations, asking)
        self._operator, self._unknown = found.operator, found.unknown
        documents = {
            item.name: self._documents(benchmark, item, found.operator) for item in configurations
        }
        for name, rendered in documents.items():
            if (version := rendered[-1]["apiVersion"]) not in found.served:
                raise TargetError(
                    f"the manifest of {name!r} is for {version}, and the operator serves "
                    f"{', '.join(found.served)}: convert it, or leave --dynamo-manifest out"
                )
        if not self._options.dry_run:
            return
        problems = []
        for name, rendered in documents.items():
            for document in rendered:
                try:
                    self._cluster.create(resource_of(document), document, dry_run=True)
                except ApiError as error:
                    problems.append(f"{name}: {error}")
        if problems:
            listed = "\n".join(f"- {problem}" for problem in problems)
            raise TargetError(f"the API server rejects manifests; nothing was created:\n{listed}")

    def traffic(self, benchmark: Benchmark) -> Traffic:
        options = self._options
        return measure.whole_or_cut(benchmark.traffic.load(), options.seconds, options.seed)

    def limitations(self, benchmark: Benchmark, configuration: Configuration) -> tuple[str, ...]:
        """What of the way of measuring a reader has to know."""
        found = []
        source = self._settings.load.source
        if source == "api-server":
            found.append(
                "the load went through the API server, which adds latency and may queue requests; "
                "use it for small loads only"
            )
        if source == "url":
            found.append("the load came from outside the cluster, through load.url")
        if self._own(benchmark, configuration) is not None:
            found.append(
                "the manifest is user-provided; that it is this configuration is taken on trust"
            )
        if self._unknown:
            found.append("not checked in advance: " + "; ".join(self._unknown))
        return tuple(found)

    def measure(self, planned: PlannedRun, progress: Progress) -> Run:
        """Create, wait, measure, delete; see :class:`~..base.Target`."""
        benchmark, configuration = planned.benchmark, planned.configuration
        directory = planned.directory
        self._operator = self._operator or operator_in(self._cluster, [])
        documents = self._documents(benchmark, configuration, self._operator)
        deployment = Deployment(
            self._cluster, documents, self.run_id, self._settings.limits, directory / "cluster",
            progress,
        )  # fmt: skip
        deployment.add_secrets(self._options.access.secrets)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "manifest.yaml").write_text(
            deployment.redact(dump_all(documents)), encoding="utf-8"
        )
        started, after = time.monotonic(), Aftermath(directory)
        try:
            with after.once_measured("stopping"), deployment.open():
                ready_seconds = time.monotonic() - started
                workers = self._workers(deployment, configuration)
                found, load = self._send(planned, deployment, progress, after)
                if after.problems:
                    deployment.save_evidence("; ".join(after.problems))
        except DynamoBenchError as error:
            kind = DeploymentError if isinstance(error, ApiError) else type(error)
            raise kind(deployment.redact(str(error))) from None
        described = configuration.as_dict()
        deployed = {
            "model": benchmark.model,
            "router": configuration.router,
            "workers": configuration.replicas,
            "block_size": configuration.block_size,
            "engines": {item["mode"]: item for item in described["workers"]},
            "frontend_args": described["frontend_args"],
            "env": described["env"],
            "image": image_of(benchmark, configuration, self._of(benchmark, configuration)),
            "load": load,
            "ready_seconds": round(ready_seconds, 1),
        }
        observed = {"workers": workers, "namespace": self._settings.namespace, **found.observed}
        hidden = Secrets(self._cluster.secrets.values | self._options.access.secrets.values)
        found = replace(found, observed=observed)
        return measure.as_run(planned, self.name, found, deployed, after, hidden)

    # -- sending ------------------------------------------------------------------------------

    def _send(
        self, planned: PlannedRun, deployment: Deployment, progress: Progress, after: Aftermath
    ) -> tuple[Measured, dict[str, Any]]:
        """Send the traffic; what was measured, and how the load was sent."""
        load = self._settings.load
        name = frontend_service(deployment)
        if load.source == "cluster":
            url = f"http://{name}.{self._settings.namespace}.svc:{FRONTEND_PORT}"
            service = Service(Address(url), planned.benchmark.model, DYNAMO, True)
            merged = send_from_cluster(
                deployment, self._settings, service, planned.traffic,
                labels(planned.configuration, self.run_id), progress, after,
            )  # fmt: skip
            logs = planned.directory / "logs"
            with after.step("storing the load generator's results"):
                logs.mkdir(parents=True, exist_ok=True)
                for file, text in merged.files.items():
                    (logs / Path(file).name).write_text(deployment.redact(text), encoding="utf-8")
            start = datetime.fromtimestamp(merged.started_unix, UTC)
            found = Measured(
                merged.records,
                start.isoformat(timespec="milliseconds"),
                {**merged.observed, "shards": merged.shards},
            )
            return found, {"source": "cluster", "shards": load.shards}
        address = (
            Address(check_url("load.url", load.url), self._options.access)
            if load.source == "url"
            else self._through_api_server(name)
        )
        deployment.add_secrets(address.access.secrets)
        before = deployment.restarts()
        measuring = measure.measure_service(
            planned,
            address,
            progress,
            after,
            ready_seconds=self._settings.limits.answer,
            processes=self._options.load_processes,
        )
        found = run(measuring)
        with after.step("checking that everything is running"):
            deployment.check_alive()
            after.problems += restart_problems(before, deployment.restarts())
        return found, {"source": load.source}

    def _through_api_server(self, service: str) -> Address:
        """The service's address on the API server, with the credentials of the kubeconfig."""
        configuration = self._cluster.client.configuration
        url = (
            f"{self._cluster.host}/api/v1/namespaces/{self._settings.namespace}/services/"
            f"{service}:{FRONTEND_PORT}/proxy"
        )

        def path(value: Any) -> Path | None:
            return Path(value) if value else None

        tls = Tls(
            ca_file=path(configuration.ssl_ca_cert),
            certificate_file=path(configuration.cert_file),
            key_file=path(configuration.key_file),
            verify=bool(configuration.verify_ssl),
        )
        return Address(url, Access(self._cluster.credentials, tls))

    # -- manifests ----------------------------------------------------------------------------

    def _own(self, benchmark: Benchmark, configuration: Configuration) -> Path | None:
        return given_for(self._options.manifests, benchmark, configuration)

    def _of(self, benchmark: Benchmark, configuration: Configuration) -> ClusterSettings:
        return with_image(self._settings, self._options.images, benchmark, configuration)

    def _documents(
        self, benchmark: Benchmark, configuration: Configuration, operator: Operator
    ) -> list[Object]:
        own = self._own(benchmark, configuration)
        if own is not None:
            return read_manifest(own, configuration, self._settings, self.run_id)
        settings = self._of(benchmark, configuration)
        return render(benchmark, configuration, settings, self.run_id, operator)

    def _workers(self, deployment: Deployment, configuration: Configuration) -> int:
        """Workers whose pods are ready; those of one replica on several nodes count as one."""
        states = [state for state in deployment.states() if state.phase == "ready"]
        others = {part.name.lower() for part in deployment.parts if not part.is_worker}
        pods = sum(worker.replicas * worker.nodes for worker in configuration.workers)
        ready = sum(state.service.lower() not in others for state in states)
        return configuration.replicas if ready >= pods else ready


def frontend_service(deployment: Deployment) -> str:
    """The Service of the frontend: the operator makes it of deployment and component names."""
    name = next((part.name for part in deployment.parts if part.is_frontend), FRONTEND)
    return f"{deployment.name}-{name.lower()}"


def leftovers(cluster: Cluster, run_id: str | None = None) -> list[tuple[str, Object]]:
    """Everything of this plugin in the namespace, of one run or of all, with its resource.

    Raises:
        ApiError: it cannot be listed.
        TargetError: there is no operator.
    """
    selector = f"{OWNER_LABEL}={OWNER}" + (f",{RUN_LABEL}={run_id}" if run_id else "")
    return [
        (resource, item)
        for resource in (graphs_in(operator_in(cluster, []).version), "jobs", "configmaps")
        for item in cluster.all(resource, selector)
    ]
