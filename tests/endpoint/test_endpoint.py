"""The endpoint target against servers with a known character, none of them Dynamo."""

from __future__ import annotations

import dataclasses
import json
import re
import signal
import ssl
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from pytest_dynamo_bench import Benchmark, Configuration, Hardware, MooncakeTrace, Worker
from pytest_dynamo_bench.errors import DeploymentError, TargetError
from pytest_dynamo_bench.metrics import Metrics
from pytest_dynamo_bench.targets.base import PlannedRun
from pytest_dynamo_bench.targets.endpoint.switch import split_command
from pytest_dynamo_bench.targets.endpoint.target import EndpointOptions, EndpointTarget, parse_urls
from pytest_dynamo_bench.targets.service.address import Access, Tls, check_url, read_access
from pytest_dynamo_bench.targets.service.measure import salted
from pytest_dynamo_bench.traffic import Concurrency, FixedSchedule, Traffic, TrafficRequest
from pytest_dynamo_bench.verdicts import check_run
from tests.reference_server import Character, Script
from tests.servers import FAST, serving

KEY = "sk-planted-1234567890"
AGG = Configuration("agg", "baseline", [Worker(1)])
KV = AGG.but(name="kv", role="treatment", router="kv")
BENCHMARK = Benchmark(
    name="example", question="?", model="m", hardware=Hardware("H200", 1),
    traffic=MooncakeTrace("conversation"), configurations=[AGG, KV], claims=[],
)  # fmt: skip


class Silent:
    def __init__(self):
        self.stages, self.latest = [], []

    def stage(self, name):
        self.stages.append(name)

    def requests(self, done, failed, total):
        self.done = done

    def latency(self, records):
        self.latest = records


def traffic(count=6, tokens=100, block_tokens=64):
    blocks = -(-tokens // block_tokens)
    return Traffic(
        [
            TrafficRequest(f"{i}", f"{i}", 0, 20.0 * i, 0.0, tokens, 5,
                           (*range(7, 6 + blocks), 1000 + i))
            for i in range(count)
        ],
        FixedSchedule(), block_tokens, ("made up",),
    )  # fmt: skip


def measure(url, tmp_path, configuration=AGG, progress=None, **options):
    target = EndpointTarget(EndpointOptions({"": url}, **options))
    return target.measure(
        PlannedRun(BENCHMARK, configuration, traffic(), tmp_path), progress or Silent()
    )


def prompts(server, tokens=5):
    """Of the measured requests; those before have other lengths."""
    return [
        seen.body["messages"][0]["content"]
        for seen in server.seen
        if seen.body["max_tokens"] == tokens
    ]


# -- what servers are like --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("character", "extras"),
    [
        (Character(), {"nvext", "ignore_eos", "min_tokens"}),
        (Character(template_tokens=23), {"nvext", "ignore_eos", "min_tokens"}),
        (Character(english=True, refused=("nvext",)), {"ignore_eos", "min_tokens"}),
        (
            Character(
                english=True, template_tokens=11, long_words=frozenset({"the", "water", "book"}),
                refused=("nvext", "min_tokens", "ignore_eos"),
            ),
            set(),
        ),
    ],
    ids=["as the local target", "chat template", "another tokenizer", "strict gateway"],
)  # fmt: skip
def test_prompts_have_exactly_the_tokens_asked_for(character, extras, tmp_path):
    with serving(FAST, character) as server:
        run = measure(server.base_url, tmp_path)
    assert [record.error for record in run.records] == [None] * 6
    assert {record.prompt_tokens for record in run.records} == {100}
    assert {record.completion_tokens for record in run.records} == {5}
    measured = [seen.body for seen in server.seen if seen.body["max_tokens"] == 5]
    assert len(measured) == 6
    for body in measured:
        assert {"nvext", "ignore_eos", "min_tokens"} & body.keys() == extras
    # The first block is shared by all, the rest by none.
    shared = 64
    words = [content.split() for content in prompts(server)]
    assert len({tuple(w[:shared]) for w in words}) == 1
    assert len({tuple(w[shared : shared + 5]) for w in words}) == 6


