"""Cluster descriptions and resolvers, beyond the recorded facts (``tests/parity/test_facts_data.py``)."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import distopt as tf
from distopt.distribute import cluster_resolver
from distopt.distribute.cluster import ClusterSpec, check_cluster, id_in_cluster, is_chief, worker_count
from distopt.distribute.cluster_resolver import SimpleClusterResolver, TFConfigClusterResolver
from distopt.distribute.experimental import partitioners

CLUSTER: dict[str, Any] = {"chief": ["h0:1"], "worker": ["h1:2", "h2:3"], "ps": {"1": "h3:4"}}


def test_cluster_spec_tells_jobs_tasks_and_addresses() -> None:
    spec = ClusterSpec(ClusterSpec(CLUSTER))
    assert spec.jobs == ["chief", "ps", "worker"]
    assert spec.job_tasks("ps") == [None, "h3:4"]
    assert spec.task_indices("worker") == [0, 1]
    assert spec.as_dict() == {"chief": ["h0:1"], "worker": ["h1:2", "h2:3"], "ps": {1: "h3:4"}}
    assert spec == ClusterSpec(spec.as_dict())
    assert not ClusterSpec({})
    assert tf.train.ClusterSpec is ClusterSpec


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda s: s.num_tasks("evaluator"), "no job 'evaluator'"),
        (lambda s: s.task_address("ps", 0), "no task 0"),
        (lambda s: s.job_tasks("x"), "no job 'x'"),
    ],
)
def test_what_a_cluster_does_not_have_is_named(ask: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ask(ClusterSpec(CLUSTER))


@pytest.mark.parametrize(
    ("cluster", "error"),
    [
        (["h1:1"], TypeError),
        ({"worker": "h1:1"}, TypeError),
        ({"worker": 3}, TypeError),
        ({"worker": [3]}, TypeError),
        ({"worker": {"one": "h1:1"}}, ValueError),
    ],
)
def test_malformed_cluster_is_refused(cluster: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        ClusterSpec(cluster)


@pytest.mark.parametrize(
    ("cluster", "task", "message"),
    [
        ({"master": ["a"]}, (None, None), "not 'master'"),
        ({"chief": ["a", "b"]}, (None, None), "at most one chief"),
        ({"evaluator": ["a", "b"]}, (None, None), "at most one evaluator"),
        ({"worker": ["a"]}, ("ps", 0), "of type 'ps'"),
        ({"worker": ["a"]}, ("worker", 1), "worker 1 is not one of the 1 tasks"),
        ({"worker": ["a"]}, ("worker", None), "worker None"),
    ],
)
def test_cluster_that_no_strategy_could_use_is_refused(cluster: Any, task: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_cluster(ClusterSpec(cluster), *task)


def test_evaluators_lead_and_number_themselves() -> None:
    cluster = ClusterSpec(CLUSTER)
    assert is_chief(cluster, "evaluator", 3)
    assert id_in_cluster(cluster, "evaluator", 3) == 3
    assert worker_count(cluster, "evaluator") == 1
    with pytest.raises(ValueError, match="does not count"):
        worker_count(cluster, "ps")


def config(**entries: Any) -> TFConfigClusterResolver:
    return TFConfigClusterResolver(tf_config=json.dumps(entries))


def test_master_follows_the_rules_of_tf_config() -> None:
    task = {"type": "worker", "index": 0}
    assert config().master() == ""
    assert config(cluster={"worker": ["a:1"]}, task=task).master() == ""
    assert config(cluster=CLUSTER, task=task).master() == "h1:2"
    assert config(cluster=CLUSTER, task=task, rpc_layer="grpc").master() == "grpc://h1:2"
    assert config(cluster=CLUSTER, task=task, session_master="s:1").master() == "s:1"
    assert config(cluster=CLUSTER, task=task).master("worker", 1, "grpc") == "grpc://h2:3"
    with pytest.raises(ValueError, match="no task 7"):
        config(cluster=CLUSTER, task={"type": "worker", "index": 7}).master()


def test_arguments_override_tf_config() -> None:
    text = json.dumps({"cluster": CLUSTER, "task": {"type": "worker", "index": 0}})
    resolver = TFConfigClusterResolver("chief", 0, "grpc", tf_config=text)
    assert (resolver.task_type, resolver.task_id, resolver.master()) == ("chief", 0, "grpc://h0:1")
    assert (resolver.is_chief, resolver.id_in_cluster, resolver.worker_count) == (True, 0, 3)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"task": {"index": "one"}}'])
def test_malformed_tf_config_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"Expecting|must be a JSON object|is a number"):
        TFConfigClusterResolver(tf_config=text)


def test_tf_config_of_the_environment_is_asked_for_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TF_CONFIG", raising=False)
    alone = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    assert (alone.task_type, alone.task_id, bool(alone.cluster_spec())) == (None, None, False)
    assert (alone.is_chief, alone.id_in_cluster, alone.worker_count) == (True, 0, 1)
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": CLUSTER, "task": {"type": "worker", "index": "1"}}))
    worker = cluster_resolver.TFConfigClusterResolver()
    assert (worker.id_in_cluster, worker.master(), worker.num_accelerators()) == (2, "h2:3", {})


def test_simple_resolver_says_what_it_was_told() -> None:
    resolver = SimpleClusterResolver(
        ClusterSpec(CLUSTER), master="m:1", task_type="worker", task_id=0, environment="test", rpc_layer="grpc"
    )
    assert (resolver.master(), resolver.environment, resolver.id_in_cluster) == ("grpc://m:1", "test", 1)
    assert resolver.master("worker", 1) == "grpc://h2:3"
    with pytest.raises(TypeError, match="ClusterSpec"):
        SimpleClusterResolver(CLUSTER)  # type: ignore[arg-type]  # the mistake under test


@pytest.mark.parametrize(
    "make",
    [
        lambda: partitioners.FixedShardsPartitioner(0),
        lambda: partitioners.MinSizePartitioner(0),
        lambda: partitioners.MinSizePartitioner(max_shards=0),
        lambda: partitioners.MaxSizePartitioner(0),
        lambda: partitioners.MaxSizePartitioner(1, bytes_per_string=-1),
    ],
)
def test_partitioner_of_no_size_is_refused(make: Any) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        make()


def test_partitioners_take_scalars_other_axes_and_strings() -> None:
    assert partitioners.FixedShardsPartitioner(2)([], np.float32) == []
    assert partitioners.MaxSizePartitioner(4)([], np.float32) == []
    assert partitioners.MinSizePartitioner(4, max_shards=3)([2, 6], np.float32, axis=1) == [1, 3]
    assert partitioners.MaxSizePartitioner(32)([6, 1], np.dtype("U5")) == [3, 1]
