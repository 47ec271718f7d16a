"""Every recorded step of Keras 3: its own classes, and the features that it added to those of the legacy generation.

``golden.json`` was computed with Keras 3.15; its ``meta`` has the versions, the seed and the conventions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distopt import schedules
from distopt.keras import optimizers
from distopt.optimizers import set_default_engine
from distopt.optimizers.keras3 import Keras3Optimizer
from distopt.schedules import LearningRateSchedule
from distopt.types import Array
from distopt.variable import Variable
from tests.parity.deployments import DEPLOYMENTS, Job, run_steps, share_of

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden.json").read_text())
RECORDED = [case for case in GOLDEN["cases"] if case["api"] == "keras3"]

_OTHER_NADAM = "Keras 3 takes 1 for schedule_decay, the legacy class 0.004"
_OTHER_ADAGRAD = "Keras 3 has epsilon inside the root, the legacy class outside"
_OTHER_RMSPROP = "without momentum Keras 3 has epsilon inside the root, the legacy class outside"

OTHER_ARITHMETIC: dict[str, str] = {
    f"keras3/{name}/{dtype}/dense": reason
    for dtype in ("float32", "float64")
    for name, reason in {
        "Nadam/lr": _OTHER_NADAM,
        "Adagrad/lr_eps": _OTHER_ADAGRAD,
        "RMSprop/lr_eps": _OTHER_RMSPROP,
    }.items()
}
"""Cases of classes that also exist as legacy ones, and that those compute otherwise; with the reason of each."""

CASES = [case for case in RECORDED if case["id"] not in OTHER_ARITHMETIC]
SLOT_NAMES = {
    "Adam": {"momentum": "m", "velocity": "v", "velocity_hat": "vhat"},
    "Adamax": {"momentum": "m", "norm": "v"},
    "Adadelta": {"accumulated_grad": "accum_grad", "accumulated_delta_var": "accum_var"},
    "RMSprop": {"velocity": "rms", "average_gradient": "mg"},
}
"""What the legacy classes call slots to which Keras 3 gave other names."""


class AskedOnceACall(LearningRateSchedule):
    """A schedule as Keras 3 asks it under accumulation: at the count of calls, of which ``steps`` make a step."""

    def __init__(self, schedule: LearningRateSchedule, steps: int) -> None:
        self.schedule = schedule
        self.steps = steps

    def __call__(self, step: Any) -> Any:
        return self.schedule(step * self.steps + self.steps - 1)


@pytest.fixture(params=["numpy", "compiled"])
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    set_default_engine(request.param)
    yield request.param
    set_default_engine("compiled")


ROUNDED_BETAS = frozenset({"Adam", "Adamax"})
"""Legacy classes that take ``1 - beta`` of a rounded beta, where Keras 3 rounds ``1 - beta``."""

ROUNDED_HYPERS = frozenset({"Adadelta", "RMSprop", "Ftrl"})
"""Legacy classes that round to float32 what Keras 3 takes exactly; it shows in float64 alone."""


def tolerance(case: dict[str, Any], name: str) -> dict[str, float]:
    """The stated tolerances; wider for what a legacy class rounds otherwise."""
    if name in ROUNDED_BETAS:
        return {"rtol": 5e-5, "atol": 5e-6}
    if case["dtype"] == "float32":
        return {"rtol": 1e-5, "atol": 1e-6}
    if name in ROUNDED_HYPERS:
        return {"rtol": 1e-6, "atol": 1e-7}
    return {"rtol": 1e-6 if "__schedule__" in json.dumps(case["kwargs"]) else 1e-12, "atol": 1e-13}


def made_optimizer(case: dict[str, Any], name: str) -> Any:
    arguments = dict(case["kwargs"])
    rate = arguments.get("learning_rate")
    if isinstance(rate, dict):
        schedule = getattr(schedules, rate["__schedule__"])(**rate["kwargs"])
        steps = arguments.get("gradient_accumulation_steps")
        arguments["learning_rate"] = schedule if steps is None else AskedOnceACall(schedule, steps)
    if name != case["class"]:
        arguments.setdefault("weight_decay", 0.0)
    return getattr(optimizers, name)(**arguments)


def made_job(case: dict[str, Any], name: str) -> Job:
    variables = {n: Variable(np.array(GOLDEN["init"][n], case["dtype"]), name=n) for n in ("a", "b")}
    return Job(variables, made_optimizer(case, name))


def check_values(case: dict[str, Any], name: str, job: Job, step: int) -> None:
    for variable, values in case["steps"][step].items():
        found = job.variables[variable].numpy()
        np.testing.assert_allclose(found, values, **tolerance(case, name), err_msg=f"step {step}")


def check_slots(case: dict[str, Any], name: str, job: Job) -> None:
    names = SLOT_NAMES.get(name, {})
    for variable, slots in case["slots"].items():
        for slot, values in slots.items():
            found = job.optimizer.get_slot(job.variables[variable], names.get(slot, slot)).numpy()
            np.testing.assert_allclose(found, values, **tolerance(case, name), err_msg=f"{variable}.{slot}")
            assert found.shape == np.shape(values)
    calls = case["kwargs"].get("gradient_accumulation_steps") or 1
    assert int(job.optimizer.iterations.numpy()) == case["other"]["iterations"] // calls


def gradient_of(case: dict[str, Any], step: int, variable: str) -> Array:
    return np.array(GOLDEN["gradients"]["dense"][step][variable], case["dtype"])


def clips_own(case: dict[str, Any], job: Job) -> bool:
    """Return whether replicas clip their own gradients, so that the recorded one must be one replica's."""
    return "clip" in json.dumps(case["kwargs"]) and isinstance(job.optimizer, Keras3Optimizer)


def follow(case: dict[str, Any], name: str) -> None:
    job = made_job(case, name)
    for step in range(len(case["steps"])):
        job.optimizer.apply_gradients([(gradient_of(case, step, n), v) for n, v in job.variables.items()])
        check_values(case, name, job, step)
    check_slots(case, name, job)


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_variables_and_slots_follow_the_reference_at_every_step(case: dict[str, Any]) -> None:
    follow(case, case["class"])


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("case", [case for case in CASES if case["class"] == "Adam"], ids=lambda case: case["id"])
def test_adamw_without_decay_is_the_adam_of_keras_3_exactly(case: dict[str, Any]) -> None:
    follow(case, "AdamW")


@pytest.mark.parametrize("deployment", DEPLOYMENTS)
@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_strategies_follow_the_reference_at_every_step(case: dict[str, Any], deployment: str) -> None:
    name = case["class"]
    strategy, job, fetch_slots = DEPLOYMENTS[deployment](lambda: made_job(case, name))
    own_clips = clips_own(case, job)

    def gradients_of(step: int, replica: int) -> list[Array]:
        return [share_of(replica, gradient_of(case, step, n), all_of_it=own_clips) for n in job.variables]

    run_steps(strategy, job, gradients_of, len(case["steps"]), lambda step: check_values(case, name, job, step))
    fetch_slots()
    check_slots(case, name, job)


def test_every_case_is_followed_or_listed_with_a_reason() -> None:
    assert set(OTHER_ARITHMETIC) <= {case["id"] for case in RECORDED}
    features = {"weight_decay", "use_ema", "gradient_accumulation_steps", "loss_scale_factor"}
    assert not [case["id"] for case in RECORDED if case["id"] in OTHER_ARITHMETIC and features & set(case["kwargs"])]
    assert all(len(reason.split()) > 3 for reason in OTHER_ARITHMETIC.values())
