"""Dynamo's releases: the only place that knows them by their numbers.

What a release can do is asked of it (:mod:`pytest_dynamo_bench.dynamo.abilities`).
"""

# pyproject.toml pins the same one for the extra "local"; a test compares the two.
DYNAMO_RELEASE = "1.4.2"
REQUIREMENT = f"ai-dynamo=={DYNAMO_RELEASE}"
# Those that all of this has been tried with.
TRIED = (DYNAMO_RELEASE, "1.5.1", "1.6.1")
# Requirements of some releases that are downloaded from elsewhere while they are built, and what
# is missing without them.
DISPENSABLE = {
    "aisimulate": "the mocker's and replay's own timing of engines (--ais-…, --aic-…) and the "
    "planner are missing; frontend, router, mockers and replay with engine profiles are not"
}
# Operators from this release on store v1beta1; used only where there is no cluster to ask.
V1BETA1_SINCE = (1, 5, 0)
