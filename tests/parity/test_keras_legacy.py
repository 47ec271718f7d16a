"""Every recorded step of the reference's legacy optimizers, on both engines and in every deployment.

``golden.json`` was computed with TensorFlow 2.21; its ``meta`` has the versions, the seed and the conventions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distopt import replica_context, schedules
from distopt.aggregation import Mean
from distopt.distribute import MirroredStrategy, Strategy
from distopt.errors import PlacementError
from distopt.indexed_slices import IndexedSlices
from distopt.keras import optimizers
from distopt.optimizers import set_default_engine
from distopt.tensor import Tensor
from distopt.variable import Variable
from tests.parity.deployments import DEPLOYMENTS, Job, share_of

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden.json").read_text())
CASES = [case for case in GOLDEN["cases"] if case["api"] == "keras_legacy"]
DENSE = [case for case in CASES if case["grads"] == "dense"]
DISTRIBUTED = [case for case in GOLDEN["dist"] if case["api"] == "keras_legacy"]


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


def made_job(case: dict[str, Any]) -> Job:
    variables = {name: Variable(np.array(GOLDEN["init"][name], case["dtype"]), name=name) for name in ("a", "b")}
    kwargs = {name: made(value) for name, value in case["kwargs"].items()}
    return Job(variables, getattr(optimizers, case["class"])(**kwargs))


def make_assignments(case: dict[str, Any], optimizer: Any, step: int) -> None:
    for event in case.get("events") or []:
        if event["before_step"] == step:
            for name, value in event["set"].items():
                setattr(optimizer, name, made(value))


def check_values(case: dict[str, Any], job: Job, step: int) -> None:
    for name, values in case["steps"][step].items():
        found = job.variables[name].numpy()
        np.testing.assert_allclose(found, values, **tolerance(case), err_msg=f"{case['id']}, {name}, step {step}")


def check_state(case: dict[str, Any], job: Job) -> None:
    for name, slots in case["slots"].items():
        assert list(slots) == job.optimizer.get_slot_names()
        for slot, values in slots.items():
            found = job.optimizer.get_slot(job.variables[name], slot).numpy()
            np.testing.assert_allclose(found, values, **tolerance(case), err_msg=f"{case['id']}, {name}.{slot}")
    weights = {weight.name.rpartition("/")[2]: weight.numpy() for weight in job.optimizer.weights}
    for name, value in case["other"].items():
        found = weights[{"iterations": "iter:0"}.get(name, f"{name}:0")]
        np.testing.assert_allclose(found, value, **tolerance(case), err_msg=f"{case['id']}, {name}")


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_variables_and_slots_follow_the_reference_at_every_step(case: dict[str, Any]) -> None:
    job = made_job(case)
    for step in range(len(case["steps"])):
        make_assignments(case, job.optimizer, step)
        job.optimizer.apply_gradients([(gradient(case, step, name), v) for name, v in job.variables.items()])
        check_values(case, job, step)
    check_state(case, job)


def run_replicas_of(case: dict[str, Any], strategy: Strategy, job: Job, *, all_of_it: bool = False) -> None:
    """Apply the case's dense gradients, divided among two replicas, and check every step."""

    def replica_step(step: int) -> None:
        context = replica_context.current_replica("a test")
        replica = context.replica_id_in_sync_group
        shares = [share_of(replica, gradient(case, step, name), all_of_it=all_of_it) for name in job.variables]
        job.optimizer.apply_gradients(zip(shares, job.variables.values(), strict=True))

    for step in range(len(case["steps"])):
        make_assignments(case, job.optimizer, step)
        strategy.run(replica_step, args=(step,))
        check_values(case, job, step)


@pytest.mark.parametrize("deployment", DEPLOYMENTS)
@pytest.mark.parametrize("case", DENSE, ids=[case["id"] for case in DENSE])
def test_strategies_follow_the_reference_at_every_step(case: dict[str, Any], deployment: str) -> None:
    strategy, job, fetch_slots = DEPLOYMENTS[deployment](lambda: made_job(case))
    if deployment != "mirrored" and "set_clipvalue_midway" in case["id"]:
        with pytest.raises(PlacementError, match=r"clipvalue.*0\.25.*placement 'replica'"):
            run_replicas_of(case, strategy, job)
        return
    run_replicas_of(case, strategy, job, all_of_it=case["variant"] == "plain")
    fetch_slots()
    check_state(case, job)


def recorded_gradient(case: dict[str, Any], given: Any, variable: Variable) -> Any:
    if isinstance(given, dict):
        return IndexedSlices(np.array(given["values"], case["dtype"]), given["indices"], variable.shape)
    return Tensor(np.array(given, case["dtype"]))


@pytest.mark.parametrize("case", DISTRIBUTED, ids=[case["id"] for case in DISTRIBUTED])
def test_replicas_follow_the_reference_at_every_step(case: dict[str, Any]) -> None:
    strategy = MirroredStrategy(case["replicas"])
    with strategy.scope():
        job = made_job(case)
    if case["mode"] == "mean_aggregator":
        job.optimizer.gradient_aggregator = Mean()

    def replica_step(step: int) -> None:
        context = replica_context.current_replica("a test")
        given = case["per_replica_grads"][step][context.replica_id_in_sync_group]
        gradients = [recorded_gradient(case, given[name], variable) for name, variable in job.variables.items()]
        if case["mode"] == "manual_all_reduce":
            gradients = context.all_reduce("SUM", gradients)
        job.optimizer.apply_gradients(
            zip(gradients, job.variables.values(), strict=True),
            experimental_aggregate_gradients=case["mode"] in ("default_sum", "mean_aggregator"),
        )

    for step, expected in enumerate(case["steps"]):
        strategy.run(replica_step, args=(step,))
        for name, values in expected.items():
            for replica, value in enumerate(values):
                found = job.variables[name].copy_of(replica)
                np.testing.assert_allclose(found, value, **tolerance(case), err_msg=f"{name}, step {step}")
    for name, slots in case["slots"].items():
        for slot, copies in slots.items():
            for replica, value in enumerate(copies):
                found = job.optimizer.get_slot(job.variables[name], slot).copy_of(replica)
                np.testing.assert_allclose(found, value, **tolerance(case), err_msg=f"{name}.{slot}")
    assert int(job.optimizer.iterations.numpy()) == case["other"]["iterations"]
