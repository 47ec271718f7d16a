"""A task with a table of which each step touches few rows: classify short texts of made-up words."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec
import numpy as np

from distopt import ops, random
from distopt.keras.layers import Dense, Embedding, Flatten
from distopt.keras.models import Sequential
from distopt.types import Array

WORDS, LENGTH, WIDTH = 3000, 6, 24


class BagOfWordsOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """There are none."""


class BagOfWords:
    """Texts of six words, a few of them frequent; the class of a text is that of the majority of its words."""

    name: ClassVar[str] = "bag_of_words"
    Options: ClassVar[type[BagOfWordsOptions]] = BagOfWordsOptions

    def __init__(self, options: BagOfWordsOptions | None = None, seed: int = 0) -> None:
        self._train, self._test = (_texts(np.random.default_rng([seed, part]), 320) for part in (0, 1))

    def build(self, seed: int) -> Sequential:
        """Return a new model."""
        model = Sequential([Embedding(WORDS, WIDTH, name="words"), Flatten(), Dense(2, name="logits")], name=self.name)
        with random.seed_scope(seed):
            model.build((None, LENGTH))
        return model

    def train_data(self) -> tuple[Array, Array]:
        """Return words ``[n, 6]`` and classes ``[n]``, int64."""
        return self._train

    def test_data(self) -> tuple[Array, Array]:
        """Return others."""
        return self._test

    def per_example_loss(self, model: Any, x: Array, y: Array) -> Any:
        """Return the cross-entropy of each text."""
        return ops.softmax_cross_entropy(y, model(x))

    def count_correct(self, model: Any, x: Array, y: Array) -> tuple[int, Array]:
        """Return how many texts are classified right, and the cross-entropy of each."""
        logits = model(x)
        return int(np.count_nonzero(logits.numpy().argmax(axis=1) == y)), ops.softmax_cross_entropy(y, logits).numpy()


def _texts(rng: np.random.Generator, count: int) -> tuple[Array, Array]:
    words = np.minimum(rng.zipf(1.3, (count, LENGTH)), WORDS) - 1
    return words, (np.sum(words % 2, axis=1) > LENGTH // 2).astype(np.int64)
