"""Decodes an image file of any format and mode to an array of bytes."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from attacks_pool.errors import InputError

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")

# The errors that decoders raise on damaged files, besides OSError.
_DAMAGE = (
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


GREY_MODES = {"1", "L", "I", "F"}
COLOUR_MODES = {"RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "HSV"}


def in_colour(file: Path) -> bool:
    """Whether :func:`decode` gives three channels; decided by the header alone where that suffices.

    Raises:
        InputError: As :func:`decode`.
    """
    try:
        with Image.open(file) as image:
            mode, transparent = image.mode, "transparency" in image.info
    except (OSError, *_DAMAGE):
        return len(decode(file)) == 3
    if mode in COLOUR_MODES:
        return True
    if (mode in GREY_MODES or mode.startswith("I;16")) and not transparent:
        return False
    return len(decode(file)) == 3


def decode(file: Path) -> NDArray[np.uint8]:
    """Decode an image to uint8: (1, H, W) if it is grey and (3, H, W) if it is in colour.

    16 bits are rounded to 8, transparent pixels are drawn over white as viewers show them, a palette of greys
    counts as grey, and the first of several frames is used.

    Raises:
        InputError: The file is not a readable image, or its values have no known range.
    """
    try:
        # Read the whole file: the decoders' many small reads cost more than decoding a small image.
        with Image.open(io.BytesIO(file.read_bytes())) as image:
            image.load()
            return as_bytes(image)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{file} is not a readable image: its format is unknown") from error
    except (OSError, *_DAMAGE) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{file} is not a readable image: {reason}") from error


def as_bytes(image: Image.Image) -> NDArray[np.uint8]:
    """The pixels of a loaded image as uint8: (1, H, W) if it is grey and (3, H, W) if it is in colour.

    Raises:
        InputError: Its values have no known range.
    """
    pixels = _bytes(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _bytes(image: Image.Image) -> NDArray[np.uint8]:
    """uint8 (H, W) or (H, W, 3)."""
    if image.mode in ("L", "RGB") and "transparency" not in image.info:
        return np.asarray(image)
    if image.mode == "1":
        return np.asarray(image.convert("L"))
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _from_16_bits(np.asarray(image).astype(np.int64))
    if image.mode == "F":
        raise InputError("floating-point images have no known range; save it with 8 or 16 bits")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        colour = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    else:
        colour = image.convert("RGB")
    pixels = np.asarray(colour)
    may_be_grey = image.mode in ("P", "PA", "L", "LA", "La")
    if may_be_grey and (pixels == pixels[..., :1]).all():
        return pixels[..., 0]
    return pixels


def _from_16_bits(values: NDArray[np.int64]) -> NDArray[np.uint8]:
    if values.min() < 0 or values.max() > 65535:
        raise InputError(f"values from {values.min()} to {values.max()} are outside 16 bits")
    return ((values + 128) // 257).astype(np.uint8)
