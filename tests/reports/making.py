"""Results on disk as a session leaves them, made up in a second."""

from __future__ import annotations

import dataclasses
import json
from contextlib import contextmanager, suppress

from pytest_dynamo_bench import (
    Benchmark,
    Claim,
    Configuration,
    Goodput,
    Hardware,
    MooncakeTrace,
    PublishedResults,
    Worker,
)
from pytest_dynamo_bench.comparison import Comparison
from pytest_dynamo_bench.errors import DynamoBenchError
from pytest_dynamo_bench.reports.store import ResultStore
from tests.fake_target import FakeTarget

HOSTILE = (
    "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1> "
    "| `code` **bold** [link](http://evil.example) ![i](http://evil.example/i.png) @someone #12 "
    "\x1b[31mred\x1b[0m \x07 \u202eright-to-left \ud800 {{ 7*7 }} {% raw %} &amp; 'quote\" "
)
LONG = HOSTILE + "x" * 1_000_000
TTFT = "time_to_first_token.mean"
AGG = Configuration("agg", "baseline", [Worker(8, tp=2)])


def example(text: str = "", name: str = "example") -> Benchmark:
    """A benchmark with three configurations; ``text`` is added wherever an author writes."""
    kv = AGG.but(name="kv", role="treatment", router="kv", published=False, note=text)
    split = AGG.but(
        name="split", role="promoted",
        workers=[Worker(6, mode="prefill", tp=2), Worker(2, mode="decode", tp=2)],
    )  # fmt: skip
    return Benchmark(
        name=name,
        question=f"Is it faster? {text}",
        model=f"Qwen/Qwen3-32B {text}",
        hardware=Hardware("H200", 16, nodes=2, kv_transfer_gb_per_second=100),
        traffic=MooncakeTrace("conversation"),
        goodput=Goodput(time_to_first_token_ms=110, inter_token_latency_ms=25),
        held_constant=f"everything else {text}",
        recipe=f"recipes/example {text}",
        notes=[f"A note. {text}"],
        configurations=[AGG, kv, split],
        claims=[
            Claim(f"KV routing is faster {text}", TTFT, "kv", "agg", lower_by=0.2, evidence=text),
            Claim("The split is faster", TTFT, "split", "agg", lower_by=0.2),
            Claim("Goodput rises", "goodput", "kv", "agg", higher_by=0.01),
            Claim("Hits do not fall", "kv_hit_rate", "kv", "agg", not_lower_by=0.05,
                  kind="mechanism"),
        ],
        published=PublishedResults(
            source=f"Somebody's page {text}", hardware=f"64 B300 {text}",
            values={"agg": {"tok/s/GPU": 1700}, "split": {"tok/s/GPU": 5400, f"TTFT {text}": 12}},
            note=text,
        ),
    )  # fmt: skip


class TextTarget(FakeTarget):
    """Says ``text`` wherever a target does."""

    def __init__(self, text: str, **settings):
        super().__init__(**settings)
        self.text = text

    def limitations(self, benchmark, configuration):
        return (f"everything is made up {self.text}",)

    def measure(self, *arguments, **more):
        run = super().measure(*arguments, **more)
        return dataclasses.replace(
            run, deployed={"command": self.text}, observed={"log": self.text}
        )


class _Silent:
    def stage(self, name):
        pass

    def requests(self, done, failed, total):
        pass


@contextmanager
def _no_display(benchmark, configuration):
    yield _Silent()


def make_session(directory, text: str = "", name: str = "example", **settings):
    """Measure, judge and store; returns the directory."""
    benchmark = example(text, name)
    settings = {"factors": {"kv": 0.5}} | settings
    target = TextTarget(text, **settings)
    store = ResultStore(directory, target.name, ["pytest", f"--deselect={text}"])
    comparison = Comparison(benchmark, target, store, _no_display, claims=benchmark.claims)
    for claim in benchmark.claims:
        # What did not come up is stored as the reason why there is no result.
        with suppress(DynamoBenchError):
            comparison.verdict(claim)
    estimate = {"value": 0.1, "low": 0.05, "high": 0.2, "sign": 1}
    rows = [
        {"feature": f"kv_routing {text[:200]}", "alone": estimate, "on_top": estimate,
         "average": estimate},
        {"feature": "total", "average": estimate},
    ]  # fmt: skip
    study = {"metric": "goodput", "treatment": "split", "baseline": "agg", "rows": rows}
    path = directory / benchmark.name / "attribution.json"
    path.write_text(json.dumps(study, ensure_ascii=True))
    return directory
