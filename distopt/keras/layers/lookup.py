"""Layers that turn words into numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from distopt.graph.operations import is_finding_shapes
from distopt.keras.layers.base import Layer
from distopt.tensor import Operand, Tensor


class StringLookup(Layer):
    """The number of each string in a vocabulary, int64.

    Numbers begin with that of ``mask_token``, if there is one; then comes the number of strings that are not in the
    vocabulary, unless ``num_oov_indices`` is 0; then the vocabulary, in order.

    Raises: ValueError for a vocabulary that is empty or names a string twice, and, at a call, for an unknown string
        where ``num_oov_indices`` is 0; NotImplementedError for several numbers of unknown strings, ``invert``, an
        output other than numbers, and without a vocabulary: it does not learn one.

    Source: ``tf.keras.layers.StringLookup``.

    >>> lookup = StringLookup(vocabulary=["ironman", "hulk"])
    >>> lookup([["hulk", "thor"]]).numpy()
    array([[2, 0]])
    """

    def __init__(
        self,
        max_tokens: int | None = None,
        num_oov_indices: int = 1,
        mask_token: str | None = None,
        oov_token: str = "[UNK]",
        vocabulary: Sequence[str] | None = None,
        invert: bool = False,
        output_mode: str = "int",
        **kwargs: Any,
    ) -> None:
        super().__init__(**{"dtype": np.int64, **kwargs})
        if vocabulary is None or max_tokens is not None:
            raise NotImplementedError("a StringLookup needs its vocabulary: it does not learn one, so no max_tokens")
        if num_oov_indices not in (0, 1):
            raise NotImplementedError(f"unknown strings have one number or none, not {num_oov_indices}")
        if invert or output_mode != "int":
            raise NotImplementedError("a StringLookup turns strings into numbers; use a list, and distopt.one_hot")
        words = [str(word) for word in vocabulary]
        first = [] if mask_token is None else [mask_token]
        self.num_oov_indices = num_oov_indices
        self._num_special = len(first) + num_oov_indices
        self._words = [*first, *[oov_token] * num_oov_indices, *words]
        repeated = sorted(word for word, count in Counter(words).items() if count > 1 or word in first)
        if not words or repeated:
            raise ValueError(f"a vocabulary has each string once, and some; {repeated or 'this one is empty'}")
        special = range(len(first), self._num_special)  # what stands for unknown strings is itself one
        self._number_of = {word: number for number, word in enumerate(self._words) if number not in special}
        self._unknown = len(first) if num_oov_indices else None
        self.built = True

    def get_vocabulary(self, include_special_tokens: bool = True) -> list[str]:
        """Return the strings by their numbers; without the tokens for the mask and for unknown strings if so wanted."""
        return self._words[0 if include_special_tokens else self._num_special :]

    def vocabulary_size(self) -> int:
        """Return how many numbers there are."""
        return len(self._words)

    def call(self, inputs: Any) -> Tensor:
        """Return the numbers of strings of any shape."""
        strings = np.asarray(inputs.numpy() if isinstance(inputs, Operand) else inputs)
        if is_finding_shapes():  # on strings that nobody wrote
            return Tensor(np.zeros(strings.shape, np.int64))
        numbers = [self._number_of.get(word, self._unknown) for word in strings.reshape(-1).tolist()]
        if None in numbers:
            word = strings.reshape(-1)[numbers.index(None)]
            raise ValueError(f"{self.name} has no number for {str(word)!r}, and none for unknown strings")
        return Tensor(np.array(numbers, np.int64).reshape(strings.shape))
