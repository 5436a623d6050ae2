"""Validity gates: whether a run is good enough for any verdict.

They follow the rules by which MLPerf Inference's LoadGen declares a run VALID or INVALID (Reddi et
al., "MLPerf Inference Benchmark", ISCA 2020, and the MLCommons inference rules): enough queries for
the reported percentile, all of them completed, issued on schedule, in a steady state. Each gate has
a name, a threshold that can be set, a finding and a remedy.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from pytest_dynamo_bench.arrays import FloatArray
from pytest_dynamo_bench.metric_definitions import parse_metric, percentile_of
from pytest_dynamo_bench.plain_text import one_line
from pytest_dynamo_bench.records import RequestRecord, Run
from pytest_dynamo_bench.traffic import Concurrency, Schedule, Traffic

_REJECTED_STATUS = frozenset({408, 429, 503, 504})
_REJECTED_TEXT = re.compile(
    r"time[d -]*out|rate.?limit|overload|too many requests|service unavailable|rejected", re.I
)
_SEGMENTS = 20
_FEWEST_FOR_TREND = 60


@dataclass(frozen=True)
class GateThresholds:
    """Limits beyond which a run is invalid; shares are between 0 and 1.

    Attributes:
        failed_share: failed or missing requests, of all requests.
        rejected_share: requests that timed out or that the server turned away.
        token_mismatch_share: requests with other token counts than asked for, or than in the
            other configuration.
        token_tolerance: tokens by which a count may be off, for example by a chat template.
        schedule_delay_ms: 99th percentile of how late requests were sent, open loop only ...
        schedule_delay_share: ... or this share of the median time to first token, whichever
            is larger.
        generator_cpu_share: share of a core that the load generator's busiest process used.
        generator_lag_ms: 99th percentile of how late the load generator read what had arrived.
            Where the kernel notes arrivals, that does no harm unless ...
        generator_coalesced_share: ... more chunks than this were read together with later
            ones, beyond one in each response, so that their own arrival is not known.
        processor_share: median share of this machine's CPU in use, if it runs mockers.
        fewest_requests: successful requests.
        fewest_beyond_percentile: successful requests beyond the percentile asked for; 5 means
            500 requests for p99.
        warm_cache_share: prompt tokens served from a cache, of those that no earlier
            request of this run can have put there.
        queue_growth: growth of the time to first token per time that passed, open loop only;
            0.02 is 20 ms later in every second.
        queue_growth_factor: the time to first token at the end over that at the start.
        queue_growth_p_value: of the trend, one-sided.
    """

    failed_share: float = 0.0
    rejected_share: float = 0.0
    token_mismatch_share: float = 0.0
    token_tolerance: int = 0
    schedule_delay_ms: float = 10.0
    schedule_delay_share: float = 0.05
    generator_cpu_share: float = 0.9
    generator_lag_ms: float = 10.0
    generator_coalesced_share: float = 0.1
    processor_share: float = 0.95
    fewest_requests: int = 30
    fewest_beyond_percentile: float = 5.0
    warm_cache_share: float = 0.01
    queue_growth: float = 0.02
    queue_growth_factor: float = 3.0
    queue_growth_p_value: float = 0.001


DEFAULT_THRESHOLDS = GateThresholds()


@dataclass(frozen=True)
class GateResult:
    """The finding of a gate.

    Attributes:
        name: of the gate.
        passed: whether the run may be used.
        saw: what was found, with numbers.
        threshold: what is allowed, with the field of :class:`GateThresholds` where there is one.
        what_to_do: when it did not pass; empty when it did.
        configuration: whose run it is; for a pair both, treatment first.
    """

    name: str
    passed: bool
    saw: str
    threshold: str
    what_to_do: str = ""
    configuration: str = ""

    @property
    def sentence(self) -> str:
        """Which gate saw what, what is allowed, and the remedy."""
        return f"{self.name}: {self.saw} (allowed: {self.threshold}). {self.what_to_do}".rstrip()


def check_run(
    run: Run,
    schedule: Schedule,
    metric: str,
    *,
    traffic: Traffic | None = None,
    thresholds: GateThresholds = DEFAULT_THRESHOLDS,
) -> tuple[GateResult, ...]:
    """The results of all gates for one run, most severe first.

    Args:
        run: what was measured.
        schedule: how the traffic was sent; some gates are about an open loop only.
        metric: full name, such as ``time_to_first_token.p99``: it says how many requests are
            needed.
        traffic: what should have been sent; with it missing requests and warm caches are seen.
        thresholds: limits of the gates.

    Raises:
        ValueError: there is no such metric.
    """
    open_loop = not isinstance(schedule, Concurrency)
    results = [
        _problems(run),
        _deployment(run),
        _failures(run, traffic, thresholds),
        _rejections(run, thresholds),
        _token_counts(run, thresholds),
        _enough_requests(run, metric, thresholds),
        _cold_cache(run, traffic, thresholds),
    ]
    if "cpu_share" in run.observed.get("load_generator", {}):
        results.append(_generator_kept_up(run, thresholds))
    if run.observed.get("processor_use"):
        results.append(_machine_kept_up(run, thresholds))
    if open_loop:
        if not run.simulated:
            results.append(_on_schedule(run, thresholds))
        results.append(_steady_state(run, thresholds))
    return tuple(results)


def check_pair(
    treatment: Run,
    baseline: Run,
    *,
    thresholds: GateThresholds = DEFAULT_THRESHOLDS,
) -> tuple[GateResult, ...]:
    """The results of all gates for two runs of a comparison.

    Args:
        treatment: a run of the treatment.
        baseline: the run of the baseline that it is compared with.
        thresholds: limits of the gates.
    """
    names = f"{treatment.configuration}, {baseline.configuration}"
    same_target = treatment.target == baseline.target and treatment.simulated == baseline.simulated
    of = {id(run): {r.request_id: r for r in run.records} for run in (treatment, baseline)}
    first, second = of[id(treatment)], of[id(baseline)]
    common = [(first[key], second[key]) for key in first if key in second]
    alone = len(first.keys() ^ second.keys())
    # A traffic generated for every run has no request in common and is compared as a whole.
    partly = bool(common) and alone > thresholds.failed_share * len(first.keys() | second.keys())
    asked = [a.request_id for a, b in common if _asked(a) != _asked(b)]
    counted = [
        a.request_id
        for a, b in common
        if a.succeeded
        and b.succeeded
        and (
            _differ(a.completion_tokens, b.completion_tokens, thresholds)
            or _differ(a.prompt_tokens, b.prompt_tokens, thresholds)
        )
    ]
    pairs = max(len(common), 1)
    return (
        _result(
            "same target",
            same_target,
            f"{treatment.target} and {baseline.target}"
            + ("" if treatment.simulated == baseline.simulated else ", one of them simulated"),
            "both on the same target",
            "measure both configurations on one target",
            names,
        ),
        _result(
            "same requests",
            not partly and not asked,
            f"{len(common)} requests in both, {alone} in only one, {len(asked)} with different "
            f"lengths{_examples(asked)}",
            "the same requests with the same lengths in both, or none in common",
            "send the same traffic to both; check for requests lost in one of them",
            names,
        ),
        _result(
            "same token counts",
            len(counted) <= thresholds.token_mismatch_share * pairs,
            f"{len(counted)} of {len(common)} requests have different token counts"
            f"{_examples(counted)}",
            f"token_mismatch_share {thresholds.token_mismatch_share:g}, "
            f"token_tolerance {thresholds.token_tolerance}",
            "fix the output length (ignore_eos, min_tokens) and use one tokenizer and chat "
            "template in both configurations",
            names,
        ),
    )


def _result(
    name: str, passed: bool, saw: str, threshold: str, what_to_do: str, configuration: str
) -> GateResult:
    return GateResult(
        name, bool(passed), saw, threshold, "" if passed else what_to_do, configuration
    )


def _examples(names: Sequence[str]) -> str:
    if not names:
        return ""
    shown = ", ".join(names[:3])
    return f" ({shown}{', …' if len(names) > 3 else ''})"


def _problems(run: Run) -> GateResult:
    return _result(
        "process alive",
        not run.problems,
        "; ".join(run.problems) or "nothing died or restarted",
        "no problem of the run",
        "check the logs in the run's directory and measure again",
        run.configuration,
    )


def _deployment(run: Run) -> GateResult:
    wrong, seen = [], []
    for name in ("model", "workers"):
        if name in run.observed and name in run.deployed:
            text = f"{name}: {run.observed[name]!r}"
            seen.append(text)
            if run.observed[name] != run.deployed[name]:
                wrong.append(f"{text}, expected {run.deployed[name]!r}")
    return _result(
        "deployment as asked for",
        not wrong,
        "; ".join(wrong or seen) or "the deployment does not report model or workers",
        "model and workers as in the configuration",
        "point the target at the right deployment, or wait until all workers have registered",
        run.configuration,
    )


def _failures(run: Run, traffic: Traffic | None, thresholds: GateThresholds) -> GateResult:
    failed = [r for r in run.records if not r.succeeded or not r.chunk_ms]
    missing = _missing(run, traffic)
    expected = max(len(run.records) + len(missing), 1)
    reasons = sorted({one_line(r.error or "no content") for r in failed})
    saw = f"{len(failed)} failed and {len(missing)} missing of {expected} requests"
    if reasons:
        saw += f": {reasons[0]}" + (f" and {len(reasons) - 1} other errors" * (len(reasons) > 1))
    return _result(
        "requests succeeded",
        len(failed) + len(missing) <= thresholds.failed_share * expected and bool(run.records),
        saw if run.records else "no requests",
        f"failed_share {thresholds.failed_share:g}",
        "find out why they failed; the mean of the remaining requests describes different traffic",
        run.configuration,
    )


def _missing(run: Run, traffic: Traffic | None) -> list[str]:
    if traffic is None:
        return []
    seen = {record.request_id for record in run.records}
    return [r.request_id for r in traffic.requests if r.request_id not in seen]


def _rejections(run: Run, thresholds: GateThresholds) -> GateResult:
    rejected = [
        r
        for r in run.records
        if r.status in _REJECTED_STATUS or (r.error and _REJECTED_TEXT.search(r.error))
    ]
    saw = f"{len(rejected)} of {len(run.records)} requests timed out or were rejected"
    if rejected:
        saw += f" (first: {one_line(rejected[0].error or str(rejected[0].status))})"
    return _result(
        "no time-outs or rejections",
        len(rejected) <= thresholds.rejected_share * max(len(run.records), 1),
        saw,
        f"rejected_share {thresholds.rejected_share:g}",
        "lower the load, or raise the server's limits and the client's time-out",
        run.configuration,
    )


def _differ(a: int | None, b: int | None, thresholds: GateThresholds) -> bool:
    return a is not None and b is not None and abs(a - b) > thresholds.token_tolerance


def _asked(record: RequestRecord) -> tuple[int, int]:
    return record.input_tokens, record.output_tokens


def _token_counts(run: Run, thresholds: GateThresholds) -> GateResult:
    prompts, outputs = [], []
    succeeded = [record for record in run.records if record.succeeded]
    for record in succeeded:
        if _differ(record.prompt_tokens, record.input_tokens, thresholds):
            prompts.append(record)
        if _differ(record.completion_tokens, record.output_tokens, thresholds):
            outputs.append(record)
    wrong = {record.request_id for record in (*prompts, *outputs)}
    saw = f"{len(prompts)} prompts and {len(outputs)} outputs of {len(succeeded)} differ"
    if outputs:
        saw += f" (first output: {outputs[0].completion_tokens} of {outputs[0].output_tokens})"
    elif prompts:
        saw += f" (first prompt: {prompts[0].prompt_tokens} for {prompts[0].input_tokens})"
    return _result(
        "token counts as asked for",
        len(wrong) <= thresholds.token_mismatch_share * max(len(succeeded), 1),
        saw,
        f"token_mismatch_share {thresholds.token_mismatch_share:g}, "
        f"token_tolerance {thresholds.token_tolerance}",
        "set ignore_eos and min_tokens, and check tokenizer and chat template",
        run.configuration,
    )


def _on_schedule(run: Run, thresholds: GateThresholds) -> GateResult:
    delays = [r.sent_ms - r.scheduled_ms for r in run.records if r.sent_ms is not None]
    waits = _time_to_first_token(run)[1]
    late = float(np.percentile(delays, 99)) if delays else 0.0
    median = float(np.median(waits)) if len(waits) else 0.0
    allowed = max(thresholds.schedule_delay_ms, thresholds.schedule_delay_share * median)
    return _result(
        "load generator on schedule",
        late <= allowed,
        f"p99 of the schedule delay {late:.1f} ms, median TTFT {median:.1f} ms",
        f"{allowed:.1f} ms: the larger of schedule_delay_ms {thresholds.schedule_delay_ms:g} and "
        f"schedule_delay_share {thresholds.schedule_delay_share:g} of the median",
        "give the load generator its own core, or lower the request rate",
        run.configuration,
    )


def _machine_kept_up(run: Run, thresholds: GateThresholds) -> GateResult:
    """A saturated machine delays the mockers' steps, which looks like load."""
    used = float(np.median(run.observed["processor_use"]))
    return _result(
        "machine kept up",
        used <= thresholds.processor_share,
        f"{100 * used:.0f} % of the CPU in use (median)",
        f"processor_share {thresholds.processor_share:g}",
        "run nothing else on this machine, or slow modelled time down (Size.fast_forward)",
        run.configuration,
    )


