"""Writes tests/data/vstar_mini: nine questions in the V*Bench layout, on two photographs and four drawn scenes.

Run it as `python tests/data/make_vstar_mini.py [FOLDER]`. The photographs are the two that scikit-learn ships.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import sklearn.datasets
from PIL import Image, ImageDraw

PHOTO_SIZE = (448, 299)
"""Pixels; the originals are 640 x 427."""
SCENE_SIZE = (224, 168)
INSTRUCTION = "Answer with the option's letter from the given choices directly."

Pixels = tuple[int, int, int, int]
Figure = tuple[str, str, Pixels]

SCENES: dict[str, tuple[str, tuple[Figure, ...]]] = {
    "scene_1": ("lightgrey", (("ellipse", "purple", (20, 110, 30, 30)), ("rectangle", "teal", (150, 30, 40, 24)))),
    "scene_2": ("white", (("rectangle", "black", (30, 20, 60, 40)), ("ellipse", "gold", (170, 120, 18, 18)))),
    "scene_3": ("beige", (("ellipse", "red", (24, 60, 36, 36)), ("rectangle", "navy", (160, 64, 32, 32)))),
    "scene_4": ("lightblue", (("rectangle", "green", (96, 16, 28, 28)), ("ellipse", "orange", (98, 120, 26, 26)))),
}
"""Background and figures; a figure is its form, its colour and its box (x, y, width, height)."""


@dataclass(frozen=True)
class Row:
    """One question: its file, its picture, what it is about, and its answers (the right one first)."""

    category: str
    stem: str
    picture: str
    boxes: dict[str, Pixels]
    """Target -> x, y, width, height in pixels of the picture before it is downscaled."""
    question: str
    sentence: str
    answers: tuple[str, ...]
    label: str
    """The letter under which test_questions.jsonl gives the right answer."""


_COLOR = "The color of the {} is {{}}."
_SIDE = "The {} is {{}} the {}."

ROWS = (
    Row("direct_attributes", "china", "china.jpg", {"pillars": (98, 190, 222, 46)},
        "What is the color of the pillars of the tower?", _COLOR.format("pillars"),
        ("red", "blue", "white", "green"), "C"),
    Row("direct_attributes", "china_boats", "china.jpg", {"boats": (366, 263, 126, 40)},
        "What is the color of the boats on the lake?", _COLOR.format("boats"),
        ("white", "red", "black", "yellow"), "A"),
    Row("direct_attributes", "flower", "flower.jpg", {"flower": (169, 85, 276, 274)},
        "What is the color of the flower in the middle?", _COLOR.format("flower"),
        ("orange", "white", "blue", "purple"), "D"),
    Row("direct_attributes", "scene_1", "scene_1", {"circle": (20, 110, 30, 30)},
        "What is the color of the circle?", _COLOR.format("circle"),
        ("purple", "teal", "yellow", "red"), "B"),
    Row("direct_attributes", "scene_2", "scene_2", {"gold object": (170, 120, 18, 18)},
        "What is the shape of the gold object?", "The shape of the gold object is {}.",
        ("circle", "rectangle", "star", "triangle"), "C"),
    Row("relative_position", "china", "china.jpg", {"island": (425, 225, 77, 16), "tower": (62, 30, 292, 395)},
        "Is the island on the left or right side of the tower?", _SIDE.format("island", "tower"),
        ("right", "left"), "B"),
    Row("relative_position", "flower", "flower.jpg", {"bud": (580, 393, 40, 34), "flower": (169, 85, 276, 274)},
        "Is the small bud on the left or right side of the whole flower?", _SIDE.format("bud", "flower"),
        ("right", "left"), "A"),
    Row("relative_position", "scene_3", "scene_3", {"circle": (24, 60, 36, 36), "square": (160, 64, 32, 32)},
        "Is the circle on the left or right side of the square?", _SIDE.format("circle", "square"),
        ("left", "right"), "A"),
    Row("relative_position", "scene_4", "scene_4", {"square": (96, 16, 28, 28), "circle": (98, 120, 26, 26)},
        "Is the square above or below the circle?", _SIDE.format("square", "circle"),
        ("above", "below"), "B"),
)  # fmt: skip

README = """# A small folder in the V*Bench layout

Written by `tests/data/make_vstar_mini.py`: nine questions of our own, none from V*Bench. The scenes are drawn by that
script.

The photographs come with scikit-learn (`sklearn.datasets.load_sample_images`). They are downscaled here from 640 x 427
to 448 x 299 pixels and compressed again. Their notice, as in scikit-learn's `sklearn/datasets/images/README.txt`:

"""


def main(folder: Path) -> None:
    """Write every file of the data set into `folder`."""
    lines = []
    for number, row in enumerate(ROWS):
        home = folder / row.category
        home.mkdir(parents=True, exist_ok=True)
        photo = row.picture.endswith(".jpg")
        name = f"{row.stem}.{'jpg' if photo else 'png'}"
        picture(row.picture).save(home / name, quality=85, optimize=True)
        _dump(home / f"{row.stem}.json", annotation(row))
        lines.append(json.dumps(official(row, number, name)))
    _write(folder / "test_questions.jsonl", "\n".join(lines))
    notice = (sample_folder() / "README.txt").read_text(encoding="utf-8").strip()
    _write(folder / "README.md", README + "\n".join(f"    {line}".rstrip() for line in notice.splitlines()))


def sample_folder() -> Path:
    """Where scikit-learn keeps its photographs."""
    return Path(sklearn.datasets.__file__).parent / "images"


def picture(name: str) -> Image.Image:
    """A photograph, downscaled, or a drawn scene."""
    if name not in SCENES:
        with Image.open(sample_folder() / name) as photo:
            return photo.resize(PHOTO_SIZE, Image.Resampling.LANCZOS)
    background, figures = SCENES[name]
    scene = Image.new("RGB", SCENE_SIZE, background)
    canvas = ImageDraw.Draw(scene)
    for form, color, (x, y, width, height) in figures:
        getattr(canvas, form)((x, y, x + width - 1, y + height - 1), fill=color)
    return scene


def annotation(row: Row) -> dict:
    """The per-image JSON: the right sentence first, boxes in pixels of the file written."""
    scale = (1.0, 1.0) if row.picture in SCENES else (PHOTO_SIZE[0] / 640, PHOTO_SIZE[1] / 427)
    boxes = [
        [int(x * scale[0]), int(y * scale[1]), int(width * scale[0]), int(height * scale[1])]
        for x, y, width, height in row.boxes.values()
    ]
    words = {"left": "on the left side of", "right": "on the right side of"}
    options = [row.sentence.format(words.get(answer, answer)) for answer in row.answers]
    return {"target_object": list(row.boxes), "bbox": boxes, "question": row.question, "options": options}


def official(row: Row, number: int, name: str) -> dict:
    """The line of test_questions.jsonl: lettered options, the right one under the row's label."""
    right, *options = row.answers
    options.insert("ABCD".index(row.label), right)
    lettered = "\n".join(f"({letter}) {option}" for letter, option in zip("ABCD", options, strict=False))
    return {
        "image": f"{row.category}/{name}",
        "text": f"{row.question}\n{lettered}\n{INSTRUCTION}",
        "category": row.category,
        "label": row.label,
        "question_id": str(number),
    }


def _dump(path: Path, value: dict) -> None:
    _write(path, json.dumps(value, indent=2))


def _write(path: Path, text: str) -> None:
    path.write_text(text + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "vstar_mini")
