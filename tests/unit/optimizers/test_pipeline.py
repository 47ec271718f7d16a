from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from distopt.errors import GradientDtypeError, GradientShapeError
from distopt.indexed_slices import IndexedSlices
from distopt.optimizers import SGD
from distopt.optimizers.pipeline import Fits, GradientPath, check_gradients, filter_empty_gradients
from distopt.tensor import Tensor
from distopt.types import Array
from distopt.variable import Variable


def test_pairs_that_are_none_or_not_pairs_are_refused() -> None:
    with pytest.raises(TypeError):
        filter_empty_gradients(None)  # type: ignore[arg-type]  # the misuse under test
    with pytest.raises(ValueError, match="unpack"):
        filter_empty_gradients([(1, 2, 3)])  # type: ignore[list-item]  # the misuse under test


def test_the_default_path_runs_at_owners() -> None:
    path = GradientPath(SGD(clipnorm=1.0), aggregate=True)
    assert path.runs_at_owners
    assert path.whole_gradient_hooks() == ()


def test_an_unaggregated_path_does_not_run_at_owners() -> None:
    assert not GradientPath(SGD(), aggregate=False).runs_at_owners


def unit_length(pairs: Any) -> Any:
    return pairs


def test_hooks_over_whole_gradients_are_named() -> None:
    class Noisy(SGD):
        def _transform_gradients(self, grads_and_vars: Any) -> Any:
            return grads_and_vars

    optimizer = Noisy(gradient_aggregator=unit_length, gradient_transformers=[unit_length])
    path = GradientPath(optimizer, aggregate=True)
    assert not path.runs_at_owners
    assert path.whole_gradient_hooks() == ("Noisy._transform_gradients", "unit_length", "unit_length")


def test_norm_and_global_norm_together_need_whole_gradients() -> None:
    optimizer = SGD(clipnorm=1.0)
    optimizer.global_clipnorm = 1.0
    assert GradientPath(optimizer, aggregate=True).whole_gradient_hooks() == ("clipnorm with global_clipnorm",)


def test_pairs_are_one_leaf() -> None:
    variable = Variable(1.0, name="w")
    pairs = check_gradients([(np.float32(1), variable)])
    assert not isinstance(pairs, list | tuple)
    assert len(pairs) == 1
    assert pairs[0][1] is variable
    assert repr(pairs) == "Pairs(w:0)"


SHAPES = [(2, 3), (), (5,)]


def known_variables(**places: Any) -> tuple[Fits, list[Variable]]:
    variables, fits = [Variable(np.zeros(shape, np.float32)) for shape in SHAPES], Fits()
    fits.add(variables, **places)
    return fits, variables


def test_tensors_for_known_variables_are_known_with_the_same_key_in_every_step() -> None:
    fits, variables = known_variables()
    found = []
    for _ in range(2):
        pairs = [(Tensor(np.ones(shape, np.float32)), v) for shape, v in zip(SHAPES, variables, strict=True)]
        known = fits.known(pairs)
        assert known is not None
        assert list(known) == pairs
        assert all(array is gradient.numpy() for array, (gradient, _) in zip(known.arrays, pairs, strict=True))
        found.append(known)
    assert found[0].key is found[1].key
    assert found[0].variables is found[1].variables
    assert found[0].key == check_gradients(found[0]._pairs).key


@pytest.mark.parametrize(
    "gradient",
    [
        Tensor(np.ones((3, 2), np.float32)),  # as many elements
        Tensor(np.ones((2, 3))),
        Tensor(np.ones(6, np.float32)),
        np.ones((2, 3), np.float32),
        IndexedSlices(np.ones((1, 3), np.float32), [0], (2, 3)),
        None,
    ],
    ids=repr,
)
def test_a_gradient_of_another_kind_is_not_known(gradient: Any) -> None:
    fits, variables = known_variables()
    good = [Tensor(np.ones(shape, np.float32)) for shape in SHAPES]
    assert fits.known(list(zip(good, variables, strict=True))) is not None
    assert fits.known(list(zip([gradient, *good[1:]], variables, strict=True))) is None


def test_other_variables_or_another_order_are_not_known() -> None:
    fits, variables = known_variables()
    pairs = [(Tensor(np.ones(shape, np.float32)), v) for shape, v in zip(SHAPES, variables, strict=True)]
    assert fits.known(pairs) is not None
    other = Variable(np.zeros(5, np.float32))
    assert fits.known([]) is None
    assert fits.known(pairs[:2]) is None
    assert fits.known(pairs[::-1]) is None
    assert fits.known([*pairs[:2], (pairs[2][0], other)]) is None


def test_gradients_in_the_places_for_them_are_known_as_these() -> None:
    places = [np.ones(shape, np.float32) for shape in SHAPES]
    fits, variables = known_variables(places=places)
    known = fits.known(list(zip(map(Tensor, places), variables, strict=True)))
    assert known is not None
    assert known.arrays is places
    pairs = list(known)
    assert fits.known(pairs) is fits.known(pairs.copy())
    assert fits.known(pairs[:2]) is None
    pairs[2] = (Tensor(np.ones((5, 1), np.float32)), variables[2])
    assert fits.known(pairs) is None
    changing: list[Any] = [list(pair) for pair in zip(map(Tensor, places), variables, strict=True)]
    known = fits.known(changing)
    assert known is not None
    assert known.arrays is places
    other = np.ones(SHAPES[2], np.float32)
    changing[2][0] = Tensor(other)
    known = fits.known(changing)
    assert known is not None
    assert known.arrays[2] is other
    others = [places[0], places[1], places[2].copy()]
    known = fits.known(list(zip(map(Tensor, others), variables, strict=True)))
    assert known is not None
    assert known.arrays is not places
    assert known.arrays[2] is others[2]


class _Foreign:
    """An array of another library."""

    def __init__(self, values: Array) -> None:
        self._values = values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.asarray(self._values, dtype)


def test_arrays_of_other_libraries_and_lists_are_gradients() -> None:
    variable = Variable(np.zeros(2, np.float32))
    optimizer = SGD(0.5)
    for gradient in (_Foreign(np.float32([2, 4])), [2, 4]):
        optimizer.apply_gradients([(gradient, variable)])
    assert variable.numpy().tolist() == [-2, -4]


def test_a_gradient_that_does_not_fit_a_known_variable_is_named_before_anything_changes() -> None:
    variables = [Variable(np.ones(shape, np.float32), name=f"v{i}") for i, shape in enumerate(SHAPES)]
    optimizer = SGD(0.5)
    good = [Tensor(np.ones(shape, np.float32)) for shape in SHAPES]
    optimizer.apply_gradients(zip(good, variables, strict=True))
    for wrong, error, match in (
        (Tensor(np.ones((3, 2), np.float32)), GradientShapeError, r"v0:0.*\[3, 2\].*\[2, 3\]"),
        (Tensor(np.ones((2, 3))), GradientDtypeError, r"v0:0.*float64.*float32.*astype\('float32'\)"),
        (_Foreign(np.ones((2, 3))), GradientDtypeError, "v0:0.*float64.*float32"),
        ([[1.0, 2.0], [3.0]], GradientDtypeError, "v0:0.*a list, is no array of numbers: "),
    ):
        with pytest.raises(error, match=match):
            optimizer.apply_gradients(zip([wrong, *good[1:]], variables, strict=True))
    assert [float(v.numpy().max()) for v in variables] == [0.5] * 3
    assert int(optimizer.iterations.numpy()) == 1
