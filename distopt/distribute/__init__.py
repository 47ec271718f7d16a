"""Strategies: how replicas make steps together. Names follow ``tf.distribute``."""

from __future__ import annotations

from distopt.distribute import cluster_resolver, experimental
from distopt.distribute.checks import Checks
from distopt.distribute.cross_device_ops import (
    CrossDeviceOps,
    HierarchicalCopyAllReduce,
    NcclAllReduce,
    ReductionToOneDevice,
)
from distopt.distribute.datasets import DistributedDataset, DistributedIterator
from distopt.distribute.inputs import InputContext, InputOptions, InputReplicationMode
from distopt.distribute.mirrored import DefaultStrategy, MirroredStrategy
from distopt.distribute.multi_worker import (
    CommunicationImplementation,
    CommunicationOptions,
    MultiWorkerMirroredStrategy,
)
from distopt.distribute.one_place import OneDeviceStrategy
from distopt.distribute.parameter_server import SyncParameterServerStrategy
from distopt.distribute.receipts import Receipt
from distopt.distribute.strategy import Strategy
from distopt.distribute.strategy_extended import StrategyExtended
from distopt.distribute.values import DistributedValues, Mirrored, PerReplica
from distopt.replica_context import (
    ReplicaContext,
    experimental_set_strategy,
    get_replica_context,
    get_strategy,
    has_strategy,
    in_cross_replica_context,
)
from distopt.types import ReduceOp

__all__ = [
    "Checks",
    "CommunicationImplementation",
    "CommunicationOptions",
    "CrossDeviceOps",
    "DefaultStrategy",
    "DistributedDataset",
    "DistributedIterator",
    "DistributedValues",
    "HierarchicalCopyAllReduce",
    "InputContext",
    "InputOptions",
    "InputReplicationMode",
    "Mirrored",
    "MirroredStrategy",
    "MultiWorkerMirroredStrategy",
    "NcclAllReduce",
    "OneDeviceStrategy",
    "PerReplica",
    "Receipt",
    "ReduceOp",
    "ReductionToOneDevice",
    "ReplicaContext",
    "Strategy",
    "StrategyExtended",
    "SyncParameterServerStrategy",
    "cluster_resolver",
    "experimental",
    "experimental_set_strategy",
    "get_replica_context",
    "get_strategy",
    "has_strategy",
    "in_cross_replica_context",
]
