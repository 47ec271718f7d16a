"""Every recorded step of the reference's TensorFlow 1 optimizers, on both engines.

``golden.json`` was computed with TensorFlow 2.21; its ``meta`` has the versions, the seed and the conventions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from distopt.compat.v1 import train
from distopt.optimizers import set_default_engine
from distopt.tensor import Tensor
from distopt.variable import Variable
from tests.parity.test_keras_legacy import GOLDEN, gradient, tolerance

CASES = [case for case in GOLDEN["cases"] if case["api"] == "v1"]


@pytest.fixture(params=["numpy", "compiled"])
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    set_default_engine(request.param)
    yield request.param
    set_default_engine("compiled")


def made_optimizer(case: dict[str, Any], global_step: Variable | None) -> train.Optimizer:
    kwargs = dict(case["kwargs"])
    if "float64 tensors" in (case.get("note") or ""):
        kwargs |= {k: Tensor(np.float64(v)) for k, v in kwargs.items() if k != "initial_accumulator_value"}
    if global_step is not None:
        kwargs["global_step"] = global_step
    optimizer: train.Optimizer = getattr(train, case["class"])(**kwargs)
    return optimizer


@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_variables_and_slots_follow_the_reference_at_every_step(case: dict[str, Any], engine: str) -> None:
    variables = {name: Variable(np.array(GOLDEN["init"][name], case["dtype"]), name=name) for name in ("a", "b")}
    counts = "global_step" in case["other"]
    global_step = Variable(0, dtype=np.int64, trainable=False) if counts else None
    optimizer = made_optimizer(case, global_step)
    for step, expected in enumerate(case["steps"]):
        pairs = [(gradient(case, step, name), variable) for name, variable in variables.items()]
        optimizer.apply_gradients(pairs, global_step=global_step)
        for name, values in expected.items():
            np.testing.assert_allclose(variables[name].numpy(), values, **tolerance(case), err_msg=f"step {step}")
    for name, slots in case["slots"].items():
        assert sorted(slots) == optimizer.get_slot_names()
        for slot, values in slots.items():
            found = optimizer.get_slot(variables[name], slot)
            assert found is not None
            np.testing.assert_allclose(found.numpy(), values, **tolerance(case), err_msg=f"{name}.{slot}")
    for name, value in case["other"].items():
        own = global_step if name == "global_step" else optimizer._get_non_slot_variable(name)
        assert own is not None
        np.testing.assert_allclose(own.numpy(), value, rtol=1e-6)
