"""Opens any picture as upright RGB, or says which file of which item is unusable; knows nothing of questions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from prismlens.errors import ItemError

MAX_ASPECT = 200
"""Largest ratio of the longer side to the shorter one that Qwen's `smart_resize` accepts."""

_ORIENTATION = 0x0112
_SIDEWAYS = range(5, 9)
"""EXIF orientations that exchange width and height."""
_DAMAGED_FIX = "open the file in a viewer; copy or download it again if that fails too"


def open_image(source: Image.Image | Path, item_id: str = "") -> Image.Image:
    """The picture as a new, upright, 8-bit RGB image; `source` keeps its pixels.

    EXIF orientation is applied. Transparency is laid on white. 16-bit grey is scaled (65535 becomes 255), not clipped.
    An inverted CMYK JPEG comes out with its true colours. Of an animation the current frame is used (the first, for a
    path).

    Args:
        source: a PIL image, or the path of a file.
        item_id: the item to name in an error.

    Raises:
        ItemError: the file is missing, empty, truncated, not a picture or dangerously large; a side is 0; one side is
            more than 200 times the other; or the pixels have no stated white point (32-bit integers, floats).
    """
    if isinstance(source, Image.Image):
        return _upright_rgb(source, _name(source, item_id))
    with _opened(_file(source, item_id), item_id) as image:
        return _upright_rgb(image, _name(source, item_id))


def image_size(path: Path, item_id: str = "") -> tuple[int, int]:
    """Upright width and height in pixels, from the file's header alone: damage further on in the file goes unseen.

    Raises:
        ItemError: as `open_image`, except for damaged pixels.
    """
    name = _name(path, item_id)
    with _opened(_file(path, item_id), item_id) as image:
        _check_sides(image.size, name)
        try:
            turned = image.getexif().get(_ORIENTATION) in _SIDEWAYS
        except Exception as error:  # Pillow's readers raise whatever a damaged tag provokes
            raise _damaged(name, error) from error
        width, height = image.size
    return (height, width) if turned else (width, height)


def _name(source: Image.Image | Path, item_id: str) -> str:
    """How an error calls the picture: the item, then the file where there is one."""
    path = getattr(source, "filename", "") if isinstance(source, Image.Image) else source
    item = f"item {item_id!r}: " if item_id else ""
    return f"{item}the image {path}" if path else f"{item}the image"


def _file(source: object, item_id: str) -> Path:
    """The source as the path of a file with something in it."""
    if not isinstance(source, str | Path):
        raise ItemError(
            f"{f'item {item_id!r}: ' if item_id else ''}the image is a {type(source).__name__}",
            needed="a PIL image or the path of one",
            fix="wrap an array with `PIL.Image.fromarray`",
        )
    path, name = Path(source), _name(Path(source), item_id)
    if path.is_dir():
        raise ItemError(f"{name} is a folder", needed="an image file", fix="give the path of one file")
    if not path.exists():
        raise ItemError(
            f"{name} does not exist",
            needed="the path of an image file",
            cause="a relative path, read from another working directory" if not path.is_absolute() else "a moved file",
            fix=f"check the path; relative ones start at {Path.cwd()}" if not path.is_absolute() else "check the path",
        )
    if path.stat().st_size == 0:
        raise ItemError(
            f"{name} is empty (0 bytes)", needed="an image file", cause="a download that broke off", fix=_DAMAGED_FIX
        )
    return path


def _opened(path: Path, item_id: str) -> Image.Image:
    """The lazily opened file, its header read."""
    name = _name(path, item_id)
    try:
        return Image.open(path)
    except Image.UnidentifiedImageError as error:
        raise ItemError(
            f"{name} is not a picture that Pillow can read",
            needed="a format such as JPEG, PNG, WebP, TIFF or GIF",
            cause="another kind of file (a web page, an SVG, a Git LFS pointer), or a header cut short",
            fix=_DAMAGED_FIX,
        ) from error
    except Image.DecompressionBombError as error:
        raise _too_large(name, error) from error
    except Exception as error:  # Pillow's readers raise whatever a damaged header provokes
        raise _damaged(name, error) from error


def _upright_rgb(image: Image.Image, name: str) -> Image.Image:
    _check_sides(image.size, name)
    try:
        # The tag is read before the pixels are converted, because a conversion may drop it.
        return _rgb(ImageOps.exif_transpose(image), name)
    except ItemError:
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(name, error) from error
    except Exception as error:  # Pillow's readers raise whatever damaged pixels provoke
        raise _damaged(name, error) from error


def _rgb(image: Image.Image, name: str) -> Image.Image:
    """The image in mode RGB: wide greys scaled, transparency on white, the rest by Pillow's own conversion."""
    if image.mode.startswith(("I", "F")):
        return _from_wide_grey(image, name)
    image = image.convert("LA") if image.mode == "La" else image  # Pillow turns La into nothing else
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _from_wide_grey(image: Image.Image, name: str) -> Image.Image:
    """16-bit grey as RGB. Mode I counts as 16-bit only where its values say so, since it states no white point."""
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if image.mode == "F" or (image.mode == "I" and not (low >= 0 and 255 < high <= 65535)):
        raise ItemError(
            f"{name} has mode {image.mode} and values {low:g} to {high:g}",
            needed="8-bit pixels, or 16-bit grey (0 to 65535)",
            cause="mode I and mode F do not say which value is white",
            fix="scale the values to 0..255 and pass `PIL.Image.fromarray(values.astype('uint8'))`",
        )
    grey = np.rint(values.astype(np.float64) / 257).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def _check_sides(size: tuple[int, int], name: str) -> None:
    """No side is 0, and none is too long for the other."""
    width, height = size
    if min(width, height) == 0:
        raise ItemError(f"{name} is {width} x {height} pixels", needed="at least one pixel each way", fix="replace it")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ItemError(
            f"{name} is {width} x {height} pixels, an aspect ratio of {max(width, height) / min(width, height):.0f}",
            needed=f"at most {MAX_ASPECT}, the limit of the image processor",
            cause="a strip or a separator instead of a picture",
            fix="crop or pad it",
        )


def _damaged(name: str, error: Exception) -> ItemError:
    return ItemError(
        f"{name} cannot be decoded: {type(error).__name__}: {error}",
        needed="a complete picture in a mode that converts to RGB",
        cause="a truncated or damaged file, or an unusual colour space",
        fix=_DAMAGED_FIX,
    )


def _too_large(name: str, error: Exception) -> ItemError:
    return ItemError(
        f"{name} is too large to decode safely: {error}",
        needed=f"at most {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels",
        cause="a decompression bomb, or a scan at full size",
        fix="downscale it, or raise `PIL.Image.MAX_IMAGE_PIXELS` if you trust the file",
    )
