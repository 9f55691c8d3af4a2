"""Pictures of every mode and every kind of damage, against pixels worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prismlens.data.images import MAX_ASPECT, image_size, open_image
from prismlens.errors import ItemError

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def _pixels(image: Image.Image) -> list:
    return np.asarray(image).reshape(-1, np.asarray(image).shape[-1]).tolist()


def _made(mode: str, *values: object) -> Image.Image:
    image = Image.new(mode, (len(values), 1))
    for x, value in enumerate(values):
        image.putpixel((x, 0), value)  # pyright: ignore[reportArgumentType]
    return image


@pytest.mark.parametrize(
    ("image", "wanted"),
    [
        (_made("1", 0, 255), [[0, 0, 0], [255, 255, 255]]),
        (_made("L", 7, 200), [[7, 7, 7], [200, 200, 200]]),
        (_made("LA", (10, 255), (10, 0)), [[10, 10, 10], [255, 255, 255]]),
        (_made("RGBA", (255, 0, 0, 255), (255, 0, 0, 0), (0, 0, 0, 51)), [[255, 0, 0], [255] * 3, [204] * 3]),
        (_made("CMYK", (0, 255, 255, 0), (0, 0, 0, 255)), [[255, 0, 0], [0, 0, 0]]),
        (_made("RGB", RED, BLUE), [[255, 0, 0], [0, 0, 255]]),
        (_made("I;16", 0, 257, 32896, 65535), [[0] * 3, [1] * 3, [128] * 3, [255] * 3]),
        (_made("I", 0, 257, 65535), [[0] * 3, [1] * 3, [255] * 3]),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else "",
)
def test_every_mode_becomes_the_right_rgb(image: Image.Image, wanted: list) -> None:
    before = image.copy()
    result = open_image(image)
    assert result.mode == "RGB"
    assert _pixels(result) == wanted
    assert image.mode == before.mode and image.tobytes() == before.tobytes()


def test_premultiplied_alpha_and_palettes_with_alpha_lie_on_white() -> None:
    assert _pixels(open_image(_made("RGBA", (0, 0, 255, 0), (0, 0, 255, 255)).convert("RGBa"))) == [
        [255, 255, 255],
        [0, 0, 255],
    ]
    assert _pixels(open_image(_made("LA", (9, 255), (9, 0)).convert("La"))) == [[9, 9, 9], [255, 255, 255]]
    assert _pixels(open_image(_made("PA", (0, 255), (0, 0)))) == [[0, 0, 0], [255, 255, 255]]


def test_a_palette_with_a_transparent_entry_lies_on_white(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *BLUE])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "p.png", transparency=1)
    assert Image.open(tmp_path / "p.png").mode == "P"
    assert _pixels(open_image(tmp_path / "p.png")) == [[255, 0, 0], [255, 255, 255]]


def test_a_transparent_key_colour_lies_on_white(tmp_path: Path) -> None:
    _made("RGB", RED, BLUE).save(tmp_path / "k.png", transparency=BLUE)
    assert _pixels(open_image(tmp_path / "k.png")) == [[255, 0, 0], [255, 255, 255]]


def test_a_16_bit_png_is_scaled_and_not_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 25700, 65535]], dtype=np.uint16)).save(tmp_path / "deep.png")
    assert _pixels(open_image(tmp_path / "deep.png")) == [[0] * 3, [100] * 3, [255] * 3]


def test_an_inverted_cmyk_jpeg_keeps_its_colours(tmp_path: Path) -> None:
    path = tmp_path / "cmyk.jpg"
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(path, quality=100)
    assert b"Adobe" in path.read_bytes()
    red, green, blue = np.asarray(open_image(path)).reshape(-1, 3).mean(axis=0)
    assert red > 250 and green < 5 and blue < 5


@pytest.mark.parametrize(
    ("orientation", "wanted"),
    [
        (1, [[1, 2, 3], [4, 5, 6]]),
        (2, [[3, 2, 1], [6, 5, 4]]),
        (3, [[6, 5, 4], [3, 2, 1]]),
        (6, [[4, 1], [5, 2], [6, 3]]),
        (8, [[3, 6], [2, 5], [1, 4]]),
    ],
)
def test_exif_orientation_turns_the_pixels_once(tmp_path: Path, orientation: int, wanted: list) -> None:
    image = Image.fromarray(np.array([[1, 2, 3], [4, 5, 6]], dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.png"
    image.save(path, exif=exif)
    upright = open_image(path)
    assert np.asarray(upright)[:, :, 0].tolist() == wanted
    assert upright.size == image_size(path)
    assert _pixels(open_image(upright)) == _pixels(upright)
    with Image.open(path) as given:
        assert _pixels(open_image(given)) == _pixels(upright)
        assert given.size == (3, 2)


def test_the_result_is_a_new_image() -> None:
    given = Image.new("RGB", (2, 2), RED)
    open_image(given).putpixel((0, 0), WHITE)
    assert given.getpixel((0, 0)) == RED


def _jpeg(path: Path) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path.read_bytes()


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_a_truncated_file_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cut.{suffix}"
    whole = _jpeg(path)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ItemError, match=rf"item 'q1': the image .*cut\.{suffix} cannot be decoded[\s\S]*truncated"):
        open_image(path, "q1")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p.write_bytes(b""), r"item 'q1': the image .*x\.jpg is empty \(0 bytes\)\n  needed: an image"),
        (lambda p: p.write_text("<html>"), r"x\.jpg is not a picture that Pillow can read[\s\S]*Git LFS"),
        (lambda p: p.mkdir(), r"x\.jpg is a folder[\s\S]*fix: give the path of one file"),
        (lambda p: None, r"x\.jpg does not exist[\s\S]*fix: check the path"),
        (lambda p: Image.new("RGB", (1, MAX_ASPECT + 1)).save(p), r"1 x 201 pixels, an aspect ratio of 201\n"),
    ],
    ids=["empty", "text", "folder", "missing", "strip"],
)
@pytest.mark.parametrize("reader", [open_image, image_size])
def test_an_unusable_file_is_named_with_its_item(tmp_path: Path, make, message: str, reader) -> None:
    make(tmp_path / "x.jpg")
    with pytest.raises(ItemError, match=message) as caught:
        reader(tmp_path / "x.jpg", "q1")
    assert str(caught.value).startswith("item 'q1': the image ") and caught.value.fix


def test_the_widest_allowed_strip_opens() -> None:
    assert open_image(Image.new("L", (MAX_ASPECT, 1))).size == (MAX_ASPECT, 1)


def test_an_image_without_pixels_is_refused() -> None:
    with pytest.raises(ItemError, match=r"item 'q1': the image is 0 x 5 pixels\n  needed: at least one pixel"):
        open_image(Image.new("RGB", (0, 5)), "q1")


@pytest.mark.parametrize("image", [_made("F", 0.0, 1.0), _made("I", 0, 200), _made("I", 0, 70000), _made("I", -1, 999)])
def test_pixels_without_a_white_point_are_refused(image: Image.Image) -> None:
    with pytest.raises(ItemError, match=r"has mode [IF] and values[\s\S]*which value is white[\s\S]*fix: scale"):
        open_image(image)


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("1", (50, 50)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ItemError, match=r"bomb\.png is too large to decode safely[\s\S]*at most 2000 pixels"):
        open_image(tmp_path / "bomb.png")


@pytest.mark.usefixtures("unchecked")
def test_an_array_is_refused_with_the_way_out() -> None:
    with pytest.raises(ItemError, match=r"item 'q1': the image is a ndarray[\s\S]*PIL\.Image\.fromarray"):
        open_image(np.zeros((2, 2, 3)), "q1")  # pyright: ignore[reportArgumentType]
