"""Every recorded step of the reference's legacy optimizers, on both engines.

``golden.json`` was computed with TensorFlow 2.21; its ``meta`` has the versions, the seed and the conventions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distopt import schedules
from distopt.indexed_slices import IndexedSlices
from distopt.keras import optimizers
from distopt.optimizers import set_default_engine
from distopt.variable import Variable

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden.json").read_text())
CASES = [case for case in GOLDEN["cases"] if case["api"] == "keras_legacy"]


@pytest.fixture(params=["numpy", "compiled"])
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    set_default_engine(request.param)
    yield request.param
    set_default_engine("compiled")


def tolerance(case: dict[str, Any]) -> dict[str, float]:
    if case["dtype"] == "float32":
        return {"rtol": 1e-5, "atol": 1e-6}
    return {"rtol": 1e-6 if "__schedule__" in json.dumps(case["kwargs"]) else 1e-12, "atol": 1e-13}


def made(value: Any) -> Any:
    if isinstance(value, dict) and "__schedule__" in value:
        return getattr(schedules, value["__schedule__"])(**value["kwargs"])
    return value


def gradient(case: dict[str, Any], step: int, name: str) -> Any:
    kind = case["grads"]
    if kind == "none_even" and name == "b" and step % 2 == 0:
        return None
    if kind == "sparse" or (kind == "mixed" and name == "b"):
        given = GOLDEN["gradients"]["sparse"][step][name]
        return IndexedSlices(np.array(given["values"], case["dtype"]), given["indices"])
    return np.array(GOLDEN["gradients"]["dense"][step][name], case["dtype"])


@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_variables_and_slots_follow_the_reference_at_every_step(case: dict[str, Any], engine: str) -> None:
    variables = {name: Variable(np.array(GOLDEN["init"][name], case["dtype"]), name=name) for name in ("a", "b")}
    optimizer = getattr(optimizers, case["class"])(**{name: made(value) for name, value in case["kwargs"].items()})
    for step, expected in enumerate(case["steps"]):
        for event in case.get("events") or []:
            if event["before_step"] == step:
                for name, value in event["set"].items():
                    setattr(optimizer, name, made(value))
        optimizer.apply_gradients([(gradient(case, step, name), variable) for name, variable in variables.items()])
        for name, values in expected.items():
            np.testing.assert_allclose(variables[name].numpy(), values, **tolerance(case), err_msg=f"step {step}")
    for name, slots in case["slots"].items():
        for slot, values in slots.items():
            found = optimizer.get_slot(variables[name], slot).numpy()
            np.testing.assert_allclose(found, values, **tolerance(case), err_msg=f"{name}.{slot}")
    assert int(optimizer.iterations.numpy()) == case["other"]["iterations"]
