"""Every recorded step of the reference's TensorFlow 1 optimizers, on both engines and in every deployment.

``golden.json`` was computed with TensorFlow 2.21; its ``meta`` has the versions, the seed and the conventions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import distopt.compat.v1 as tf
from distopt.compat.v1 import train
from distopt.distribute import MirroredStrategy
from distopt.indexed_slices import IndexedSlices
from distopt.optimizers import set_default_engine
from distopt.tensor import Tensor
from distopt.variable import Variable
from tests.parity.deployments import DEPLOYMENTS, Job, share_of
from tests.parity.test_keras_legacy import GOLDEN, gradient, tolerance

CASES = [case for case in GOLDEN["cases"] if case["api"] == "v1"]
DENSE = [case for case in CASES if case["grads"] == "dense"]
DISTRIBUTED = [case for case in GOLDEN["dist"] if case["api"] == "v1"]
DECAYS = [entry for entry in GOLDEN["schedules"] if entry["api"] == "v1"]


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


def made_job(case: dict[str, Any], global_step: Variable | None = None) -> Job:
    variables = {name: Variable(np.array(GOLDEN["init"][name], case["dtype"]), name=name) for name in ("a", "b")}
    return Job(variables, made_optimizer(case, global_step))


def made_step(case: dict[str, Any]) -> Variable | None:
    return Variable(0, dtype=np.int64, trainable=False) if "global_step" in case["other"] else None


def check_values(case: dict[str, Any], variables: dict[str, Any], step: int) -> None:
    for name, values in case["steps"][step].items():
        np.testing.assert_allclose(variables[name], values, **tolerance(case), err_msg=f"{name}, step {step}")


def check_slots(case: dict[str, Any], job: Job) -> None:
    for name, slots in case["slots"].items():
        assert sorted(slots) == job.optimizer.get_slot_names()
        for slot, values in slots.items():
            found = job.optimizer.get_slot(job.variables[name], slot).numpy()
            np.testing.assert_allclose(found, values, **tolerance(case), err_msg=f"{name}.{slot}")


def check_others(case: dict[str, Any], job: Job, global_step: Variable | None) -> None:
    for name, value in case["other"].items():
        own = global_step if name == "global_step" else job.optimizer._get_non_slot_variable(name)
        assert own is not None
        np.testing.assert_allclose(own.numpy(), value, rtol=1e-6)


def replica_step(case: dict[str, Any], job: Job, global_step: Variable | None, step: int) -> None:
    """Apply this replica's share of the gradients of ``step``; the shares add up to the recorded ones."""
    context = tf.distribute.get_replica_context()
    assert context is not None
    pairs = [
        (share_of(context.replica_id_in_sync_group, gradient(case, step, name), all_of_it=False), variable)
        for name, variable in job.variables.items()
    ]
    job.optimizer.apply_gradients(pairs, global_step=global_step)


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_variables_and_slots_follow_the_reference_at_every_step(case: dict[str, Any]) -> None:
    global_step = made_step(case)
    job = made_job(case, global_step)
    for step in range(len(case["steps"])):
        pairs = [(gradient(case, step, name), variable) for name, variable in job.variables.items()]
        job.optimizer.apply_gradients(pairs, global_step=global_step)
        check_values(case, {name: variable.numpy() for name, variable in job.variables.items()}, step)
    check_slots(case, job)
    check_others(case, job, global_step)


@pytest.mark.parametrize("case", DENSE, ids=[case["id"] for case in DENSE])
def test_a_session_follows_the_reference_at_every_step(case: dict[str, Any]) -> None:
    with tf.Graph().as_default():
        global_step = made_step(case)
        job = made_job(case, global_step)
        fed = {name: tf.placeholder(case["dtype"], variable.shape) for name, variable in job.variables.items()}
        train_op = job.optimizer.apply_gradients([(fed[n], v) for n, v in job.variables.items()], global_step)
        with tf.Session() as session:
            session.run(tf.global_variables_initializer())
            for step in range(len(case["steps"])):
                session.run(train_op, {fed[name]: gradient(case, step, name) for name in fed})
                check_values(case, session.run(job.variables), step)
            for name, slots in case["slots"].items():
                for slot, values in slots.items():
                    found = session.run(job.optimizer.get_slot(job.variables[name], slot))
                    np.testing.assert_allclose(found, values, **tolerance(case))


@pytest.mark.parametrize("deployment", DEPLOYMENTS)
@pytest.mark.parametrize("case", DENSE, ids=[case["id"] for case in DENSE])
def test_strategies_follow_the_reference_at_every_step(case: dict[str, Any], deployment: str) -> None:
    global_step = made_step(case)
    strategy, job, fetch_slots = DEPLOYMENTS[deployment](lambda: made_job(case, global_step))

    for step in range(len(case["steps"])):
        strategy.run(replica_step, args=(case, job, global_step, step))
        check_values(case, {name: variable.numpy() for name, variable in job.variables.items()}, step)
    fetch_slots()
    check_slots(case, job)
    check_others(case, job, global_step)


def recorded_gradient(case: dict[str, Any], given: Any, variable: Variable) -> Any:
    if isinstance(given, dict):
        return IndexedSlices(np.array(given["values"], case["dtype"]), given["indices"], variable.shape)
    return Tensor(np.array(given, case["dtype"]))


@pytest.mark.parametrize("case", DISTRIBUTED, ids=[case["id"] for case in DISTRIBUTED])
def test_replicas_follow_the_reference_at_every_step(case: dict[str, Any]) -> None:
    strategy = MirroredStrategy(case["replicas"])
    with strategy.scope():
        job = made_job(case)

    def replica_step(step: int) -> None:
        context = tf.distribute.get_replica_context()
        assert context is not None
        given = case["per_replica_grads"][step][context.replica_id_in_sync_group]
        gradients = [recorded_gradient(case, given[name], variable) for name, variable in job.variables.items()]
        by_hand = case["mode"] == "manual_all_reduce"
        if by_hand:
            gradients = context.all_reduce("SUM", gradients)
        pairs = zip(gradients, job.variables.values(), strict=True)
        job.optimizer.apply_gradients(pairs, skip_gradients_aggregation=by_hand)

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


@pytest.mark.parametrize("entry", DECAYS, ids=[f"{i}-{entry['class']}" for i, entry in enumerate(DECAYS)])
def test_decay_follows_the_reference_at_every_recorded_step(entry: dict[str, Any]) -> None:
    decay, kwargs = getattr(train, entry["class"]), dict(entry["kwargs"])
    step = Variable(0, trainable=False)
    argument = "x" if entry["class"] == "piecewise_constant" else "global_step"
    rate = decay(**{argument: step}, **kwargs)
    found = []
    for value in entry["steps"]:
        step.assign(value)
        found.append(rate().numpy())
    assert {value.dtype.name for value in found} == {entry["result_dtype"]}
    np.testing.assert_allclose(found, entry["values"], rtol=1e-5, atol=1e-6)

    with tf.Graph().as_default(), tf.Session() as session:
        fed = tf.placeholder(np.int32, ())
        deferred = decay(**{argument: fed}, **kwargs)
        np.testing.assert_array_equal([session.run(deferred, {fed: value}) for value in entry["steps"]], found)
