"""Handwritten digits: 1,797 images of 8 x 8 pixels, 10 classes, and a multilayer perceptron.

The images come with scikit-learn. They are read from its data file, because importing scikit-learn would take every
process of a job longer than an epoch.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998
(the test part); CC BY 4.0.
"""

from __future__ import annotations

import functools
import gzip
import importlib.util
from pathlib import Path
from typing import Annotated, Any, ClassVar

import msgspec
import numpy as np

from distopt import ops, random
from distopt.errors import MissingDependencyError
from distopt.keras.layers import Dense
from distopt.keras.models import Sequential
from distopt.sampling import stratified_split
from distopt.types import Array

NUM_PIXELS = 64
NUM_CLASSES = 10
_MAX_PIXEL = np.float32(16)


class DigitsOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of the task ``digits``.

    ``hidden``: widths of the hidden layers. ``test_fraction``: of the images, the same for each class as nearly as it
    can be. ``split_seed``: which images are for testing; by default the job's seed decides.
    """

    hidden: tuple[Annotated[int, msgspec.Meta(ge=1)], ...] = (256,)
    test_fraction: Annotated[float, msgspec.Meta(gt=0.0, lt=1.0)] = 0.2
    split_seed: Annotated[int, msgspec.Meta(ge=0)] | None = None


class Digits:
    """Digits, stratified into training and test images, for a perceptron with ReLU hidden layers, in float32."""

    name: ClassVar[str] = "digits"
    Options: ClassVar[type[DigitsOptions]] = DigitsOptions

    def __init__(self, options: DigitsOptions | None = None, seed: int = 0) -> None:
        self.options = options or DigitsOptions()
        split_seed = seed if self.options.split_seed is None else self.options.split_seed
        images, labels = load_digits()
        train, test = stratified_split(labels, self.options.test_fraction, split_seed)
        self._train = images[train], labels[train]
        self._test = images[test], labels[test]

    def build(self, seed: int) -> Sequential:
        """Return a new perceptron, its variables named for their place."""
        hidden = [Dense(n, activation="relu", name=f"hidden_{i}") for i, n in enumerate(self.options.hidden)]
        model = Sequential([*hidden, Dense(NUM_CLASSES, name="logits")], name=self.name)
        with random.seed_scope(seed):
            model.build((None, NUM_PIXELS))
        return model

    def train_data(self) -> tuple[Array, Array]:
        """Return images ``[n, 64]`` in ``[0, 1]``, float32, and labels ``[n]``, int64."""
        return self._train

    def test_data(self) -> tuple[Array, Array]:
        """Return the other images and labels."""
        return self._test

    def per_example_loss(self, model: Any, x: Array, y: Array) -> Any:
        """Return the cross-entropy of each row."""
        return ops.softmax_cross_entropy(y, model(x))

    def count_correct(self, model: Any, x: Array, y: Array) -> tuple[int, Array]:
        """Return how many rows have their largest logit at the label, and the cross-entropy of each."""
        logits = model(x)
        correct = int(np.count_nonzero(logits.numpy().argmax(axis=1) == y))
        return correct, ops.softmax_cross_entropy(y, logits).numpy()


@functools.cache
def load_digits() -> tuple[Array, Array]:
    """Return all images ``[1797, 64]``, float32 in ``[0, 1]``, and labels ``[1797]``, int64; both read-only.

    Raises: MissingDependencyError if scikit-learn is not installed, or has no such file.
    """
    package = importlib.util.find_spec("sklearn")
    if package is None or not package.submodule_search_locations:
        raise MissingDependencyError(
            "the digits come with scikit-learn, which is not installed: pip install 'distopt[digits]'", name="sklearn"
        )
    path = Path(package.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    if not path.is_file():
        raise MissingDependencyError(
            f"the installed scikit-learn has no {path}; reinstall it: pip install 'distopt[digits]'", name="sklearn"
        )
    with gzip.open(path, "rt", encoding="ascii") as file:
        table = np.loadtxt(file, dtype=np.float32, delimiter=",")
    images, labels = table[:, :NUM_PIXELS] / _MAX_PIXEL, table[:, NUM_PIXELS].astype(np.int64)
    images.flags.writeable = labels.flags.writeable = False
    return images, labels