def test_a_tokenizer_with_few_single_words_is_refused(tmp_path):
    odd = Character(english=True, long_words=frozenset(set(_english()[20:])))
    with (
        serving(FAST, odd) as server,
        pytest.raises(DeploymentError, match=r"only 20 of \d+ common words are one token"),
    ):
        measure(server.base_url, tmp_path)


def _english():
    from pytest_dynamo_bench.traffic.prompts import COMMON_WORDS

    return COMMON_WORDS


def test_a_server_without_usage_is_refused(tmp_path):
    with (
        serving(Script(no_usage=True)) as server,
        pytest.raises(DeploymentError, match="does not count tokens"),
    ):
        measure(server.base_url, tmp_path)


def test_every_run_has_words_of_its_own(tmp_path):
    with serving() as server:
        for repeat in range(2):
            measure(server.base_url, tmp_path / str(repeat))
        first, second = prompts(server)[:6], prompts(server)[6:]
        for a, b in zip(first, second, strict=True):
            assert len(a.split()) == len(b.split())
            assert a.split()[:5] != b.split()[:5]
        for repeat in range(2):
            measure(server.base_url, tmp_path / f"same-{repeat}", same_prompts=True)
        third, fourth = prompts(server)[12:18], prompts(server)[18:]
        assert third == fourth


def test_a_warm_cache_makes_the_run_invalid(tmp_path):
    with serving(Script(cached_tokens=90)) as server:
        run = measure(server.base_url, tmp_path, same_prompts=True)
    gates = check_run(run, FixedSchedule(), "time_to_first_token.mean", traffic=traffic())
    (gate,) = [gate for gate in gates if gate.name == "caches cold at the start"]
    assert not gate.passed
    assert "90 of 100 prompt tokens cached in 1 requests whose prefix is new" in gate.sentence


@given(st.integers(1, 2**24 - 1), st.integers(1, 2**24 - 1))
def test_salt_keeps_everything_but_the_words(one, other):
    original = traffic()
    changed = salted(original, one)
    for before, after in zip(original.requests, changed.requests, strict=True):
        assert dataclasses.replace(after, hash_ids=before.hash_ids) == before
    ids = [block for request in original.requests for block in request.hash_ids]
    changed_ids = [block for request in changed.requests for block in request.hash_ids]
    assert [ids.index(i) for i in ids] == [changed_ids.index(i) for i in changed_ids]
    others = {b for request in salted(original, other).requests for b in request.hash_ids}
    assert not set(changed_ids) & others or one == other
    assert max(changed_ids) < 2**64


def test_a_closed_loop_and_what_the_run_says_of_itself(tmp_path):
    target_traffic = dataclasses.replace(traffic(), schedule=Concurrency(2))
    with serving() as server:
        target = EndpointTarget(EndpointOptions({"agg": f"{server.base_url}"}))
        progress = Silent()
        run = target.measure(PlannedRun(BENCHMARK, AGG, target_traffic, tmp_path), progress)
    assert progress.stages == ["asking", "warming", "measuring"]
    assert progress.done == len(run.records) == 6
    assert sorted(r.request_id for r in progress.latest) == sorted(
        r.request_id for r in run.records
    )
    assert run.deployed.pop("url").startswith("http://127.0.0.1:")
    assert run.deployed == {"model": "m", "prompts": "words of their own"}
    assert run.observed["model"] == "m"
    assert run.observed["is_dynamo"] is False
    assert Metrics(run).time_to_first_token.mean > 3


def test_waiting_for_a_server_that_is_still_loading(tmp_path):
    with serving(FAST, Character(not_ready=2)) as server:
        run = measure(server.base_url, tmp_path, ready_seconds=20)
    assert len(run.records) == 6


# -- being let in ------------------------------------------------------------------------------


def test_an_api_key_is_sent_and_is_nowhere_in_what_is_kept(tmp_path):
    access = read_access(api_key_env="KEY", environment={"KEY": KEY})
    with serving(FAST, Character(api_key=KEY)) as server:
        run = measure(server.base_url, tmp_path, access=access)
        assert all(record.succeeded for record in run.records)
        assert KEY not in repr(run) + repr(access)
        with pytest.raises(DeploymentError, match="the API key is missing") as caught:
            measure(server.base_url, tmp_path)
        wrong = read_access(api_key_env="KEY", environment={"KEY": KEY + "-wrong"})
        with pytest.raises(DeploymentError, match="the API key was not accepted") as caught:
            measure(server.base_url, tmp_path, access=wrong)
    assert KEY not in str(caught.value)
    assert "***" in str(caught.value)


