"""``python -m pytest_dynamo_bench``: sweeps, attributions and traffic without pytest."""

import sys

from pytest_dynamo_bench.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
