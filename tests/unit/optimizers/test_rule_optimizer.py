"""A user's own optimizer: one rule, its hypers, nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import distopt as tf
from benchmarks import yogi
from benchmarks.yogi import Yogi
from distopt import schedules
from distopt.arena import BLOCK
from distopt.canonical_sum import add_rows
from distopt.optimizers import RuleOptimizer, get_engine, rule_of
from distopt.optimizers.owner import SpanOwner
from distopt.types import Array
from distopt.variable import Variable

DOCS = Path(__file__).resolve().parents[3] / "docs" / "optimizers.md"


def by_hand(variable: Array, gradients: list[Array]) -> Array:
    """Return the variable after Yogi's steps, as algorithm 2 of the paper says, in float32."""
    f = np.float32
    lr, b1, b2, eps = (f(x) for x in (0.01, 0.9, 0.999, 1e-3))
    w, m, v = variable.copy(), np.zeros_like(variable), np.full_like(variable, 1e-6)
    for g in gradients:
        m = b1 * m + (f(1) - b1) * g
        v = v - (f(1) - b2) * np.sign(v - g * g) * (g * g)
        w = w - lr * m / (np.sqrt(v) + eps)
    return w


def gradients_of(size: int, count: int) -> list[Array]:
    rng = np.random.default_rng(3)
    return [rng.standard_normal(size).astype(np.float32) for _ in range(count)]


@pytest.mark.usefixtures("engine_name")
def test_the_arithmetic_is_that_of_the_paper() -> None:
    start = np.linspace(-1, 1, 999, dtype=np.float32)
    variable, optimizer = Variable(start), Yogi()
    for gradient in gradients_of(999, 4):
        optimizer.apply_gradients([(gradient, variable)])
    np.testing.assert_array_equal(variable.numpy(), by_hand(start, gradients_of(999, 4)))


@pytest.mark.parametrize("replicas", [1, 2, 3, 5, 8])
def test_under_a_strategy_the_replicas_gradients_are_summed(replicas: int) -> None:
    strategy = tf.distribute.MirroredStrategy(replicas)
    start = np.linspace(-1, 1, 40, dtype=np.float32)
    parts = gradients_of(40, replicas)
    with strategy.scope():
        variable, optimizer = Variable(start), Yogi()

    def replica() -> None:
        rank = tf.distribute.get_replica_context().replica_id_in_sync_group
        optimizer.apply_gradients([(parts[rank], variable)])

    strategy.run(replica)
    strategy.run(replica)
    total = add_rows(np.stack(parts))
    np.testing.assert_array_equal(variable.numpy(), by_hand(start, [total, total]))


@pytest.mark.parametrize("owners", [1, 2, 5])
def test_its_spans_can_be_divided_among_servers(owners: int) -> None:
    start = np.linspace(-1, 1, 5 * BLOCK + 3, dtype=np.float32)
    variable, optimizer = Variable(start), Yogi(clipvalue=1000.0)
    layout = optimizer.layout([variable])
    parts = [SpanOwner(optimizer, layout, spans) for spans in layout.divide(owners) if spans]
    (gradient,) = gradients_of(start.size, 1)
    flat = layout.pack([gradient])
    hypers = optimizer.step_hypers()
    taken = [layout.take(flat, spans) for spans in layout.divide(owners) if spans]
    partials = np.concatenate([part.partials(own, hypers) for part, own in zip(parts, taken, strict=True)])
    for part, own in zip(parts, taken, strict=True):
        part.apply(own, hypers, partials)
    np.testing.assert_array_equal(variable.numpy(), by_hand(start, [gradient]))


@pytest.mark.usefixtures("engine_name")
def test_a_row_sparse_gradient_touches_its_rows_alone() -> None:
    variable, optimizer = Variable(np.ones((4, 3), np.float32)), Yogi()
    values = np.full((3, 3), 0.5, np.float32)
    optimizer.apply_gradients([(tf.IndexedSlices(values, [1, 3, 1], (4, 3)), variable)])
    expected = np.ones((4, 3), np.float32)
    for row, gradient in ((1, 1.0), (3, 0.5)):
        expected[row] = by_hand(expected[row], [np.full(3, gradient, np.float32)])
    np.testing.assert_array_equal(variable.numpy(), expected)