def _generator_kept_up(run: Run, thresholds: GateThresholds) -> GateResult:
    """Whether what the load generator measured of itself lets its numbers be trusted.

    A process that needs all of a core starts requests late in a closed loop too, where no
    schedule shows it. How late it reads is an error of the latencies where the kernel does not
    note arrivals. Where it does, only what is read together gets a wrong time, which a server
    that writes several chunks at once causes as well: both must be seen to blame the generator.
    """
    health = run.observed["load_generator"]
    cpu, from_kernel = float(health["cpu_share"]), float(health["kernel_timestamp_share"])
    by_kernel = from_kernel > 0.99
    lag = float(health["receive_lag_ms" if by_kernel else "loop_busy_ms"]["p99"])
    chunks = sum(len(record.chunk_ms) for record in run.records)
    # The last chunk of a response mostly comes together with its end.
    merged = sum(max(record.coalesced_chunks - 1, 0) for record in run.records)
    coalesced = merged / max(chunks, 1)
    late = lag > thresholds.generator_lag_ms and not (
        by_kernel and coalesced <= thresholds.generator_coalesced_share
    )
    saw = (
        f"{cpu:.0%} of a core, read {lag:.1f} ms late (p99), {coalesced:.1%} of the chunks "
        f"coalesced with later ones, {from_kernel:.0%} of the arrivals with kernel timestamps"
    )
    if health["clock_steps"]:
        saw += f"; the system clock was set {health['clock_steps']} times"
    return _result(
        "load generator kept up",
        cpu <= thresholds.generator_cpu_share and not late,
        saw,
        f"generator_cpu_share {thresholds.generator_cpu_share:g}, generator_lag_ms "
        f"{thresholds.generator_lag_ms:g}, generator_coalesced_share "
        f"{thresholds.generator_coalesced_share:g}",
        "use more processes (--dynamo-load-processes), free a core, or lower the load; "
        "python -m pytest_dynamo_bench check-client measures what this machine can do",
        run.configuration,
    )


