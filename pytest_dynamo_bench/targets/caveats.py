"""What the times of a traffic mean for whatever is measured with it, on any target."""

from __future__ import annotations

from pytest_dynamo_bench.features import Caveat
from pytest_dynamo_bench.traffic import Traffic, arrivals


def of_arrivals(whole: Traffic, sent: Traffic) -> tuple[Caveat, ...]:
    """What the timestamps of a traffic mean for any measurement with it.

    Args:
        whole: the published traffic.
        sent: what of it a target sends.
    """
    recorded = arrivals(whole)
    found = recorded if sent is whole else arrivals(sent)
    if found is not None and found.in_bursts:
        return (
            Caveat(
                "arrivals-in-bursts",
                f"Requests arrive in bursts, because the trace's timestamps are coarse: {found}.",
                "Real traffic may not have had these bursts. In a burst, short prompts wait for "
                "long ones, most of all if the router sends many of them to one worker. Use "
                "spread_arrivals=True to see how much a claim depends on it.",
            ),
        )
    if recorded is not None and recorded.in_bursts and found is not None and sent.share < 1:
        return (
            Caveat(
                "bursts-cut-apart",
                f"The trace has coarse timestamps: {recorded}. In the cut "
                f"{found.mean_at_once:.1f} start at once (at most {found.most_at_once}).",
                "These latencies do not include the queues that such bursts cause in the whole "
                "trace.",
            ),
        )
    return ()
