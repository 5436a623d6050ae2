"""How every published command runs in CI, and why some cannot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

TRIAL = {"DYNAMO_BENCH_REQUESTS": "40"}
# So few requests can leave a run invalid or a regression undecided, which says nothing here.
_UNDECIDED = "--dynamo-invalid=skip --dynamo-inconclusive=skip"
_ONE = "-k qwen3_32b"
_SAYS_SO = r"a trial, not a\s+result[\s\S]+results: reports/"


@dataclass(frozen=True)
class Runs:
    """A command that runs in CI.

    Attributes:
        given: what stands in for what a reader has to put in, by the text that is printed.
        environment: what makes its traffic small, and where it is measured if that is another
            place than the one printed.
        after: commands that it builds on.
        prepare: what makes its input, where no command that is printed does.
        code: what it has to end with.
        says: regular expression of something that it has to print.
        measures: whether it brings up the real Dynamo, and so needs the machine for itself.
    """

    given: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    after: tuple[str, ...] = ()
    prepare: str = ""
    code: int = 0
    says: str = ""
    measures: bool = False

    @property
    def simulates(self) -> bool:
        """Whether it is given the first requests of a traffic, and does not measure."""
        return TRIAL.items() <= self.environment.items() and not self.measures

    @property
    def words(self) -> str:
        """How it runs, for people."""
        how = ["as printed" if not self.environment else "small"]
        how += [f"`{name}={value}`" for name, value in self.environment.items()]
        how += [f"`{printed}` is `{given}`" for printed, given in self.given.items()]
        if self.code:
            how.append("has to be refused")
        return ", ".join(how)


@dataclass(frozen=True)
class CannotRun:
    """A command that cannot run in CI, and the reason."""

    reason: str


def _small(options: str = "", **changes: object) -> Runs:
    """On ``replay``, as printed, with the first requests of every traffic."""
    return Runs(
        environment={**TRIAL, "PYTEST_ADDOPTS": f"{_UNDECIDED} {options}".strip()},
        says=_SAYS_SO,
        **changes,  # type: ignore[arg-type]
    )


def _on_replay(options: str = "", **changes: object) -> Runs:
    """What is printed for ``local``, simulated: its own options are all there."""
    options = f"--dynamo-target=replay {_UNDECIDED} {options}".strip()
    return Runs(
        environment={**TRIAL, "PYTEST_ADDOPTS": options},
        says=_SAYS_SO,
        **changes,  # type: ignore[arg-type]
    )


def _on_local(**changes: object) -> Runs:
    """On ``local``: an invalid run says something of the machine of CI, not of the command.

    If all runs are invalid, there is no result that could be called a trial.
    """
    return Runs(
        environment={**TRIAL, "PYTEST_ADDOPTS": _UNDECIDED},
        says="results: reports/",
        measures=True,
        **changes,  # type: ignore[arg-type]
    )


def _trial() -> Runs:
    """A command that simulates, with the first requests of the traffic."""
    return Runs(environment=TRIAL, says="a trial with 40 requests, simulated by")


_SESSION = "reports/2026-11-24T21-06-10Z-local"
_CHECKED = Runs(environment={"PYTEST_ADDOPTS": "--dynamo-dry-run"}, says=" skipped")
_NO_CLUSTER = Runs(code=4, says="no cluster|KUBECONFIG|kubeconfig")
_NO_CLUSTER_CLI = Runs(code=2, says="no cluster|KUBECONFIG|kubeconfig")
_NO_VLLM = Runs(code=4, says="install-vllm")
_NO_DYNAMO = CannotRun("needs another Dynamo; tests/which_dynamo runs where one is installed")
_INSTALLS = CannotRun("installs packages; .ci/run installs the same into the environment of CI")
_AIPERF = CannotRun("AIPerf needs an environment of its own, which CI does not have")
_HARDWARE = CannotRun("aiconfigurator-core needs an environment of its own, which CI does not have")
_NAMES = CannotRun("a sentence names the command; those with arguments are here too")
_SERVERS = CannotRun("needs servers; tests/endpoint runs the same options against real frontends")
_DASK = CannotRun("needs a dask scheduler; tests/replay/test_runner.py has one with two workers")
_HOURS = CannotRun("takes an hour; the same command with --scale and a part is here too")
_SAVE = (
    "pytest benchmarks --dynamo-target=replay --dynamo-repeats=5 --dynamo-save-baseline=baseline"
)
_WINDOW = (
    "python -m pytest_dynamo_bench traffic benchmarks/qwen36_feature_stack.py "
    "--write-aiperf-cut window.jsonl"
)
_EXPORT = f"python -m pytest_dynamo_bench report {_SESSION} --aiperf --output exported"
_EXPORTED = "exported/qwen3_32b_kv_routing"
_MOVE = "rm -rf baseline && mv new-baseline baseline"
_MEASURE = """\
gate=()
if [ -n "$STORED" ]; then
  gate=(--dynamo-baseline=baseline
        "--dynamo-tolerance=ttft.mean:20%,latency.mean:5%,throughput:5%")
  if [ "$MAY_BE_NEW" = true ]; then
    gate+=(--dynamo-allow-missing)
  fi