def _enough_requests(run: Run, metric: str, thresholds: GateThresholds) -> GateResult:
    _, statistic = parse_metric(metric)
    percentile = percentile_of(statistic) if statistic else None
    count = sum(1 for r in run.records if r.succeeded and r.chunk_ms)
    needed = float(thresholds.fewest_requests)
    why = f"fewest_requests {thresholds.fewest_requests}"
    if percentile is not None:
        share = min(percentile, 100 - percentile) / 100
        for_percentile = thresholds.fewest_beyond_percentile / share if share > 0 else np.inf
        if for_percentile > needed:
            needed = for_percentile
            why = (
                f"fewest_beyond_percentile {thresholds.fewest_beyond_percentile:g} "
                f"beyond {statistic}: {for_percentile:.0f} requests"
            )
    return _result(
        "enough requests",
        count >= needed - 1e-6,
        f"{count} successful requests for {metric}",
        why,
        "send more traffic, or claim a less extreme percentile",
        run.configuration,
    )


def _cold_cache(run: Run, traffic: Traffic | None, thresholds: GateThresholds) -> GateResult:
    name, remedy = "caches cold at the start", "use a fresh deployment, or flush its caches"
    at_start = run.observed.get("cached_tokens_at_start")
    if at_start is not None and at_start > 0:
        return _result(
            name,
            False,
            f"{at_start} cached tokens before the first request",
            "none",
            remedy,
            run.configuration,
        )
    cached, prompts, requests = _cached_but_never_seen(run, traffic)
    share = cached / prompts if prompts else 0.0
    known = at_start is not None or prompts > 0
    return _result(
        name,
        share <= thresholds.warm_cache_share,
        f"{cached} of {prompts} prompt tokens cached in {requests} requests whose prefix is new"
        if known
        else "cached tokens are not known",
        f"warm_cache_share {thresholds.warm_cache_share:g}",
        remedy,
        run.configuration,
    )


