"""prismlens asks a vision-language model that thinks in latents whether its answers use them.

import prismlens as pl

model = pl.load("tiny/lvr")
items = pl.load_items("shapes", n=200)
print(pl.prism(model, items).verdict)
"""

from prismlens.alignment import Alignment, alignment
from prismlens.corruption import CorruptionTest, corruption_test
from prismlens.data.load import load_items
from prismlens.decodability import Decodability, decodability
from prismlens.errors import PrismlensError
from prismlens.experiment import run_conditions
from prismlens.interventions import (
    Cut,
    DeleteKV,
    Edit,
    Identity,
    Mean,
    Noise,
    Oracle,
    Scale,
    Swap,
    Zero,
)
from prismlens.models.checkpoint import zoo_manifest, zoo_names
from prismlens.positions import answer, describe, image, latent, lead, options, prompt, question, template
from prismlens.prism import Report, prism
from prismlens.results import Results
from prismlens.sites import get_act_name
from prismlens.trace import PrismModel, Run, corrupt, load
from prismlens.types import Item
from prismlens.widgets import explore

__version__ = "0.1.0"

__all__ = [
    "Alignment",
    "alignment",
    "CorruptionTest",
    "Cut",
    "Decodability",
    "DeleteKV",
    "Edit",
    "Identity",
    "Item",
    "Mean",
    "Noise",
    "Oracle",
    "PrismModel",
    "PrismlensError",
    "Report",
    "Results",
    "Run",
    "Scale",
    "Swap",
    "Zero",
    "answer",
    "corrupt",
    "corruption_test",
    "decodability",
    "describe",
    "explore",
    "get_act_name",
    "image",
    "latent",
    "lead",
    "load",
    "load_items",
    "options",
    "prism",
    "prompt",
    "question",
    "run_conditions",
    "template",
    "zoo_manifest",
    "zoo_names",
]
