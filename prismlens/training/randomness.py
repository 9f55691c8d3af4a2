"""The global generators, which transformers draws from, seeded for a while and put back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def kept_randomness(seed: int) -> Iterator[None]:
    """Seed torch for the time of the context; afterwards the generators of Python, numpy and torch are as before."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
