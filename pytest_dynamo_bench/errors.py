"""Errors that a user can act on.

Every error says which file, line or field is wrong and what would be right. The plugin
shows them without a traceback.
"""

from __future__ import annotations


class DynamoBenchError(Exception):
    """Base of every error that this package raises on purpose."""


class BenchmarkError(DynamoBenchError):
    """A benchmark module is invalid.

    Raised while the module is imported, before anything is started.
    """


class TrafficError(DynamoBenchError):
    """A trace is missing, or a line of it cannot be read; the message names file and line."""


class TargetError(DynamoBenchError):
    """A target cannot be used here: a package is missing, or an option does not fit it."""


class UnavailableError(TargetError):
    """A configuration needs something optional that isn't installed; the message says how to.

    Its tests are skipped, those of other configurations are not.
    """


class DeploymentError(DynamoBenchError):
    """A configuration failed to start, or a part of it died; the message has the end of the log."""


class LoadError(DynamoBenchError):
    """The load generator cannot do its work: a process of it died, or a tool is missing."""


class InvalidRunError(DynamoBenchError):
    """A run happened, but what it measured cannot carry a verdict."""


class UnexpectedError(DynamoBenchError):
    """An unexpected failure; the message says where its traceback is."""


class ResultsError(DynamoBenchError):
    """Stored results are missing, or cannot be read; the message names the file."""


class ReportError(DynamoBenchError):
    """A report or figure cannot be made: a package is missing, or there is nothing to show."""


class NotMeasuredError(DynamoBenchError):
    """A target has no measurement of this configuration, and cannot make one."""


class RegressionError(DynamoBenchError):
    """Stored results are worse than those they were compared with, and were to be checked."""


class IncompleteError(DynamoBenchError):
    """A part of what was to be read, compared or shown is missing; the message names it."""
