"""Strategies: how replicas make steps together. Names follow ``tf.distribute``."""

from __future__ import annotations

from distopt.distribute.checks import Checks
from distopt.distribute.mirrored import DefaultStrategy, MirroredStrategy
from distopt.distribute.multi_worker import CommunicationOptions, MultiWorkerMirroredStrategy
from distopt.distribute.parameter_server import SyncParameterServerStrategy
from distopt.distribute.receipts import Receipt
from distopt.distribute.strategy import Strategy
from distopt.distribute.values import DistributedValues, Mirrored, PerReplica
from distopt.replica_context import (
    ReplicaContext,
    get_replica_context,
    get_strategy,
    has_strategy,
    in_cross_replica_context,
)
from distopt.types import ReduceOp

__all__ = [
    "Checks",
    "CommunicationOptions",
    "DefaultStrategy",
    "DistributedValues",
    "Mirrored",
    "MirroredStrategy",
    "MultiWorkerMirroredStrategy",
    "PerReplica",
    "Receipt",
    "ReduceOp",
    "ReplicaContext",
    "Strategy",
    "SyncParameterServerStrategy",
    "get_replica_context",
    "get_strategy",
    "has_strategy",
    "in_cross_replica_context",
]