def test_an_error_that_repeats_the_key_is_recorded_without_it(tmp_path):
    access = read_access(api_key_env="KEY", environment={"KEY": KEY})

    def script(index, body):
        broken = body["max_tokens"] == 5
        return Script(status=500, body=f"Bearer {KEY} was bad".encode()) if broken else FAST

    with serving(script, Character(api_key=KEY)) as server:
        run = measure(server.base_url, tmp_path, access=access)
    assert {record.error for record in run.records} == {"HTTP 500: *** was bad"}


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


def test_tls_with_an_authority_of_ones_own_and_a_client_certificate(authority, tmp_path):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    authority.issue_cert("me").private_key_and_cert_chain_pem.write_to_path(tmp_path / "me.pem")
    tls = Tls(ca_file=tmp_path / "ca.pem", certificate_file=tmp_path / "me.pem")
    with serving(FAST, tls=context) as server:
        run = measure(server.base_url, tmp_path, access=Access(tls=tls))
        assert [record.error for record in run.records] == [None] * 6
        with pytest.raises(DeploymentError, match="certificate"):
            measure(server.base_url, tmp_path, ready_seconds=0)


def test_tls_without_trust_is_an_error_and_can_be_done_without(authority, tmp_path):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with serving(FAST, tls=context) as server:
        with pytest.raises(DeploymentError, match="CERTIFICATE_VERIFY_FAILED"):
            measure(server.base_url, tmp_path, ready_seconds=0)
        run = measure(server.base_url, tmp_path, access=Access(tls=Tls(verify=False)))
    assert len(run.records) == 6


# -- switching ---------------------------------------------------------------------------------


def script_file(tmp_path, text):
    path = tmp_path / "switch.py"
    path.write_text(text)
    return [sys.executable, str(path), "{configuration}", "{benchmark}"]


def test_a_command_switches_and_its_output_is_kept(tmp_path):
    command = script_file(tmp_path, "import sys; print('switched to', *sys.argv[1:])")
    with serving() as server:
        progress = Silent()
        measure(server.base_url, tmp_path, KV, progress, switch_command=command)
    assert progress.stages[0] == "switching"
    assert (tmp_path / "logs" / "switch.log").read_text() == "switched to kv example\n"


def test_a_command_that_fails_is_an_error_with_the_end_of_its_output(tmp_path):
    command = script_file(tmp_path, f"print('no such release', '{KEY}'); raise SystemExit(3)")
    access = read_access(api_key_env="KEY", environment={"KEY": KEY})
    with pytest.raises(DeploymentError, match=r"ended with 3; kv was not measured") as c:
        measure("http://127.0.0.1:1", tmp_path, KV, switch_command=command, access=access)
    assert "no such release ***" in str(c.value)
    assert KEY not in (tmp_path / "logs" / "switch.log").read_text()


def test_a_command_that_takes_too_long_is_ended_with_its_children(tmp_path):
    child = "import subprocess, sys, time\n"
    child += "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
    child += "print(p.pid, flush=True)\ntime.sleep(60)"
    command = script_file(tmp_path, child)
    with pytest.raises(DeploymentError, match=r"did not finish within 1 s"):
        measure("http://127.0.0.1:1", tmp_path, switch_command=command, switch_seconds=1)
    pid = int((tmp_path / "logs" / "switch.log").read_text().split()[0])
    deadline = time.monotonic() + 5
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie":
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_ctrl_c_ends_the_command(tmp_path):
    command = script_file(
        tmp_path, "import os, time; print(os.getpid(), flush=True); time.sleep(30)"
    )

    def interrupt():
        log = tmp_path / "logs" / "switch.log"
        while not (log.exists() and log.read_text()):
            time.sleep(0.02)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        measure("http://127.0.0.1:1", tmp_path, switch_command=command)
    pid = int((tmp_path / "logs" / "switch.log").read_text())
    assert not psutil.pid_exists(pid)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("", "is empty"),
        ("./switch.sh", "must have {configuration} among its arguments"),
        ("no-such-program {configuration}", "there is no program 'no-such-program'"),
        ("sh -c 'unbalanced {configuration}", "No closing quotation"),
    ],
)
def test_commands_that_cannot_be_run_are_refused(command, message):
    with pytest.raises(TargetError, match=re.escape(message)):
        split_command(command)


