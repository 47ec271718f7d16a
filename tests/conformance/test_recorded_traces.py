"""Every recorded trace of Keras optimizers over several replicas, on every transport; ``golden.json``, key ``dist``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import distopt as tf
from distopt.aggregation import Mean
from distopt.comm.communicator import Communicator
from distopt.distribute import MirroredStrategy, MultiWorkerMirroredStrategy, Strategy, SyncParameterServerStrategy
from distopt.distribute.served import relative_division, served
from tests.conftest import Run

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[1] / "parity" / "golden.json").read_text())
CASES = [case for case in GOLDEN["dist"] if case["api"] == "keras_legacy"]
SERVED = [case for case in CASES if case["mode"] in ("default_sum", "mean_aggregator")]
"""Placement ``server`` refuses unaggregated gradients (``tests/unit/distribute/test_server_owners.py``)."""
EVERY = pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"].removeprefix("dist/keras_legacy/"))


def tolerance(case: dict[str, Any]) -> dict[str, float]:
    return {"rtol": 1e-5, "atol": 1e-6} if case["dtype"] == "float32" else {"rtol": 1e-12, "atol": 1e-13}


def optimizer_of(case: dict[str, Any]) -> Any:
    options = {"gradient_aggregator": Mean()} if case["mode"] == "mean_aggregator" else {}
    return getattr(tf.keras.optimizers.legacy, case["class"])(**case["kwargs"], **options)


def variables_of(case: dict[str, Any]) -> dict[str, tf.Variable]:
    return {name: tf.Variable(np.array(GOLDEN["init"][name], case["dtype"]), name=name) for name in ("a", "b")}


def gradient_of(given: Any, case: dict[str, Any], shape: tuple[int, ...]) -> Any:
    if isinstance(given, dict):
        return tf.IndexedSlices(np.array(given["values"], case["dtype"]), given["indices"], shape)
    return tf.Tensor(np.array(given, case["dtype"]))


def check(strategy: Strategy, case: dict[str, Any]) -> None:
    """Run the trace under ``strategy`` and compare every replica's copy at every step."""
    with strategy.scope():
        variables = variables_of(case)
        optimizer = optimizer_of(case)
    mode = case["mode"]

    def replica_step(step: int) -> None:
        context: Any = tf.distribute.get_replica_context()
        given = case["per_replica_grads"][step][context.replica_id_in_sync_group]
        gradients = [gradient_of(given[name], case, variables[name].shape) for name in ("a", "b")]
        if mode == "manual_all_reduce":
            gradients = context.all_reduce("SUM", gradients)
        pairs = zip(gradients, variables.values(), strict=True)
        aggregate = mode in ("default_sum", "mean_aggregator")
        optimizer.apply_gradients(pairs, experimental_aggregate_gradients=aggregate)

    for step, expected in enumerate(case["steps"]):
        strategy.run(replica_step, args=(step,))
        for name, of_replica in expected.items():
            found = strategy.experimental_local_results(variables[name])
            for replica, copy in zip(strategy.extended.hosted, found, strict=True):
                want = of_replica[replica]
                np.testing.assert_allclose(copy.numpy(), want, **tolerance(case), err_msg=f"{name}, step {step}")
    if strategy.placement == "replica":
        for name, slots in case["slots"].items():
            for slot, of_replica in slots.items():
                found = strategy.experimental_local_results(optimizer.get_slot(variables[name], slot))
                for replica, copy in zip(strategy.extended.hosted, found, strict=True):
                    np.testing.assert_allclose(copy.numpy(), of_replica[replica], **tolerance(case), err_msg=slot)
    assert int(optimizer.iterations.numpy()) == case["other"]["iterations"]


@EVERY
def test_trace_in_one_process(case: dict[str, Any]) -> None:
    check(MirroredStrategy(case["replicas"]), case)


@EVERY
def test_trace_over_ranks(run: Run, case: dict[str, Any]) -> None:
    def rank(comm: Communicator) -> None:
        check(MultiWorkerMirroredStrategy(replicas=case["replicas"], communicator=comm), case)

    run(rank)


@pytest.mark.parametrize("servers", [1, 2])
@pytest.mark.parametrize("case", SERVED, ids=lambda case: case["id"].removeprefix("dist/keras_legacy/"))
def test_trace_on_a_parameter_server(case: dict[str, Any], servers: int) -> None:
    from tests.unit.comm.zmq.cluster import Cluster

    def owned() -> tuple[Any, Any]:
        variables = tuple(variables_of(case).values())
        optimizer = optimizer_of(case)
        return optimizer, optimizer.layout(variables)

    def worker(comm: Any) -> None:
        check(SyncParameterServerStrategy(comm, replicas=case["replicas"]), case)

    spans = relative_division(owned()[1], servers)
    cluster = Cluster(
        2,
        servers,
        worker,
        num_replicas=case["replicas"],
        owner=lambda own: served(*owned(), own, case["replicas"]),
        aggregators=[Mean()],
        spans=spans,
    )
    cluster.results()
