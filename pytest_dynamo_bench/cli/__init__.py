"""The command line: what a person asks of a benchmark beside its claims."""