# -- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("localhost:8000", "is not an http(s) URL"),
        ("http://me:hunter22@host", "remove user and password from the URL"),
        ("me:hunter22@host//x", "is not an http(s) URL"),
        ("http://host/?key=hunter22", "must end before '?'"),
        ("http://host:99999", "the port must be a number below 65536"),
    ],
)
def test_addresses_that_are_none_are_refused_without_repeating_passwords(url, message):
    with pytest.raises(TargetError, match=re.escape(message)) as caught:
        check_url("--dynamo-endpoint", url)
    assert "hunter22" not in str(caught.value) or "//" not in url.partition("@")[0]


@pytest.mark.parametrize(
    "url",
    ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/", "http://h:1/v1/models"],
)
def test_addresses_are_taken_with_and_without_v1(url):
    assert check_url("", url) == "http://h:1"
    assert check_url("", "https://h/gateway/v1") == "https://h/gateway"


def test_names_of_addresses():
    urls = parse_urls(["agg=http://h:1", "other/kv=http://h:2/v1", "http://h:3/a=b"])
    assert urls == {"agg": "http://h:1", "other/kv": "http://h:2", "": "http://h:3/a=b"}
    with pytest.raises(TargetError, match="agg is a duplicate"):
        parse_urls(["agg=http://h:1", "agg=http://h:2"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"api_key_env": "NOPE"}, "the environment variable 'NOPE' is not set"),
        ({"api_key_file": Path("/nope")}, "--dynamo-api-key-file: /nope: No such file"),
        ({"headers": ["nonsense"]}, "--dynamo-header (number 1): must be 'NAME: VALUE'"),
        ({"headers": ["A: env:NOPE"]}, "--dynamo-header A: the environment variable 'NOPE'"),
        ({"headers": ["A: b\r\nHost: evil"]}, "must be printable ASCII"),
        ({"api_key_env": "A", "api_key_file": Path("b")}, "not both"),
        ({"api_key_env": "TWO"}, "the API key in variable TWO is empty, or not one line"),
    ],
)
def test_credentials_that_are_not_there_are_named_and_not_repeated(settings, message):
    with pytest.raises(TargetError, match=re.escape(message)):
        read_access(environment={"TWO": "two words"}, **settings)


@pytest.mark.parametrize("option", ["ca_file", "certificate_file", "key_file"])
def test_files_of_tls_that_are_not_there_are_named(option, tmp_path):
    missing = tmp_path / "missing.pem"
    with pytest.raises(TargetError, match=r"missing.pem: no such file"):
        Tls(**{option: missing}).context()
    missing.write_text("not a certificate")
    with pytest.raises(TargetError, match=r"--dynamo-tls-(ca|certificate|key): "):
        Tls(**{option: missing}).context()


def test_what_check_finds(tmp_path):
    with pytest.raises(TargetError, match="needs an address for each configuration"):
        EndpointTarget(EndpointOptions({}))
    with serving(FAST, Character(model="other")) as server:
        url = server.base_url
        cases = [
            ({"agg": url, "kw": url}, {}, "no address is given for kv ('kw' is not one of its "
             "configurations; did you mean 'kv'?)"),
            ({"": url}, {}, "is the address of agg and kv; comparing a server with itself"),
            ({"agg": "http://127.0.0.1:1", "kv": url}, {}, "did not list a model within 0 s"),
            ({"agg": url, "example/kv": url + "/"}, {}, "has no model 'm', which the benchmark "
             "needs; it has other"),
            ({"agg": url, "kv": url + "/"}, {"model": "third"}, "has no model 'third'; it has"),
        ]  # fmt: skip
        for urls, settings, message in cases:
            target = EndpointTarget(EndpointOptions(urls, **settings))
            with pytest.raises(TargetError) as caught:
                target.check(BENCHMARK)
            assert message in str(caught.value)


