"""Hashes blocks of tokens as this Python's Dynamo does; a process of its own.

Standard input has tokens of 4 bytes, standard output gets a hash of 8 bytes for each block; the
argument is the number of tokens in a block. Each block is hashed on its own.
"""

import array
import sys

from dynamo.llm import compute_block_hash_for_seq

_BLOCKS_AT_A_TIME = 10_000


def main() -> None:
    """Answer on standard output."""
    size = int(sys.argv[1])
    while given := sys.stdin.buffer.read(4 * size * _BLOCKS_AT_A_TIME):
        hashes = compute_block_hash_for_seq(array.array("I", given).tolist(), size)
        sys.stdout.buffer.write(array.array("Q", hashes).tobytes())


if __name__ == "__main__":
    main()
