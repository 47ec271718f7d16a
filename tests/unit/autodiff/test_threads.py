"""Tapes in many threads, after exceptions, and beside autograd's own functions."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from distopt import ops
from distopt.autodiff.nodes import state
from distopt.autodiff.tape import GradientTape
from distopt.tensor import Tensor
from distopt.variable import Variable


def _second_derivative(start: float) -> float:
    x = Variable(start)
    with GradientTape() as outer:
        with GradientTape() as inner:
            y = ops.exp(x * 1.0) * x * x
        first = inner.gradient(y, x)
    return float(outer.gradient(first, x))


def _in_threads(count: int, body: Callable[[int], list[float]]) -> list[list[float]]:
    barrier = threading.Barrier(count)

    def run(rank: int) -> list[float]:
        barrier.wait(30)
        return body(rank)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


def test_second_derivatives_in_eight_threads_at_once_are_those_of_one() -> None:
    starts = [0.1 * (rank + 1) for rank in range(8)]
    alone = [_second_derivative(start) for start in starts]
    together = _in_threads(8, lambda rank: [_second_derivative(starts[rank]) for _ in range(50)])
    assert together == [[value] * 50 for value in alone]
    np.testing.assert_allclose(alone, [np.exp(x) * (x * x + 4 * x + 2) for x in starts], rtol=1e-5)


def test_autograd_second_derivatives_in_eight_threads_are_right() -> None:
    second = autograd.grad(autograd.grad(lambda x: x**3))
    together = _in_threads(8, lambda rank: [float(second(1.0 + rank)) for _ in range(50)])
    assert together == [[6.0 * (1.0 + rank)] * 50 for rank in range(8)]


def test_variable_read_by_many_threads_gives_each_its_own_gradient() -> None:
    shared = Variable(np.ones(5, np.float32))

    def body(rank: int) -> list[float]:
        results = []
        for _ in range(20):
            with GradientTape() as tape:
                loss = ops.reduce_sum(shared * float(rank + 1))
            results.append(float(tape.gradient(loss, shared)[0]))
        return results

    assert _in_threads(8, body) == [[rank + 1.0] * 20 for rank in range(8)]
    shared.check_writable()


def test_operation_in_another_thread_is_not_recorded() -> None:
    x = Variable(3.0)
    with GradientTape() as tape:
        y = x * x
        with ThreadPoolExecutor(1) as pool:
            z = pool.submit(lambda: y * x).result(30)
    assert float(z) == 27.0
    assert tape.gradient(z, x) is None


def _fail_inside_nested_tapes(x: Variable) -> None:
    with GradientTape(), GradientTape() as inner:
        y = x * x
        inner.gradient(y, x)
        raise ZeroDivisionError


def test_exception_inside_nested_tapes_leaves_everything_working() -> None:
    x = Variable(3.0)
    with pytest.raises(ZeroDivisionError):
        _fail_inside_nested_tapes(x)
    assert state.active == ()
    assert state.sole is None
    assert _second_derivative(0.0) == 2.0
    x.assign(4.0)
    with GradientTape() as tape:
        y = x * x
    assert float(tape.gradient(y, x)) == 8.0


def test_exception_inside_an_autograd_function_leaves_second_derivatives_right() -> None:
    def fails(x: float) -> float:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        autograd.grad(fails)(1.0)
    assert float(autograd.grad(autograd.grad(lambda x: x**3))(2.0)) == 12.0
    assert _second_derivative(0.0) == 2.0


def test_exception_in_a_backward_pass_leaves_a_persistent_tape_usable() -> None:
    from autograd.extend import defvjp, primitive

    broken = primitive(lambda x: x * 1)

    def refuse(_: object) -> object:
        raise ZeroDivisionError

    defvjp(broken, lambda ans, x: refuse)
    x = Variable(3.0)
    with GradientTape(persistent=True) as tape:
        y = x * x
        z = ops.call(broken, y) + y
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            tape.gradient(z, x)
    assert float(tape.gradient(y, x)) == 6.0


def test_autograd_function_of_our_operations_is_differentiated() -> None:
    def loss(w: object) -> object:
        return ops.reduce_sum(ops.square(Tensor(w)))._value

    np.testing.assert_array_equal(autograd.grad(loss)(np.array([1.0, 2.0])), [2.0, 4.0])


def test_tape_inside_an_autograd_function_and_the_other_way_round() -> None:
    def first(a: object) -> object:
        x = Tensor(a)
        with GradientTape() as tape:
            tape.watch(x)
            y = x * x * x
        return tape.gradient(y, x)._value

    assert float(autograd.grad(first)(2.0)) == 12.0

    x = Variable(2.0)
    with GradientTape() as tape:
        y = ops.call(autograd.grad(lambda a: anp.sin(a) * a), x)
    expected = 2 * np.cos(2.0) - 2.0 * np.sin(2.0)
    np.testing.assert_allclose(float(tape.gradient(y, x)), expected, rtol=1e-6)


def test_tapes_left_in_the_wrong_order_record_what_is_theirs() -> None:
    x = Variable(3.0)
    first, second = GradientTape(), GradientTape()
    first.__enter__()
    second.__enter__()
    y = x * x
    first.__exit__(None, None, None)
    z = y * 2.0
    second.__exit__(None, None, None)
    assert state.active == ()
    assert first.gradient(z, x) is None
    assert float(second.gradient(z, x)) == 12.0