# -- through pytest ----------------------------------------------------------------------------

MODULE = """
from pytest_dynamo_bench import *
from pytest_dynamo_bench.targets.base import PlannedRun

AGG = Configuration("agg", "baseline", [Worker(1)])
KV = AGG.but(name="kv", role="treatment", router="kv")
TTFT = "time_to_first_token.mean"
benchmark = Benchmark(
    name="example", question="Is it faster?", model="m", hardware=Hardware("H200", 1),
    traffic=MooncakeTrace("trace.jsonl"), configurations=[AGG, KV, AGG.but(name="third")],
    claims=[Claim("KV is faster", TTFT, "kv", "agg", lower_by={"kubernetes": 0.2}),
            Claim("Third is", TTFT, "third", "agg", lower_by={"endpoint": 0.2, "kubernetes": 0.3})],
)

def test_claim(claim, comparison):
    comparison.check(claim)
"""


def trace_file(path, count=60, spacing_ms=25):
    lines = [
        json.dumps({"timestamp": spacing_ms * i, "input_length": 100, "output_length": 5,
                    "hash_ids": [i]})
        for i in range(count)
    ]  # fmt: skip
    path.write_text("\n".join(lines))


def test_a_claim_is_judged_and_the_key_is_nowhere(pytester, monkeypatch):
    pytester.makepyfile(test_example=MODULE)
    trace_file(pytester.path / "trace.jsonl")
    monkeypatch.setenv("MY_KEY", KEY)
    header = "X-Team-4711"
    character = Character(api_key=KEY, english=True)
    slow, fast = Script(time_to_first_token=0.06), Script(time_to_first_token=0.02)
    with serving(slow, character) as agg, serving(fast, character) as kv:
        result = pytester.runpytest(
            "--dynamo-target=endpoint", f"--dynamo-endpoint=agg={agg.base_url}",
            "--dynamo-endpoint", f"kv={kv.base_url}/v1", "--dynamo-api-key-env=MY_KEY",
            "--dynamo-header", f"X-Team: {header}", f"--dynamo-header=X-Other: {header}",
            "-k", "kv-is-faster", "--junitxml=junit.xml", "--dynamo-gate=schedule_delay_ms=1000",
        )  # fmt: skip
        assert agg.seen[0].headers["x-team"] == header
    result.assert_outcomes(passed=1, deselected=1)
    result.stdout.fnmatch_lines(["*KV is faster*"])
    written = [p for p in pytester.path.rglob("*") if p.is_file() and p.suffix != ".py"]
    assert len(written) > 6
    for path in written:
        data = path.read_bytes()
        assert KEY.encode() not in data, path
        assert header.encode() not in data, path
    assert KEY not in result.stdout.str() and header not in result.stdout.str()
    summary = json.loads(next(pytester.path.glob("reports/*/summary.json")).read_text())
    assert "X-Team: ***" in summary["command"]
    assert "--dynamo-header=X-Other: ***" in summary["command"]


def test_a_third_configuration_without_an_address_is_told_before_anything_is_sent(pytester):
    pytester.makepyfile(test_example=MODULE)
    trace_file(pytester.path / "trace.jsonl")
    with serving() as server:
        result = pytester.runpytest(
            "--dynamo-target=endpoint", f"--dynamo-endpoint=agg={server.base_url}",
            f"--dynamo-endpoint=kv={server.base_url}",
        )  # fmt: skip
        assert not server.seen
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*no address is given for third; give --dynamo-endpoint third=*"])


def test_a_missing_key_is_a_usage_error(pytester):
    pytester.makepyfile(test_example=MODULE)
    trace_file(pytester.path / "trace.jsonl")
    result = pytester.runpytest(
        "--dynamo-target=endpoint", "--dynamo-endpoint=http://127.0.0.1:1",
        "--dynamo-api-key-env=NOPE",
    )  # fmt: skip
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*the environment variable 'NOPE' is not set*"])
