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

from pytest_dynamo_bench.arrays import BoolArray, FloatArray
from pytest_dynamo_bench.metric_definitions import parse_metric, percentile_of
from pytest_dynamo_bench.plain_text import one_line
from pytest_dynamo_bench.records import Run
from pytest_dynamo_bench.request_table import RequestTable
from pytest_dynamo_bench.traffic import Concurrency, Schedule, Traffic

_REJECTED_STATUS = frozenset({408, 429, 503, 504})
_REJECTED_TEXT = re.compile(
    r"time[d -]*out|rate.?limit|overload|too many requests|service unavailable|rejected", re.I
)
_SEGMENTS = 20
_FEWEST_FOR_TREND = 60
_ENOUGH = "enough requests"


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
    requests = RequestTable.of(run.records)
    results = [
        _problems(run),
        _deployment(run),
        _failures(run, requests, traffic, thresholds),
        _rejections(run, requests, thresholds),
        _token_counts(run, requests, thresholds),
        _enough_requests(run, requests, metric, thresholds),
        _cold_cache(run, requests, traffic, thresholds),
    ]
    if "cpu_share" in run.observed.get("load_generator", {}):
        results.append(_generator_kept_up(run, requests, thresholds))
    if run.observed.get("processor_use"):
        results.append(_machine_kept_up(run, thresholds))
    if open_loop:
        if not run.simulated:
            results.append(_on_schedule(run, requests, thresholds))
        results.append(_steady_state(run, requests, thresholds))
    return tuple(results)


