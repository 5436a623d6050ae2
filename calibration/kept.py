"""Runs that take long are kept as they end, so that a study can be interrupted and go on.

What is kept are records, not intervals: a study whose procedure has changed judges them anew.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
from pathlib import Path

from pytest_dynamo_bench.errors import ResultsError
from pytest_dynamo_bench.files import write_whole
from pytest_dynamo_bench.records import RequestRecord, Run


class KeptRuns:
    """A directory with one file for every run.

    Args:
        directory: made when the first run is kept.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def get(self, name: str) -> Run | None:
        """A run that was kept; None when there is none of that name.

        Raises:
            ResultsError: there is a file, but it cannot be read.
        """
        path = self._path(name)
        if not path.exists():
            return None
        try:
            row = json.loads(gzip.decompress(path.read_bytes()))
            row["records"] = [
                RequestRecord(**record | {"chunk_ms": tuple(record["chunk_ms"])})
                for record in row["records"]
            ]
            return Run(**row)
        except (OSError, EOFError, ValueError, TypeError, KeyError) as error:
            raise ResultsError(
                f"{path}: cannot be read as a run ({error!r}); remove it, and it is made again"
            ) from None

    def put(self, name: str, run: Run) -> Run:
        """Keep a run; of its chunks only the first and the last.

        Returns:
            The run as it will be read again.
        """
        row = dataclasses.asdict(run)
        for record in row["records"]:
            record["chunk_ms"] = record["chunk_ms"][:1] + record["chunk_ms"][1:][-1:]
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, gzip.compress(json.dumps(row).encode()))
        kept = self.get(name)
        assert kept is not None
        return kept

    def _path(self, name: str) -> Path:
        return self.directory / f"{name}.json.gz"
