"""Which processes a cluster has: jobs, their tasks and addresses, and who is the chief.

Source: ``tf.train.ClusterSpec``, and the rules by which TensorFlow's multi-worker strategies number tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

Tasks: TypeAlias = "Sequence[str] | Mapping[int, str]"

_JOBS = ("chief", "worker", "ps", "evaluator")
_AT_MOST_ONE = ("chief", "evaluator")


class ClusterSpec:
    """Jobs, each with tasks, each with an address; ``cluster`` is a dictionary of them, or another ClusterSpec.

    The tasks of a job are a list of addresses, or a dictionary from task index to address.

    Raises: TypeError for anything else, and for an address that is no string; ValueError for an index that is none.

    >>> spec = ClusterSpec({"worker": ["h1:2222", "h2:2222"], "ps": {3: "h3:2222"}})
    >>> spec.jobs, spec.num_tasks("worker"), spec.task_address("ps", 3)
    (['ps', 'worker'], 2, 'h3:2222')
    """

    def __init__(self, cluster: Mapping[str, Tasks] | ClusterSpec) -> None:
        if isinstance(cluster, ClusterSpec):
            cluster = cluster.as_dict()
        if not isinstance(cluster, Mapping):
            raise TypeError(f"a cluster is a dictionary of jobs or a ClusterSpec, not a {type(cluster).__name__}")
        self._tasks = {str(job): _tasks(str(job), tasks) for job, tasks in cluster.items()}

    @property
    def jobs(self) -> list[str]:
        """The names of the jobs, sorted."""
        return sorted(self._tasks)

    def num_tasks(self, job_name: str) -> int:
        """Return the number of tasks of a job; ValueError if there is no such job."""
        return len(self._job(job_name))

    def task_indices(self, job_name: str) -> list[int]:
        """Return the indices of a job's tasks, sorted; ValueError if there is no such job."""
        return sorted(self._job(job_name))

    def task_address(self, job_name: str, task_index: int) -> str:
        """Return the address of one task.

        Raises: ValueError if there is no such job or task.
        """
        tasks = self._job(job_name)
        if task_index not in tasks:
            raise ValueError(f"job {job_name!r} has the tasks {sorted(tasks)}, and no task {task_index}")
        return tasks[task_index]

    def job_tasks(self, job_name: str) -> list[str | None]:
        """Return the addresses of a job by index, None where one is missing.

        Raises: ValueError if there is no such job.
        """
        tasks = self._job(job_name)
        return [tasks.get(index) for index in range(max(tasks, default=-1) + 1)]

    def as_dict(self) -> dict[str, list[str] | dict[int, str]]:
        """Return the jobs as dictionary; tasks are a list, or a dictionary where indices are missing."""
        return {
            job: [tasks[i] for i in range(len(tasks))] if set(tasks) == set(range(len(tasks))) else dict(tasks)
            for job, tasks in self._tasks.items()
        }

    def _job(self, name: str) -> dict[int, str]:
        if name not in self._tasks:
            raise ValueError(f"the cluster has the jobs {self.jobs}, and no job {name!r}")
        return self._tasks[name]

    def __bool__(self) -> bool:
        return bool(self._tasks)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ClusterSpec) and self._tasks == other._tasks

    def __hash__(self) -> int:
        return hash(tuple(self.jobs))

    def __repr__(self) -> str:
        return f"ClusterSpec({self.as_dict()!r})"


def check_cluster(cluster: ClusterSpec, task_type: str | None, task_id: int | None) -> None:
    """Refuse a cluster, or a task of it, that no multi-worker strategy could be.

    Raises: ValueError for a job of another name, two chiefs or evaluators, a task type that is not in the cluster (an
    evaluator need not be), or an index that is not below the number of tasks.
    """
    for job in cluster.jobs:
        if job not in _JOBS:
            raise ValueError(f"a cluster has the jobs {', '.join(_JOBS)}, not {job!r}")
        if job in _AT_MOST_ONE and cluster.num_tasks(job) > 1:
            raise ValueError(f"a cluster has at most one {job}, not {cluster.num_tasks(job)}")
    if task_type is None:
        return
    if task_type not in cluster.jobs and task_type != "evaluator":
        raise ValueError(f"this task is of type {task_type!r}, but the cluster has the jobs {cluster.jobs}")
    if task_type in cluster.jobs and (task_id is None or not 0 <= task_id < cluster.num_tasks(task_type)):
        raise ValueError(f"{task_type} {task_id} is not one of the {cluster.num_tasks(task_type)} tasks of its job")


def is_chief(cluster: ClusterSpec, task_type: str | None, task_id: int | None) -> bool:
    """Return whether the task leads: the chief, an evaluator, or worker 0 where there is no chief.

    Raises: as :func:`check_cluster`.
    """
    check_cluster(cluster, task_type, task_id)
    if task_type in ("chief", "evaluator"):
        return True
    return "chief" not in cluster.jobs and task_type == "worker" and task_id == 0


def id_in_cluster(cluster: ClusterSpec, task_type: str, task_id: int) -> int:
    """Return the task's number among those that train: the chief 0, then the workers; an evaluator's own index.

    Raises: ValueError for a parameter server, which does not train; as :func:`check_cluster`.
    """
    check_cluster(cluster, task_type, task_id)
    if task_type == "chief":
        return 0
    if task_type == "worker":
        return task_id + ("chief" in cluster.jobs)
    if task_type == "evaluator":
        return task_id
    raise ValueError(f"a task of type {task_type!r} has no number among those that train")


def worker_count(cluster: ClusterSpec, task_type: str | None) -> int:
    """Return how many tasks train with one of ``task_type``: chief and workers, or the evaluators.

    Raises: ValueError for a parameter server.
    """
    if task_type == "evaluator":
        return cluster.num_tasks("evaluator") if "evaluator" in cluster.jobs else 1
    if task_type not in ("chief", "worker"):
        raise ValueError(f"a task of type {task_type!r} does not count workers")
    return sum(cluster.num_tasks(job) for job in ("chief", "worker") if job in cluster.jobs)


def _tasks(job: str, tasks: Any) -> dict[int, str]:
    if isinstance(tasks, Mapping):
        pairs = [(_index(job, index), address) for index, address in tasks.items()]
    elif isinstance(tasks, Sequence) and not isinstance(tasks, str):
        pairs = list(enumerate(tasks))
    else:
        raise TypeError(f"the tasks of job {job!r} are a list or a dictionary, not {tasks!r}")
    for _, address in pairs:
        if not isinstance(address, str):
            raise TypeError(f"an address of job {job!r} is a string, not {address!r}")
    return dict(pairs)


def _index(job: str, index: Any) -> int:
    try:
        return int(index)
    except (TypeError, ValueError):
        raise ValueError(f"the index of a task of job {job!r} is a number, not {index!r}") from None