def for_metric(
    gates: Sequence[GateResult],
    run: Run,
    metric: str,
    thresholds: GateThresholds = DEFAULT_THRESHOLDS,
) -> tuple[GateResult, ...]:
    """The gates of :func:`check_run` for another metric; only one of them asks which it is."""
    requests = RequestTable.of(run.records)
    return tuple(
        _enough_requests(run, requests, metric, thresholds) if gate.name == _ENOUGH else gate
        for gate in gates
    )


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
    tables = [RequestTable.of(run.records) for run in (treatment, baseline)]
    first, second = (
        {name: row for row, name in enumerate(table.texts("request_id"))} for table in tables
    )
    names_in_both = np.array([name for name in first if name in second], dtype=object)
    common = len(names_in_both)
    rows = [
        np.fromiter((places[name] for name in names_in_both), np.int64, common)
        for places in (first, second)
    ]
    alone = len(first) + len(second) - 2 * common
    # A traffic generated for every run has no request in common and is compared as a whole.
    partly = common > 0 and alone > thresholds.failed_share * (len(first) + len(second) - common)

    def pair(name: str) -> tuple[FloatArray, FloatArray]:
        a, b = (table.numbers(name)[own] for table, own in zip(tables, rows, strict=True))
        return a, b

    def differ(names: Sequence[str], tolerance: int, where: BoolArray | None = None) -> list[str]:
        found = np.any([_differ(*pair(name), tolerance) for name in names], axis=0)
        return list(names_in_both[found if where is None else found & where])

    asked = differ(("input_tokens", "output_tokens"), 0)
    both_succeeded = ~(tables[0].failed[rows[0]] | tables[1].failed[rows[1]])
    counted = differ(
        ("completion_tokens", "prompt_tokens"), thresholds.token_tolerance, both_succeeded
    )
    pairs = max(common, 1)
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
            f"{common} requests in both, {alone} in only one, {len(asked)} with different "
            f"lengths{_examples(asked)}",
            "the same requests with the same lengths in both, or none in common",
            "send the same traffic to both; check for requests lost in one of them",
            names,
        ),
        _result(
            "same token counts",
            len(counted) <= thresholds.token_mismatch_share * pairs,
            f"{len(counted)} of {common} requests have different token counts{_examples(counted)}",
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


def _failures(
    run: Run, requests: RequestTable, traffic: Traffic | None, thresholds: GateThresholds
) -> GateResult:
    failed = int((~requests.good).sum())
    missing = _missing(requests, traffic)
    expected = max(len(requests) + missing, 1)
    errors = set(requests.texts("error")[~requests.good])
    reasons = sorted({one_line(error or "no content") for error in errors})
    saw = f"{failed} failed and {missing} missing of {expected} requests"
    if reasons:
        saw += f": {reasons[0]}" + (f" and {len(reasons) - 1} other errors" * (len(reasons) > 1))
    return _result(
        "requests succeeded",
        failed + missing <= thresholds.failed_share * expected and len(requests) > 0,
        saw if len(requests) else "no requests",
        f"failed_share {thresholds.failed_share:g}",
        "find out why they failed; the mean of the remaining requests describes different traffic",
        run.configuration,
    )


def _missing(requests: RequestTable, traffic: Traffic | None) -> int:
    wanted = [request.request_id for request in traffic.requests] if traffic else []
    seen = set(requests.texts("request_id"))
    return sum(name not in seen for name in wanted)


def _rejections(run: Run, requests: RequestTable, thresholds: GateThresholds) -> GateResult:
    status, errors = requests.numbers("status"), requests.texts("error")
    by_status = np.isin(status, list(_REJECTED_STATUS))
    by_text = [error for error in set(errors) if error and _REJECTED_TEXT.search(error)]
    rejected = np.flatnonzero(by_status | np.any([errors == each for each in by_text], axis=0))
    saw = f"{len(rejected)} of {len(requests)} requests timed out or were rejected"
    if len(rejected):
        first = rejected[0]
        saw += f" (first: {one_line(errors[first] or f'{status[first]:.0f}')})"
    return _result(
        "no time-outs or rejections",
        len(rejected) <= thresholds.rejected_share * max(len(requests), 1),
        saw,
        f"rejected_share {thresholds.rejected_share:g}",
        "lower the load, or raise the server's limits and the client's time-out",
        run.configuration,
    )


def _differ(a: FloatArray, b: FloatArray, tolerance: int) -> BoolArray:
    """Where both are known, and not the same."""
    return np.asarray(np.abs(a - b) > tolerance)


def _token_counts(run: Run, requests: RequestTable, thresholds: GateThresholds) -> GateResult:
    ok = ~requests.failed
    count = int(ok.sum())
    given, prompt, asked, completed = (
        requests.numbers(name)
        for name in ("input_tokens", "prompt_tokens", "output_tokens", "completion_tokens")
    )
    prompts = np.flatnonzero(ok & _differ(prompt, given, thresholds.token_tolerance))
    outputs = np.flatnonzero(ok & _differ(completed, asked, thresholds.token_tolerance))
    wrong = set(requests.texts("request_id")[np.union1d(prompts, outputs)])
    saw = f"{len(prompts)} prompts and {len(outputs)} outputs of {count} differ"
    if len(outputs):
        saw += f" (first output: {completed[outputs[0]]:.0f} of {asked[outputs[0]]:.0f})"
    elif len(prompts):
        saw += f" (first prompt: {prompt[prompts[0]]:.0f} for {given[prompts[0]]:.0f})"
    return _result(
        "token counts as asked for",
        len(wrong) <= thresholds.token_mismatch_share * max(count, 1),
        saw,
        f"token_mismatch_share {thresholds.token_mismatch_share:g}, "
        f"token_tolerance {thresholds.token_tolerance}",
        "set ignore_eos and min_tokens, and check tokenizer and chat template",
        run.configuration,
    )


def _on_schedule(run: Run, requests: RequestTable, thresholds: GateThresholds) -> GateResult:
    delays = requests.numbers("sent_ms") - requests.numbers("scheduled_ms")
    delays = delays[~np.isnan(delays)]
    waits = _time_to_first_token(requests)[1]
    late = float(np.percentile(delays, 99)) if len(delays) else 0.0
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


def _generator_kept_up(run: Run, requests: RequestTable, thresholds: GateThresholds) -> GateResult:
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
    chunks = int(requests.chunk_counts.sum())
    # The last chunk of a response mostly comes together with its end.
    merged = float((requests.numbers("coalesced_chunks") - 1).clip(0).sum())
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


def _enough_requests(
    run: Run, requests: RequestTable, metric: str, thresholds: GateThresholds
) -> GateResult:
    _, statistic = parse_metric(metric)
    percentile = percentile_of(statistic) if statistic else None
    count = int(requests.good.sum())
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
        _ENOUGH,
        count >= needed - 1e-6,
        f"{count} successful requests for {metric}",
        why,
        "send more traffic, or claim a less extreme percentile",
        run.configuration,
    )


