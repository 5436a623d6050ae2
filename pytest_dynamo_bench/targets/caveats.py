"""What the times of a traffic mean for whatever is measured with it, on any target."""

from __future__ import annotations

from pytest_dynamo_bench.features import Caveat
from pytest_dynamo_bench.traffic import Traffic, arrivals


def of_arrivals(whole: Traffic, sent: Traffic) -> tuple[Caveat, ...]:
    """What the times of a traffic mean for what is measured with it, on any target.

    Args:
        whole: the published traffic.
        sent: what of it a target sends.
    """
    recorded, found = arrivals(whole), arrivals(sent)
    if found is not None and found.in_bursts:
        return (
            Caveat(
                "arrivals-in-bursts",
                f"Requests are sent at the times of the recording, in its steps: {found}.",
                "Latencies are those of bursts that may never have been: short prompts wait for "
                "long ones, most where a router brings many to one worker. spread_arrivals=True "
                "of the traffic's source shows how much of a claim depends on that.",
            ),
        )
    if recorded is not None and recorded.in_bursts and found is not None and sent.share < 1:
        return (
            Caveat(
                "bursts-cut-apart",
                f"The recording has its requests in steps: {recorded}. Of the cut "
                f"{found.mean_at_once:.1f} start at once (at most {found.most_at_once}).",
                "Queues behind such bursts, as where the whole recording is sent, are not in "
                "these latencies.",
            ),
        )
    return ()
