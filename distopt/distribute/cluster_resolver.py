"""What a process knows of the cluster that it is part of.

The environment variable ``TF_CONFIG`` is read by :mod:`distopt.runtime` alone; the package's entry point hands over how
(:func:`read_tf_config_with`), and here it is only parsed.

Source: ``tf.distribute.cluster_resolver``; the format of ``TF_CONFIG``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from distopt.distribute.cluster import ClusterSpec, Tasks, id_in_cluster, is_chief, worker_count

__all__ = ["ClusterResolver", "SimpleClusterResolver", "TFConfigClusterResolver", "read_tf_config_with"]

_readers: list[Callable[[], str | None]] = []


def read_tf_config_with(reader: Callable[[], str | None]) -> None:
    """Set how :class:`TFConfigClusterResolver` finds the text of ``TF_CONFIG`` where it is given none."""
    _readers[:] = [reader]


class ClusterResolver:
    """A cluster, and which of its tasks this process is."""

    def __init__(self, task_type: str | None = None, task_id: int | None = None, rpc_layer: str | None = None) -> None:
        self.task_type = task_type
        self.task_id = task_id
        self.rpc_layer = rpc_layer

    def cluster_spec(self) -> ClusterSpec:
        """Return the cluster, empty for a process on its own."""
        raise NotImplementedError(f"{type(self).__name__} knows no cluster")

    def master(self, task_type: str | None = None, task_id: int | None = None, rpc_layer: str | None = None) -> str:
        """Return the address of a task, by default this one: ``[rpc_layer://]address``; empty if none is known."""
        kind, index = self.task_type if task_type is None else task_type, self.task_id if task_id is None else task_id
        if kind is None or index is None:
            return ""
        layer = self.rpc_layer if rpc_layer is None else rpc_layer
        address = self.cluster_spec().task_address(kind, index)
        return f"{layer}://{address}" if layer else address

    def num_accelerators(self, *args: Any, **kwargs: Any) -> dict[str, int]:  # noqa: ARG002
        """Return no accelerators: everything runs on processors."""
        return {}

    @property
    def environment(self) -> str:
        """What kind of environment the cluster runs in; empty unless told."""
        return ""

    @property
    def is_chief(self) -> bool:
        """Whether this task leads; a process on its own does."""
        cluster = self.cluster_spec()
        return not cluster or is_chief(cluster, self.task_type, self.task_id)

    @property
    def id_in_cluster(self) -> int:
        """This task's number among those that train; 0 for a process on its own.

        Raises: ValueError for a parameter server.
        """
        cluster = self.cluster_spec()
        if not cluster:
            return 0
        if self.task_type is None or self.task_id is None:
            raise ValueError(f"a cluster of {cluster.jobs} is known, but not which of its tasks this process is")
        return id_in_cluster(cluster, self.task_type, self.task_id)

    @property
    def worker_count(self) -> int:
        """How many tasks train together; 1 for a process on its own."""
        cluster = self.cluster_spec()
        return worker_count(cluster, self.task_type) if cluster else 1


class SimpleClusterResolver(ClusterResolver):
    """What it is told.

    Raises: TypeError if ``cluster_spec`` is not a ClusterSpec.
    """

    def __init__(
        self,
        cluster_spec: ClusterSpec,
        master: str = "",
        task_type: str | None = None,
        task_id: int | None = None,
        environment: str = "",
        num_accelerators: dict[str, int] | None = None,
        rpc_layer: str | None = None,
    ) -> None:
        if not isinstance(cluster_spec, ClusterSpec):
            raise TypeError(f"cluster_spec must be a ClusterSpec, not a {type(cluster_spec).__name__}")
        super().__init__(task_type, task_id, rpc_layer)
        self._cluster_spec = cluster_spec
        self._master = master
        self._environment = environment
        self._num_accelerators = num_accelerators or {}

    def cluster_spec(self) -> ClusterSpec:
        """Return the cluster that it was given."""
        return self._cluster_spec

    def master(self, task_type: str | None = None, task_id: int | None = None, rpc_layer: str | None = None) -> str:
        """Return the address of a task; without arguments, the ``master`` that it was given."""
        if task_type is not None and task_id is not None:
            return super().master(task_type, task_id, rpc_layer)
        layer = self.rpc_layer if rpc_layer is None else rpc_layer
        return f"{layer}://{self._master}" if layer and self._master else self._master

    def num_accelerators(self, *args: Any, **kwargs: Any) -> dict[str, int]:  # noqa: ARG002
        """Return what it was told."""
        return dict(self._num_accelerators)

    @property
    def environment(self) -> str:
        """What it was told."""
        return self._environment


class TFConfigClusterResolver(ClusterResolver):
    """What the environment variable ``TF_CONFIG`` says.

    A JSON object, all of whose keys are optional: ``{"cluster": {job: [address, ...]}, "task": {"type": ..., "index":
    ...}, "rpc_layer": ..., "session_master": ...}``. Arguments override it. ``tf_config`` is its text, where that comes
    from somewhere else than the environment.

    Raises: json.JSONDecodeError (a ValueError) for text that is not JSON; ValueError for JSON that is no object, or an
    index that is no number; as ClusterSpec.

    >>> resolver = TFConfigClusterResolver(
    ...     tf_config='{"cluster": {"worker": ["h1:1", "h2:1"]}, "task": {"type": "worker", "index": "1"}}')
    >>> resolver.task_type, resolver.task_id, resolver.master(), resolver.is_chief
    ('worker', 1, 'h2:1', False)
    """

    def __init__(
        self,
        task_type: str | None = None,
        task_id: int | None = None,
        rpc_layer: str | None = None,
        environment: str | None = None,
        *,
        tf_config: str | None = None,
    ) -> None:
        self._config = _parsed(_text() if tf_config is None else tf_config)
        task = self._config.get("task") or {}
        index = task.get("index") if task_id is None else task_id
        super().__init__(
            task.get("type") if task_type is None else task_type,
            None if index is None else _number(index),
            self._config.get("rpc_layer") if rpc_layer is None else rpc_layer,
        )
        self._environment = environment if environment is not None else str(self._config.get("environment", ""))
        self._cluster_spec = ClusterSpec(_cluster_of(self._config))

    def cluster_spec(self) -> ClusterSpec:
        """Return the cluster, empty where ``TF_CONFIG`` has none."""
        return self._cluster_spec

    def master(self, task_type: str | None = None, task_id: int | None = None, rpc_layer: str | None = None) -> str:
        """Return the address of a task, by default this one.

        ``session_master`` where it is given; empty for an empty cluster or one of a single task.

        Raises: ValueError if there is no such task, or it is not known which one this is.
        """
        session_master = self._config.get("session_master")
        if session_master is not None:
            return str(session_master)
        cluster = self._cluster_spec
        if sum(cluster.num_tasks(job) for job in cluster.jobs) <= 1:
            return ""
        kind, index = self.task_type if task_type is None else task_type, self.task_id if task_id is None else task_id
        if kind is None or index is None:
            raise ValueError(f"TF_CONFIG has a cluster of {cluster.jobs}, but does not say which task this process is")
        return super().master(kind, index, rpc_layer)

    @property
    def environment(self) -> str:
        """What kind of environment the cluster runs in; empty unless told."""
        return self._environment


def _text() -> str:
    text = _readers[0]() if _readers else None
    return "{}" if text is None else text


def _parsed(text: str) -> dict[str, Any]:
    config = json.loads(text)
    if not isinstance(config, dict):
        raise ValueError(f"TF_CONFIG must be a JSON object, not {text!r}")
    return config


def _cluster_of(config: dict[str, Any]) -> dict[str, Tasks]:
    return config.get("cluster") or {}


def _number(index: Any) -> int:
    try:
        return int(index)
    except (TypeError, ValueError):
        raise ValueError(f"the index of a task is a number, not {index!r}") from None
