"""What user functions are told about the replicas that they make data or values for, and how datasets are divided.

Source: ``tf.distribute.InputContext``, ``InputOptions``, ``ValueContext``, ``tf.data.experimental.AutoShardPolicy``.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class AutoShardPolicy(enum.IntEnum):
    """How a dataset of global batches is divided; see :mod:`distopt.distribute.datasets`."""

    OFF = -1
    AUTO = 0
    FILE = 1
    DATA = 2
    HINT = 3


class InputReplicationMode(enum.Enum):
    """For what ``distribute_datasets_from_function`` calls its function once."""

    PER_WORKER = "PER_WORKER"
    """For each process that hosts replicas."""
    PER_REPLICA = "PER_REPLICA"
    """For each replica, so the data do not depend on the number of processes; offered by every strategy here."""


@dataclass(frozen=True)
class InputOptions:
    """How a dataset is read under a strategy; what is about devices and buffers has no effect."""

    experimental_fetch_to_device: bool | None = None
    experimental_replication_mode: InputReplicationMode = InputReplicationMode.PER_WORKER
    experimental_place_dataset_on_device: bool = False
    experimental_per_replica_buffer_size: int = 1


@dataclass(frozen=True)
class InputContext:
    """What a function that makes a dataset has to know: which of how many pipelines it makes, for how many replicas."""

    num_input_pipelines: int = 1
    input_pipeline_id: int = 0
    num_replicas_in_sync: int = 1

    def get_per_replica_batch_size(self, global_batch_size: int) -> int:
        """Return ``global_batch_size / num_replicas_in_sync``.

        Raises: ValueError if that is not a whole number.

        >>> InputContext(num_replicas_in_sync=2).get_per_replica_batch_size(8)
        4
        """
        if global_batch_size % self.num_replicas_in_sync:
            raise ValueError(
                f"a global batch of {global_batch_size} cannot be divided over {self.num_replicas_in_sync} replicas"
            )
        return global_batch_size // self.num_replicas_in_sync


@dataclass(frozen=True)
class ValueContext:
    """For which of how many replicas a function makes a value."""

    replica_id_in_sync_group: int = 0
    num_replicas_in_sync: int = 1
