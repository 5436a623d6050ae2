"""Images of requests: where they come from, made or read one at a time.

A pool of noise images would fill gigabytes, so that nothing here keeps an image. Noise comes
from numpy's PCG64 bit generator, whose stream is fixed by numpy's compatibility policy (NEP
19), and its PNG is written here, without compression: the bytes of a file depend on seed,
number and size alone, not on a version of zlib. Noise cannot be compressed anyway.
"""

from __future__ import annotations

import abc
import base64
import binascii
import functools
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_dynamo_bench.errors import TrafficError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_PNG = b"\x89PNG\r\n\x1a\n"
_MEDIA_TYPES = ((_PNG, "image/png"), (b"\xff\xd8\xff", "image/jpeg"), (b"GIF8", "image/gif"))
_STORED_BYTES = 65_535
_DATA_URL = "data:"


class Images(abc.ABC):
    """The images of a traffic, by number."""

    @abc.abstractmethod
    def encoded(self, image: int) -> bytes:
        """An image as a file has it: PNG or another format.

        Raises:
            TrafficError: it cannot be read; the message names the file.
        """

    @abc.abstractmethod
    def size(self, image: int) -> tuple[int, int]:
        """Width and height in pixels."""

    @abc.abstractmethod
    def encoded_bytes(self, image: int) -> int:
        """The length of :meth:`encoded`."""

    @property
    @abc.abstractmethod
    def description(self) -> str:
        """A phrase for reports."""

    def data_url(self, image: int) -> str:
        """An image as a ``data:`` URL, the form in which it is sent."""
        content = self.encoded(image)
        return f"data:{media_type(content)};base64,{base64.b64encode(content).decode('ascii')}"


@dataclass(frozen=True)
class NoiseImages(Images):
    """Uniform random RGB pixels as PNG files, the same for a seed everywhere.

    Attributes:
        width: of every image, pixels.
        height: of every image, pixels.
        seed: decides all of them; images of one seed differ from each other.
    """

    width: int
    height: int
    seed: int = 0

    def pixels(self, image: int) -> npt.NDArray[np.uint8]:
        """(height, width, 3) noise."""
        count = self.height * self.width * 3
        import numpy as np

        bits = np.random.PCG64(np.random.SeedSequence([self.seed, image]))
        raw = np.asarray(bits.random_raw(-(-count // 8)), dtype="<u8")
        return raw.view(np.uint8)[:count].reshape(self.height, self.width, 3)

    def encoded(self, image: int) -> bytes:
        return png(self.pixels(image))

    def size(self, image: int) -> tuple[int, int]:
        return self.width, self.height

    def encoded_bytes(self, image: int) -> int:
        return _png_bytes(self.width, self.height)

    @property
    def description(self) -> str:
        return f"{self.width} x {self.height} noise as PNG"


@dataclass(frozen=True)
class ImageFiles(Images):
    """Images of a file of requests: paths, or ``data:`` URLs, in the order of their numbers."""

    references: tuple[str, ...]
    directory: Path = Path()

    def encoded(self, image: int) -> bytes:
        reference = self.references[image]
        if reference.startswith(_DATA_URL):
            head, _, body = reference.partition(",")
            try:
                return base64.b64decode(body, validate=True) if head.endswith(";base64") else b""
            except binascii.Error as error:
                raise TrafficError(f"image {image}: the data URL cannot be read: {error}") from (
                    None
                )
        path = self.directory / reference
        try:
            return path.read_bytes()
        except OSError as error:
            raise TrafficError(f"{path}: the image cannot be read: {error.strerror}") from None

    def size(self, image: int) -> tuple[int, int]:
        return size_of(self.encoded(image), self.references[image][:60])

    def encoded_bytes(self, image: int) -> int:
        if self.references[image].startswith(_DATA_URL):
            return len(self.encoded(image))
        path = self.directory / self.references[image]
        try:
            return path.stat().st_size
        except OSError as error:
            raise TrafficError(f"{path}: the image cannot be read: {error.strerror}") from None

    @property
    def description(self) -> str:
        return f"{len(self.references)} image files"


def media_type(content: bytes) -> str:
    """The media type of an image by its first bytes; PNG, JPEG, GIF or WebP.

    Raises:
        TrafficError: it is none of these.
    """
    for beginning, kind in _MEDIA_TYPES:
        if content.startswith(beginning):
            return kind
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "image/webp"
    raise TrafficError(f"the image is not PNG, JPEG, GIF or WebP; it starts with {content[:8]!r}")


def size_of(content: bytes, name: str) -> tuple[int, int]:
    """Width and height of an image; other formats than PNG need Pillow.

    Raises:
        TrafficError: it is no image, or Pillow is missing.
    """
    if content.startswith(_PNG) and len(content) >= 24:
        width, height = struct.unpack(">II", content[16:24])
        return int(width), int(height)
    try:
        import io

        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise TrafficError(
            f"{name}: reading the size of images other than PNG needs Pillow: pip install pillow"
        ) from None
    try:
        with Image.open(io.BytesIO(content)) as image:
            return image.size
    except UnidentifiedImageError:
        raise TrafficError(f"{name}: not a readable image") from None


def png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """An RGB image as a PNG file without compression.

    Written by the PNG specification (ISO/IEC 15948): rows without a filter, in stored blocks
    of DEFLATE (RFC 1951).

    Args:
        pixels: (height, width, 3).
    """
    import numpy as np

    height, width, _ = pixels.shape
    rows = np.zeros((height, 1 + 3 * width), np.uint8)
    rows[:, 1:] = pixels.reshape(height, 3 * width)
    body = b"".join(_stored(rows.tobytes()))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"".join((_PNG, *_chunk(b"IHDR", header), *_chunk(b"IDAT", body), *_chunk(b"IEND", b"")))


def _stored(data: bytes) -> Iterator[bytes]:
    """A zlib stream of stored blocks."""
    yield b"\x78\x01"
    for start in range(0, len(data), _STORED_BYTES):
        block = data[start : start + _STORED_BYTES]
        last = start + _STORED_BYTES >= len(data)
        yield struct.pack("<BHH", last, len(block), len(block) ^ 0xFFFF)
        yield block
    yield struct.pack(">I", zlib.adler32(data))


def _chunk(kind: bytes, data: bytes) -> tuple[bytes, ...]:
    return struct.pack(">I", len(data)), kind, data, struct.pack(">I", zlib.crc32(kind + data))


@functools.lru_cache(maxsize=8)
def _png_bytes(width: int, height: int) -> int:
    """The length of a file of :func:`png`."""
    data = height * (1 + 3 * width)
    blocks = -(-data // _STORED_BYTES)
    return len(_PNG) + 3 * 12 + 13 + 2 + data + 5 * blocks + 4