fi
pytest benchmarks --dynamo-target=replay --dynamo-repeats=5 \\
  "${gate[@]}" --dynamo-save-baseline=new-baseline --junitxml=junit.xml"""
_OWN = "python -m pytest_dynamo_bench"
_QWEN = "benchmarks/qwen3_32b_kv_routing.py"

_CUT_CLUSTER = "benchmarks/kimi_feature_stack.py --dynamo-target=kubernetes"
_CLUSTER = "--dynamo-cluster my-cluster.yaml"
_MODULE = f"{_OWN} show MODULE.py"

HOW: dict[str, Runs | CannotRun] = {
    # -- the README's first command, and others on the real Dynamo --------------------------
    "python3 -m venv .venv && .venv/bin/pip install -q '.[local]' && .venv/bin/pytest benchmarks/ "
    "-k qwen3_32b": _on_local(
        given={"python3 -m venv .venv && .venv/bin/pip install -q '.[local]' && .venv/bin/": ""}
    ),
    'pytest benchmarks/qwen3_vl_embedding_cache.py -k "finds-the-images"': _on_local(),
    f"{_OWN} check-client": Runs(measures=True, says="requests"),
    # -- what is printed for local, simulated -----------------------------------------------
    "pytest benchmarks/": _on_replay(_ONE),
    "pytest benchmarks/ -k qwen3_32b": _on_replay(),
    "pytest benchmarks/ -k wideep": _on_replay(),
    "pytest benchmarks/ --dynamo-scale=smoke": _on_replay(_ONE),
    "pytest benchmarks/ --dynamo-seconds=120": _on_replay(_ONE),
    "pytest benchmarks/ --dynamo-repeats=4": _on_replay(_ONE),
    "pytest benchmarks/ --dynamo-budget=20m": _on_replay(_ONE, given={"20m": "10s"}),
    "pytest benchmarks/ --junitxml=reports/junit.xml": _on_replay(_ONE),
    "pytest benchmarks/ --dynamo-baseline=stored/main": _on_replay(
        _ONE, prepare="pytest benchmarks/ --dynamo-save-baseline=stored/main"
    ),
    # -- simulated as printed ---------------------------------------------------------------
    "pytest benchmarks/ --dynamo-target=replay": _small(),
    "pytest benchmarks/ --dynamo-target=replay --dynamo-attribution": _small(),
    "DYNAMO_BENCH_REQUESTS=40 pytest benchmarks/ --dynamo-target=replay": _small(_ONE),
    "pytest benchmarks/ --dynamo-target=replay --dynamo-traffic=mine.jsonl": _small(),
    "pytest benchmarks/ --dynamo-target=replay --dynamo-reports=bench-results": Runs(
        environment={**TRIAL, "PYTEST_ADDOPTS": f"{_UNDECIDED} {_ONE}"},
        says="results: bench-results/",
    ),
    "pytest benchmarks/qwen3_32b_kv_routing.py --dynamo-target=replay --dynamo-attribution "
    "--junitxml=…": _small(given={"…": "junit.xml"}),
    "pytest MODULE.py --dynamo-target=replay": _small(),
    "pytest examples/own_metric --dynamo-target=replay": _small(),
    "pytest examples/own_target --dynamo-target=loaded-replay": _small(),
    _SAVE: _small(_ONE),
    "pytest benchmarks --dynamo-target=replay --dynamo-repeats=5 --dynamo-baseline=baseline "
    "--dynamo-tolerance=ttft.mean:20%,latency.mean:5%,throughput:5% --junitxml=junit.xml": _small(
        _ONE, after=(_SAVE,)
    ),
    _MEASURE: _small(_ONE),
    _MOVE: Runs(environment=TRIAL, after=(_MEASURE,)),
    'echo "::error::no baseline of main is stored; run this workflow on main first"\nexit 1': Runs(
        code=1, says="::error::no baseline"
    ),
    f"{_OWN} sweep {_QWEN}": _trial(),
    f"{_OWN} sweep {_QWEN} --speedup 0.5,1,2": _trial(),
    f"{_OWN} sweep {_QWEN} --speedup 0.5,0.75,1,1.25,1.5,2,3": _trial(),
    f"{_OWN} sweep {_QWEN} --speedup 1 --kv-scale 0.25,0.5,1,2": _trial(),
    f"{_OWN} sweep {_QWEN} --speedup 1,1.5 --split 7+1,6+2,5+3,4+4": _trial(),
    f"{_OWN} attribution {_QWEN}": _trial(),
    f"{_OWN} attribution {_QWEN} --baseline agg-round-robin --treatment disagg-kv-router": (
        _trial()
    ),
    f"{_OWN} attribution benchmarks/deepseek_wideep_routing.py --treatment disagg-kv-router "
    "--metric time_to_first_token.mean": _trial(),
    # -- traffic ----------------------------------------------------------------------------
    f"{_OWN} traffic {_QWEN}": Runs(),
    f"{_OWN} traffic my-trace.jsonl --write-cut short.jsonl": Runs(),
    f"{_OWN} traffic benchmarks/qwen36_feature_stack.py --figure traffic.svg": Runs(),
    _WINDOW: Runs(),
    # -- stored results ---------------------------------------------------------------------
    f"{_OWN} report {_SESSION}": Runs(),
    _EXPORT: Runs(),
    f"{_OWN} --metrics conftest.py report DIR": Runs(
        {"conftest.py": "examples/own_metric/conftest.py", "DIR": "reports/old"},
    ),
    f"{_OWN} report DIR…": Runs({"DIR…": "reports/old"}),
    f"{_OWN} schema summary.json": Runs(says="json-schema.org"),
    f"{_OWN} compare A B": Runs({"A B": "reports/new reports/old"}),
    f"{_OWN} compare reports/new reports/old --tolerance ttft:10%": Runs(),
    f"{_OWN} history DIR…": Runs({"DIR…": "reports/old reports/new"}),
    f"{_OWN} history DIR… --output h.html": Runs({"DIR…": "reports/old reports/new"}),
    f"{_OWN} history reports/*-local --output history.html": Runs(),
    "pytest MODULE.py --dynamo-aiperf-results agg=DIR": Runs(
        {"DIR": f"{_EXPORTED}/agg-round-robin/aiperf"}, after=(_EXPORT,)
    ),
    f"pytest {_QWEN} --dynamo-target=kubernetes --dynamo-aiperf-results "
    "agg-round-robin=artifacts/agg --dynamo-aiperf-results agg-kv-router=artifacts/kv": Runs(
        {
            "artifacts/agg": f"{_EXPORTED}/agg-round-robin/aiperf",
            "artifacts/kv": f"{_EXPORTED}/agg-kv-router/aiperf",
        },
        after=(_EXPORT,),
    ),
    # -- what would be deployed -------------------------------------------------------------
    _MODULE: Runs(),
    f"{_MODULE} --target local": Runs(),
    f"{_OWN} show {_QWEN} --target kubernetes": Runs(says="DynamoGraphDeployment"),
    f"{_OWN} show benchmarks/kimi_feature_stack.py --target kubernetes {_CLUSTER}": Runs(
        says="DynamoGraphDeployment"
    ),
    f"{_OWN} show BENCHMARK.py --target kubernetes {_CLUSTER}": Runs(says="DynamoGraphDeployment"),
    # -- help, calibration, development -----------------------------------------------------
    "pytest --markers": Runs(),
    "pytest --help": Runs(says="NVIDIA Dynamo benchmarks"),
    "python -m calibration": _HOURS,
    "python -m calibration aa-same --scale 0.1": Runs(environment={}, given={"0.1": "0.01"}),
    "python -m calibration aa-same power-10-1000-3 --scale 0.1": Runs(given={"0.1": "0.01"}),
    "pytest benchmarks/qwen3_32b_kv_routing.py --dynamo-target=replay "
    "--dynamo-executor=dask:tcp://127.0.0.1:8786": _DASK,
    f"{_OWN} sweep benchmarks/qwen3_32b_kv_routing.py --executor dask:tcp://127.0.0.1:8786": _DASK,
    "python -m calibration local --pairs 15 --keep runs --minutes 4": CannotRun(
        "measures for 25 minutes; tests/verdicts/test_calibration.py has its parts"
    ),
    # -- refused where there is no cluster and no vLLM; the message says what is missing ------
    "pytest benchmarks/ --dynamo-target=kubernetes --dynamo-cluster=my-cluster.yaml": _NO_CLUSTER,
    f"pytest {_CUT_CLUSTER} --dynamo-cluster=my-cluster.yaml": _NO_CLUSTER,
    f"pytest {_CUT_CLUSTER} --dynamo-cluster=my-cluster.yaml --dynamo-dry-run": _NO_CLUSTER,
    f"{_OWN} cleanup {_CLUSTER}": _NO_CLUSTER_CLI,
    f"{_OWN} cleanup {_CLUSTER} --run ID": _NO_CLUSTER_CLI,
    "pytest benchmarks/ --dynamo-engine=vllm --dynamo-scale=smoke": _NO_VLLM,
    "pytest benchmarks/ -m embedding_cache --dynamo-engine=vllm": _NO_VLLM,
    "pytest benchmarks/ -m embedding_cache --dynamo-engine=vllm --dynamo-scale=smoke": _NO_VLLM,
    # -- which claims are chosen: everything but the measuring -------------------------------
    "pytest benchmarks/kimi_feature_stack.py -m offload": _CHECKED,
    'pytest benchmarks/kimi_feature_stack.py -k "speculative or drafts"': _CHECKED,
    "pytest benchmarks/llama_topology.py -m multi_node": _CHECKED,
    "pytest benchmarks/llama_topology.py -m pd_split": _CHECKED,
    "pytest benchmarks/session_affinity.py -m session_affinity": _CHECKED,
    "pytest benchmarks/deepseek_wideep_routing.py -m pd_split": _CHECKED,
    'pytest benchmarks/deepseek_wideep_routing.py -k "kv-routing-finds"': _CHECKED,
    'pytest benchmarks/ -m "spec_decode and not offload"': _CHECKED,
    "pytest benchmarks/ -m kv_routing": _CHECKED,
    "pytest benchmarks/ -m wideep": _CHECKED,
    "pytest benchmarks/ -m embedding_cache": _CHECKED,
    'pytest benchmarks/qwen36_feature_stack.py -k "spares or finds"': _CHECKED,
    'pytest benchmarks/qwen36_feature_stack.py -k "decodes-no-image"': _CHECKED,
    "pytest benchmarks/qwen36_feature_stack.py --dynamo-traffic=window.jsonl": Runs(
        environment={"PYTEST_ADDOPTS": "--dynamo-dry-run"}, after=(_WINDOW,), says=" skipped in "
    ),
    # -- what cannot run here ---------------------------------------------------------------
    ".ci/run": CannotRun("is what runs this"),
    f"{_OWN} install-vllm": CannotRun("downloads 7.2 GB"),
    f"{_OWN} install-dynamo 1.6.1": CannotRun("downloads 0.4 GB"),
    f"{_OWN} install-dynamo ../dynamo/dist": CannotRun("needs wheels that somebody built"),
    f"{_OWN} install-dynamo --list": Runs(),
    f"{_OWN} install-dynamo --remove 1.6.1": Runs(code=2, says="there is no environment"),
    f"pytest {_QWEN} --dynamo-version=1.6.1": _NO_DYNAMO,
    f"pytest {_QWEN} --dynamo-version=agg-kv-router=1.6.1": _NO_DYNAMO,
    f"{_OWN} show {_QWEN} --dynamo-version=1.6.1": _NO_DYNAMO,
    "pytest benchmarks --dynamo-version=../dynamo/.venv/bin/python": Runs(
        code=4, says="is neither a release"
    ),
    "pip install -r requirements-bench.txt": _INSTALLS,
    "pip install --no-deps nixl==1.3.2 nixl-cu13==1.3.2": _INSTALLS,
    "pip install aiperf": _INSTALLS,
    "pip install 'pytest-dynamo-bench[kubernetes]'": _INSTALLS,
    "pip install 'pytest-dynamo-bench[figures]'": _INSTALLS,
    "pip install 'pytest-dynamo-bench[pandas]'": _INSTALLS,
    "pip install 'pytest-dynamo-bench[dask]'": _INSTALLS,
    "aiperf profile --input-file window.jsonl --custom-dataset-type single_turn …": _AIPERF,
    "aiperf profile … --artifact-dir artifacts/agg": _AIPERF,
    "aiperf profile … --artifact-dir artifacts/kv": _AIPERF,
    "aiperf plot": _AIPERF,
    "pytest MODULE.py --dynamo-target=local --dynamo-load=aiperf": _AIPERF,
    "python -m venv aic && aic/bin/pip install aiconfigurator-core==0.12.0": _HARDWARE,
    "PYTHONPATH=. aic/bin/python -m pytest_dynamo_bench.engines.make": _HARDWARE,
    "PYTHONPATH=. aic/bin/python -m pytest_dynamo_bench.engines.make --model Qwen/Qwen3-32B "
    "--gpu H100 --engine vllm --tp 4 --output my-profiles": _HARDWARE,
    f"{_OWN}.engines.make": _HARDWARE,
    f"{_OWN}.engines.make --only Kimi": _HARDWARE,
    f"{_OWN}.engines.make --model Qwen/Qwen3-32B --gpu H100 --engine vllm --tp 4 "
    "--output my-profiles": _HARDWARE,
    "pytest benchmarks/qwen3_32b_kv_routing.py --dynamo-target=endpoint "
    "--dynamo-endpoint agg-round-robin=http://10.0.0.5:8000 "
    "--dynamo-endpoint disagg-kv-router=http://10.0.0.6:8000 "
    '--dynamo-api-key-env=MY_KEY -k "promoted"': _SERVERS,
    "pytest benchmarks/qwen3_32b_kv_routing.py --dynamo-target=endpoint -k promoted "
    "--dynamo-endpoint agg-round-robin=http://10.0.0.5:8000 "
    "--dynamo-endpoint disagg-kv-router=http://10.0.0.6:8000": _SERVERS,
    "pytest benchmarks/llama_topology.py --dynamo-target=endpoint "
    "--dynamo-endpoint http://10.0.0.5:8000 "
    "--dynamo-switch-command './switch.sh {configuration}'": _SERVERS,
    "gh pr comment ${{ github.event.number }} --body-file bench-results/*/report.md": CannotRun(
        "needs a pull request"
    ),
    "pytest tests/local/test_local_target.py -k host_tier": CannotRun("is one of CI's own tests"),
    "python performance/replay.py benchmarks/*.py": CannotRun("times for minutes"),
    "python -m dynamo.replay": _NAMES,
    "pytest --dynamo-baseline": _NAMES,
    f"{_OWN} attribution": _NAMES,
    f"{_OWN} report": _NAMES,
    f"{_OWN} traffic": _NAMES,
}
