"""The digits: scikit-learn's images, an exact split, and a perceptron that learns them."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import msgspec
import numpy as np
import pytest

from distopt import ops
from distopt.autodiff.tape import GradientTape
from distopt.errors import MissingDependencyError
from distopt.keras.optimizers import SGD
from distopt.sampling import batch_bounds, epoch_permutation, num_steps
from distopt.tasks.digits import Digits, DigitsOptions, load_digits


def test_load_digits_are_those_of_scikit_learn() -> None:
    pytest.importorskip("sklearn")
    from sklearn import datasets

    reference = datasets.load_digits()
    images, labels = load_digits()
    assert images.dtype == np.float32
    np.testing.assert_array_equal(images * 16, reference.data)
    np.testing.assert_array_equal(labels, reference.target)


def test_load_digits_without_scikit_learn_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'distopt\[digits\]'"):
        load_digits.__wrapped__()


def test_load_digits_does_not_import_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    load_digits.__wrapped__()
    assert "sklearn" not in sys.modules


def test_load_digits_are_read_only() -> None:
    with pytest.raises(ValueError, match="read-only"):
        load_digits()[0][0] = 1


@pytest.mark.parametrize("seed", [0, 1])
def test_digits_split_is_stratified_and_complete(seed: int) -> None:
    task = Digits(seed=seed)
    (x, y), (test_x, test_y) = task.train_data(), task.test_data()
    assert len(y) == 1438
    assert len(test_y) == 359
    assert x.shape == (1438, 64)
    assert 0.0 <= x.min() <= x.max() == 1.0
    shares = np.bincount(test_y) / np.bincount(np.concatenate([y, test_y]))
    np.testing.assert_allclose(shares, 0.2, atol=0.5 / 170)
    together = np.concatenate([x, test_x]).sum(dtype=np.float64)
    np.testing.assert_allclose(together, load_digits()[0].sum(dtype=np.float64))


def test_digits_split_follows_the_seed_unless_it_has_its_own() -> None:
    def first_rows(seed: int, **options: Any) -> bytes:
        return Digits(DigitsOptions(**options), seed).test_data()[0].tobytes()

    assert first_rows(1) != first_rows(2)
    assert first_rows(1, split_seed=5) == first_rows(2, split_seed=5)


def test_digits_build_makes_the_same_variables_for_the_same_seed() -> None:
    task = Digits(DigitsOptions(hidden=(5, 3)))
    one, again, other = (task.build(seed).get_weights() for seed in (1, 1, 2))
    assert [w.shape for w in one] == [(64, 5), (5,), (5, 3), (3,), (3, 10), (10,)]
    for a, b in zip(one, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(one[0], other[0])


@pytest.mark.parametrize(
    "options",
    [{"hidden": [0]}, {"test_fraction": 1.0}, {"split_seed": -1}, {"width": 3}],
)
def test_digits_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(options, DigitsOptions)


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_digits_loss_and_count_have_one_entry_per_row(rows: int) -> None:
    task = Digits()
    model = task.build(0)
    x, y = (part[:rows] for part in task.test_data())
    losses = task.per_example_loss(model, x, y)
    correct, same_losses = task.count_correct(model, x, y)
    assert losses.shape == (rows,)
    np.testing.assert_array_equal(losses.numpy(), same_losses)
    assert correct == sum(int(model(x[i : i + 1]).numpy().argmax()) == y[i] for i in range(rows))


def test_digits_gradient_of_no_rows_is_zero_not_none() -> None:
    task = Digits(DigitsOptions(hidden=(4,)))
    model = task.build(0)
    x, y = (part[:0] for part in task.train_data())
    with GradientTape() as tape:
        loss = ops.reduce_sum(task.per_example_loss(model, x, y)) / 3.0
    gradients = tape.gradient(loss, model.trainable_variables)
    assert [np.asarray(g).shape for g in gradients] == [v.shape for v in model.trainable_variables]
    assert not any(np.asarray(g).any() for g in gradients)


def test_digits_perceptron_learns_in_five_epochs() -> None:
    task = Digits(seed=0)
    model = task.build(0)
    optimizer = SGD(0.1, momentum=0.9)
    x, y = task.train_data()
    for epoch in range(5):
        order = epoch_permutation(0, epoch, len(y))
        for step in range(num_steps(len(y), 128)):
            start, stop = batch_bounds(len(y), 128, step)
            rows = order[start:stop]
            with GradientTape() as tape:
                loss = ops.reduce_sum(task.per_example_loss(model, x[rows], y[rows])) / float(len(rows))
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
    correct, _ = task.count_correct(model, *task.test_data())
    assert correct / 359 > 0.93
