"""Names that ``tf.distribute.experimental`` has."""

from __future__ import annotations

from distopt.distribute import partitioners
from distopt.distribute.inputs import ValueContext
from distopt.distribute.multi_worker import (
    CommunicationImplementation,
    CommunicationOptions,
    MultiWorkerMirroredStrategy,
)
from distopt.distribute.one_place import CentralStorageStrategy

CollectiveHints = CommunicationOptions
CollectiveCommunication = CommunicationImplementation

__all__ = [
    "CentralStorageStrategy",
    "CollectiveCommunication",
    "CollectiveHints",
    "CommunicationImplementation",
    "CommunicationOptions",
    "MultiWorkerMirroredStrategy",
    "ValueContext",
    "partitioners",
]
