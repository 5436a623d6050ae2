"""What runs inside vLLM's processes, in their own environment: nothing of this package is there.

The modules here are found by ``PYTHONPATH``, by their own names.
"""