def _cold_cache(
    run: Run, requests: RequestTable, traffic: Traffic | None, thresholds: GateThresholds
) -> GateResult:
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
    cached, prompts, count = _cached_but_never_seen(requests, traffic)
    share = cached / prompts if prompts else 0.0
    known = at_start is not None or prompts > 0
    return _result(
        name,
        share <= thresholds.warm_cache_share,
        f"{cached} of {prompts} prompt tokens cached in {count} requests whose prefix is new"
        if known
        else "cached tokens are not known",
        f"warm_cache_share {thresholds.warm_cache_share:g}",
        remedy,
        run.configuration,
    )


def _cached_but_never_seen(requests: RequestTable, traffic: Traffic | None) -> tuple[int, int, int]:
    """Cached tokens, prompt tokens and number of requests with a prefix that was never sent.

    Requests with the same prefix that are sent before the first of them is answered may be
    processed in any order, so that each but one can find what another has computed. The one with
    the fewest cached tokens stands for them. Only first turns count: a later one repeats what the
    session generated, which is cached.
    """
    if traffic is None:
        return 0, 0, 0
    first_block = {r.request_id: r.hash_ids[0] for r in traffic.requests if r.hash_ids}
    sent, due, answered, cached, given, turn = (
        requests.numbers(name)
        for name in (
            *("sent_ms", "scheduled_ms", "first_token_ms"),
            *("cached_tokens", "input_tokens", "turn"),
        )
    )
    went_out = np.where(np.isnan(sent), due, sent)
    order = np.argsort(went_out, kind="stable")
    together: dict[int, list[int]] = {}
    for row, name in zip(order.tolist(), requests.texts("request_id")[order], strict=True):
        if name in first_block:
            rows = together.setdefault(first_block[name], [row])
            if row != rows[0] and went_out[row] < answered[rows[0]] and turn[row] == 0:
                rows.append(row)
    known = (rows for rows in together.values() if turn[rows[0]] == 0 and cached[rows[0]] >= 0)
    chosen = np.array([rows[np.nanargmin(cached[rows])] for rows in known], np.int64)
    return int(cached[chosen].sum()), int(given[chosen].sum()), len(chosen)


def _time_to_first_token(requests: RequestTable) -> tuple[FloatArray, FloatArray]:
    """Due time and time from due to first token of all successful requests, in that order."""
    due = requests.numbers("scheduled_ms")[requests.good]
    waits = requests.numbers("first_token_ms")[requests.good] - due
    order = np.lexsort((waits, due))
    return due[order], waits[order]


def _steady_state(run: Run, requests: RequestTable, thresholds: GateThresholds) -> GateResult:
    """Whether the queue keeps growing: an overloaded open loop has no steady state.

    The run is divided into 20 segments of equally many requests, so that bursts weigh no more
    than quiet times; of each the median time to first token is taken, counted from when the
    request was due. The gate fails when all of these are true: the medians rise (Kendall's tau,
    one-sided), by a Theil-Sen slope (Sen, J. Am. Statist. Ass. 63, 1968) of at least
    ``queue_growth``, and the last quarter waits ``queue_growth_factor`` times as long as the
    first. A burst that drains again fails the first condition, a slow drift the second, and
    a small rise on top of long waits the third.
    """
    due, waits = _time_to_first_token(requests)
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
