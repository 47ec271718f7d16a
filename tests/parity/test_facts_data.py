"""Facts of topics ``data``, ``partition`` and ``cluster``: what replicas read, how variables are cut, who is who."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import distopt as tf
from distopt.comm.communicator import Communicator, Hosting
from distopt.data import batch_sizes_for_worker
from distopt.data.experimental import AutoShardPolicy
from distopt.distribute import InputContext, MirroredStrategy, MultiWorkerMirroredStrategy, Strategy
from distopt.distribute.cluster import ClusterSpec, id_in_cluster, is_chief, worker_count
from distopt.distribute.cluster_resolver import TFConfigClusterResolver
from distopt.distribute.experimental import partitioners
from distopt.testing import run_replicas
from tests.parity.facts import fact


def numbers(count: int, batch: int, policy: AutoShardPolicy | None = None, **options: bool) -> tf.data.Dataset:
    dataset = tf.data.Dataset.range(count).batch(batch, **options)
    if policy is None:
        return dataset
    wanted = tf.data.Options()
    wanted.experimental_distribute.auto_shard_policy = policy
    return dataset.with_options(wanted)


def steps(strategy: Strategy, dataset: Any) -> list[Any]:
    """Return what each replica of this process gets, step by step."""
    distributed = strategy.experimental_distribute_dataset(dataset)
    return [[part.tolist() for part in strategy.experimental_local_results(step)] for step in distributed]


def over(replicas: int, dataset: Any) -> list[Any]:
    return steps(MirroredStrategy(replicas), dataset)


def test_global_batches_are_cut_into_chunks_of_the_size_rounded_up() -> None:
    assert [over(2, numbers(10, 4)), over(2, numbers(9, 4))] == fact("F114")["result"]
    dropped = numbers(10, 4, drop_remainder=True)
    assert [over(2, dropped), over(2, numbers(7, 5)), over(3, numbers(10, 8))] == fact("F116")["result"]


def test_policy_off_cuts_by_the_nominal_batch_so_that_a_short_one_fills_the_first_replicas() -> None:
    assert over(2, numbers(10, 4, AutoShardPolicy.OFF)) == fact("F115")["result"]
    off = numbers(10, 10, AutoShardPolicy.OFF)
    assert [over(4, numbers(10, 10)), over(4, off), over(4, numbers(9, 9))] == fact("F118")["result"]


@pytest.mark.parametrize("policy", ["DATA", "AUTO", "OFF"])
def test_two_workers_of_one_replica_each_read_what_the_policy_says(policy: str) -> None:
    def worker(comm: Communicator) -> list[Any]:
        strategy = MultiWorkerMirroredStrategy(communicator=comm)
        return [chunk for (chunk,) in steps(strategy, numbers(10, 4, AutoShardPolicy[policy]))]

    assert run_replicas(worker, 2) == fact("F117")["result"][policy]


def test_chunk_j_is_that_of_replica_j_which_is_hosted_as_the_reference_does_if_replicas_alternate() -> None:
    """The reference gives chunk j to worker ``j mod W``: here, the worker that hosts replicas w, w + W, ..."""

    def worker(comm: Communicator) -> list[Any]:
        strategy = Strategy(Hosting(4, ((0, 2), (1, 3))), comm.rank, comm)
        return steps(strategy, numbers(8, 8))[0]

    assert run_replicas(worker, 2) == fact("F119")["result"]


def test_sizes_by_which_workers_cut_their_streams() -> None:
    cases = [(8, 2, 1), (7, 2, 1), (5, 2, 2), (3, 2, 2), (10, 3, 1)]
    assert [
        [batch_sizes_for_worker(batch, workers, local, index) for index in range(workers)]
        for batch, workers, local in cases
    ] == fact("F120")["result"]


def test_batch_of_a_replica_is_the_global_one_divided_evenly() -> None:
    context = InputContext(num_replicas_in_sync=2)
    size, error = fact("F121")["result"]
    assert context.get_per_replica_batch_size(8) == size
    with pytest.raises(ValueError, match="5 cannot be divided over 2") as caught:
        context.get_per_replica_batch_size(5)
    assert type(caught.value).__name__ == error


def test_partitioners_cut_along_the_first_axis() -> None:
    fixed = partitioners.FixedShardsPartitioner(4)
    found: list[Any] = [fixed([10, 3], np.float32), fixed([3, 3], np.float32)]
    found.append([partitioners.MinSizePartitioner(4, max_shards=n)([6, 1], np.float32) for n in (1, 2, 4, 10)])
    found.append([partitioners.MaxSizePartitioner(size)([6, 1], np.float32) for size in (1, 4, 8, 16, 24)])
    found.append(partitioners.MaxSizePartitioner(4, max_shards=2)([6, 1], np.float32))
    assert found == fact("F122")["result"]


CLUSTER = {"chief": ["h0:1"], "worker": ["h1:2", "h2:3"], "ps": ["h3:4"]}


def test_tf_config_names_the_cluster_and_this_task() -> None:
    def resolver(task: Any) -> TFConfigClusterResolver:
        config = {"cluster": CLUSTER} if task is None else {"cluster": CLUSTER, "task": task}
        return TFConfigClusterResolver(tf_config=json.dumps(config))

    known, index, no_task, malformed = fact("F133")["result"]
    worker = resolver({"type": "worker", "index": 1})
    assert [worker.task_type, worker.task_id, worker.master()] == known
    assert resolver({"type": "worker", "index": "1"}).task_id == index
    with pytest.raises(ValueError, match="which task") as caught:
        resolver(None).master()
    assert type(caught.value).__name__ == no_task
    with pytest.raises(ValueError, match="Expecting") as caught:
        TFConfigClusterResolver(tf_config="{")
    assert type(caught.value).__name__ == malformed


def test_chief_and_workers_are_numbered() -> None:
    cluster, workers = ClusterSpec(CLUSTER), ClusterSpec({"worker": CLUSTER["worker"]})
    tasks = [("chief", 0), ("worker", 0), ("worker", 1)]
    found: list[Any] = [[is_chief(cluster, *task) for task in tasks], [id_in_cluster(cluster, *task) for task in tasks]]
    found.append(worker_count(cluster, "worker"))
    with pytest.raises(ValueError, match="'ps'") as caught:
        id_in_cluster(cluster, "ps", 0)
    found.append(type(caught.value).__name__)
    assert [*found, [is_chief(workers, "worker", index) for index in (0, 1)]] == fact("F134")["result"]