def test_config_and_state_make_an_equal_optimizer() -> None:
    rate = schedules.ExponentialDecay(0.1, 2, 0.5)
    first = Yogi(rate, beta_2=0.99, clipvalue=0.5, name="mine")
    config = first.get_config()
    second = Yogi.from_config(dict(config))
    assert second.get_config() == config
    assert (config["name"], config["clipvalue"], config["beta_2"]) == ("mine", 0.5, 0.99)
    start = np.linspace(-1, 1, 9, dtype=np.float32)
    variables = [Variable(start), Variable(start)]
    *gradients, last = gradients_of(9, 3)
    for gradient in gradients:
        first.apply_gradients([(gradient, variables[0])])
    second.build(variables[1:])
    second.load_state(first.state())
    variables[1].assign(variables[0].numpy())
    for optimizer, variable in zip((first, second), variables, strict=True):
        optimizer.apply_gradients([(last, variable)])
    assert variables[0].numpy().tobytes() == variables[1].numpy().tobytes()


def test_hypers_are_attributes() -> None:
    optimizer = Yogi(0.5)
    assert float(optimizer.learning_rate) == 0.5
    optimizer.learning_rate = 0.25
    optimizer.beta_1 = 0.0
    assert optimizer.get_config()["learning_rate"] == 0.25
    assert optimizer.get_config()["beta_1"] == 0.0
    assert float(Yogi(epsilon=0.5).epsilon) == 0.5


def test_it_is_one_compiled_loop_in_half_precision_too() -> None:
    results = []
    for name in ("numpy", "compiled"):
        rng = np.random.default_rng(1)
        variable, m, v, gradient = (np.abs(rng.standard_normal(500)).astype(ml_dtypes.bfloat16) for _ in range(4))
        scalars = Yogi().scalars(Yogi().step_hypers(), np.dtype(ml_dtypes.bfloat16))
        get_engine(name).update(Yogi.rule, variable, [m, v], gradient, scalars)
        results.append([array.tobytes() for array in (variable, m, v)])
    assert results[0] == results[1]
    kernel: Any = get_engine("compiled").kernel(Yogi.rule, np.dtype(np.float32))
    assert "nogil" in kernel.kernel.targetoptions


def step_of_unknown(variable: Any, gradient: Any, temperature: Any) -> Any:
    return variable - temperature * gradient


def test_a_scalar_that_nothing_gives_is_an_error_when_the_class_is_made() -> None:
    with pytest.raises(TypeError, match=r"Warm has no value for the scalars \['temperature'\]"):

        class Warm(RuleOptimizer):
            rule = rule_of(step_of_unknown)
            defaults = {"learning_rate": 0.1}  # noqa: RUF012


def test_scalars_of_ones_own_replace_those_found_by_name() -> None:
    class Warm(RuleOptimizer):
        rule = rule_of(step_of_unknown)
        defaults = {"learning_rate": 0.5}  # noqa: RUF012

        def scalars(self, hypers: Any, dtype: Any) -> tuple[Any, ...]:
            return (dtype.type(hypers["learning_rate"]) * dtype.type(int(self.iterations.numpy()) + 1),)

    variable, optimizer = Variable(np.zeros(2, np.float32)), Warm()
    for _ in range(2):
        optimizer.apply_gradients([(np.ones(2, np.float32), variable)])
    np.testing.assert_array_equal(variable.numpy(), [-1.5, -1.5])


def test_wrong_declarations_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"\(variable, \*slots, gradient, \*scalars\).*has \(w, g\)"):
        rule_of(lambda w, g: w - g)
    with pytest.raises(
        TypeError, match=r"Wrong gives first values for \['velocity'\]; the rule's slots are \('m', 'v'\)"
    ):
        type("Wrong", (Yogi,), {"initial_slots": {"velocity": 1.0}})
    with pytest.raises(TypeError, match="Ruleless needs a rule"):
        type("Ruleless", (RuleOptimizer,), {})
    with pytest.raises(TypeError, match="two values for 'learning_rate'"):
        Yogi(0.1, learning_rate=0.2)
    with pytest.raises(TypeError, match="5 values were given"):
        Yogi(1, 2, 3, 4, 5)
    with pytest.raises(TypeError, match="takes no argument 'momentum'"):
        Yogi(momentum=0.9)


def test_the_documentation_shows_the_code_that_is_tested_here() -> None:
    assert yogi.__file__ is not None
    code = Path(yogi.__file__).read_text().split('"""', 2)[2].strip()
    assert f"```python\n{code}\n```" in DOCS.read_text()