def _cached_but_never_seen(run: Run, traffic: Traffic | None) -> tuple[int, int, int]:
    """Cached tokens, prompt tokens and number of requests with a prefix that was never sent.

    Only first turns count: a later one repeats what the session generated, which is cached.
    """
    if traffic is None:
        return 0, 0, 0
    first_block = {r.request_id: r.hash_ids[0] for r in traffic.requests if r.hash_ids}
    seen: set[int] = set()
    cached = prompts = requests = 0
    for record in sorted(
        run.records, key=lambda r: r.sent_ms if r.sent_ms is not None else r.scheduled_ms
    ):
        block = first_block.get(record.request_id)
        if block is None:
            continue
        if block not in seen and record.turn == 0 and record.cached_tokens is not None:
            cached += record.cached_tokens
            prompts += record.input_tokens
            requests += 1
        seen.add(block)
    return cached, prompts, requests


def _time_to_first_token(run: Run) -> tuple[FloatArray, FloatArray]:
    """Due time and time from due to first token of all successful requests, in that order."""
    rows = sorted(
        (r.scheduled_ms, r.first_token_ms - r.scheduled_ms)
        for r in run.records
        if r.succeeded and r.first_token_ms is not None
    )
    table = np.array(rows, dtype=np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _steady_state(run: Run, thresholds: GateThresholds) -> GateResult:
    """Whether the queue keeps growing: an overloaded open loop has no steady state.

    The run is divided into 20 segments of equally many requests, so that bursts weigh no more
    than quiet times; of each the median time to first token is taken, counted from when the
    request was due. The gate fails when all of these are true: the medians rise (Kendall's tau,
    one-sided), by a Theil-Sen slope (Sen, J. Am. Statist. Ass. 63, 1968) of at least
    ``queue_growth``, and the last quarter waits ``queue_growth_factor`` times as long as the
    first. A burst that drains again fails the first condition, a slow drift the second, and
    a small rise on top of long waits the third.
    """
    due, waits = _time_to_first_token(run)
    name, allowed = (
        "queue in a steady state",
        f"queue_growth {thresholds.queue_growth:g} and queue_growth_factor "
        f"{thresholds.queue_growth_factor:g}, with p below {thresholds.queue_growth_p_value:g}",
    )
    if len(due) < _FEWEST_FOR_TREND or not due[-1] > due[0]:
        saw = f"{len(due)} requests are too few for a trend"
        return _result(name, True, saw, allowed, "", run.configuration)
    middles, medians = queue_trend(due, waits)
    slope = float(stats.theilslopes(medians, middles).slope)
    p_value = float(stats.kendalltau(middles, medians, alternative="greater").pvalue)
    quarter = _SEGMENTS // 4
    start, end = float(np.median(medians[:quarter])), float(np.median(medians[-quarter:]))
    growing = (
        slope >= thresholds.queue_growth
        and p_value < thresholds.queue_growth_p_value
        and end >= thresholds.queue_growth_factor * start
    )
    return _result(
        name,
        not growing,
        f"TTFT {start:,.0f} ms in the first quarter, {end:,.0f} ms in the last, "
        f"{1000 * slope:+.1f} ms per second (p {p_value:.2g})",
        allowed,
        "the load exceeds what this configuration can serve, and means depend on the length of the "
        "run: lower the request rate, or claim throughput at a fixed concurrency",
        run.configuration,
    )


def queue_trend(due_ms: FloatArray, waits_ms: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Middle due time and median wait of 20 segments of equally many requests, in ms."""
    parts = zip(np.array_split(due_ms, _SEGMENTS), np.array_split(waits_ms, _SEGMENTS), strict=True)
    table = np.array([(np.median(due), np.median(waits)) for due, waits in parts])
    return table[:, 0], table[:, 1]
