"""The release of Dynamo that this package is made for, and everything that follows from it.

``pyproject.toml`` pins the same one for the extra ``local``; a test compares the two.
"""

DYNAMO_RELEASE = "1.4.2"
REQUIREMENT = f"ai-dynamo=={DYNAMO_RELEASE}"
