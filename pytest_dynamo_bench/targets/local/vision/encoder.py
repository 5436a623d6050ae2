"""A small vision encoder in real arithmetic: its work grows with the pixels.

It has the shape of the vision towers of Qwen's models, and far less depth: patches of 16 x 16
pixels are projected, pass through residual MLP blocks, and four neighbors each are merged into
one token of the language model. Weights are random. What it gives has the true size, so
that a cache of it fills as on a GPU; how long it takes is the time of this machine.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]

PATCH = 16
TOKEN_PIXELS = 2 * PATCH
_WIDTH = 128
_BLOCKS = 2


def token_grid(width: int, height: int) -> tuple[int, int]:
    """Columns and rows of tokens: sides rounded to multiples of 32, as Qwen's processors do."""
    return max(1, round(width / TOKEN_PIXELS)), max(1, round(height / TOKEN_PIXELS))


def image_tokens(width: int, height: int) -> int:
    """Tokens that an image takes in the prompt."""
    columns, rows = token_grid(width, height)
    return columns * rows


class VisionEncoder:
    """Encodes images.

    Args:
        embedding_values: numbers for each token of the language model: its hidden size, times
            the levels of features that it is given.
    """

    def __init__(self, embedding_values: int) -> None:
        chance = np.random.default_rng(0)

        def weights(rows: int, columns: int) -> Float32Array:
            drawn = chance.standard_normal((rows, columns), dtype=np.float32)
            return np.asarray(drawn / np.float32(rows**0.5), dtype=np.float32)

        self._embed = weights(PATCH * PATCH * 3, _WIDTH)
        self._blocks = [(weights(_WIDTH, 4 * _WIDTH), weights(4 * _WIDTH, _WIDTH))
                        for _ in range(_BLOCKS)]  # fmt: skip
        self._merge = weights(4 * _WIDTH, embedding_values)

    def encode(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float16]:
        """The embedding of an image.

        Args:
            pixels: (height, width, 3).

        Returns:
            (tokens, embedding_values).
        """
        patches = _patches(pixels)
        x = patches @ self._embed
        for up, down in self._blocks:
            x += np.maximum(x @ up, 0) @ down
        # The four patches of a token follow each other.
        return (x.reshape(-1, 4 * _WIDTH) @ self._merge).astype(np.float16)


def _patches(pixels: npt.NDArray[np.uint8]) -> Float32Array:
    """(patches, 768) of -1 … 1, the four patches of a token next to each other."""
    height, width, _ = pixels.shape
    columns, rows = token_grid(width, height)
    tall, wide = rows * TOKEN_PIXELS, columns * TOKEN_PIXELS
    fitted = pixels[:tall, :wide]
    missing = (tall - fitted.shape[0], wide - fitted.shape[1])
    if any(missing):
        fitted = np.pad(fitted, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")
    grid = fitted.reshape(rows, 2, PATCH, columns, 2, PATCH, 3)
    ordered = grid.transpose(0, 3, 1, 4, 2, 5, 6).reshape(-1, PATCH * PATCH * 3)
    return ordered.astype(np.float32) / np.float32(127.5) - np.float32(1)
