"""Every error that distopt raises on purpose.

::

    DistoptError
    ├── ConfigError (ValueError)              a key, value or combination in a job's configuration
    ├── CheckpointError                       a checkpoint that is absent, damaged or of another job
    ├── ReplicaContextError (RuntimeError)    a call from the wrong side of ``strategy.run``
    ├── PlacementError (ValueError)           a placement that cannot do what the job asks of it
    ├── TapeError (RuntimeError)              misuse of a gradient tape
    ├── ReplicaError                          the user's code failed on one replica
    ├── MissingDependencyError (ModuleNotFoundError)  an optional package is not installed; names the extra with it
    ├── ProtocolError
    │   ├── LocalProtocolError                we broke the protocol
    │   └── RemoteProtocolError               the other side did
    │       ├── StaleGradientError
    │       └── NondeterministicReplicaError
    ├── ManifestMismatchError                 processes that do not belong to one job
    ├── EndpointError                         an address that cannot be bound or reached, a missing MPI
    ├── PeerLostError                         a process that is gone or silent
    ├── CollectiveTimeoutError (TimeoutError) a wait that ran out
    └── JobAbortedError                       another process ended the job; carries its reason

A caller's wrong argument is a plain ``ValueError`` or ``TypeError``, raised before any state changes.
"""

from __future__ import annotations


class DistoptError(Exception):
    """Base of all errors of this package."""


class ConfigError(DistoptError, ValueError):
    """A configuration was refused; the message names the key, the value and what is allowed."""


class CheckpointError(DistoptError):
    """A checkpoint is absent, damaged, or belongs to another job."""


class ReplicaContextError(DistoptError, RuntimeError):
    """A call that needs a replica context was made outside of one, or the other way round."""


class PlacementError(DistoptError, ValueError):
    """The chosen placement cannot run what the job asks for."""


class TapeError(DistoptError, RuntimeError):
    """A gradient tape was used in a way that would give wrong gradients."""


class ReplicaError(DistoptError):
    """The user's code failed on one replica; the cause is chained."""


class MissingDependencyError(DistoptError, ModuleNotFoundError):
    """An optional package is not installed; the message names the extra to install."""


class ProtocolError(DistoptError):
    """A message or a move that the protocol does not allow."""


class LocalProtocolError(ProtocolError):
    """We were about to break the protocol."""


class RemoteProtocolError(ProtocolError):
    """The other side broke the protocol."""


class StaleGradientError(RemoteProtocolError):
    """A contribution belongs to a round that is over."""


class NondeterministicReplicaError(RemoteProtocolError):
    """Two workers computed the same replicas of the same step with different bits."""


class ManifestMismatchError(DistoptError):
    """Processes that were started with different jobs, variables or numerics."""


class EndpointError(DistoptError):
    """An address cannot be bound or reached, or the library for a transport is missing."""


class PeerLostError(DistoptError):
    """A process of the job is gone, or was silent for longer than allowed."""


class CollectiveTimeoutError(DistoptError, TimeoutError):
    """A wait for other processes reached its limit."""


class JobAbortedError(DistoptError):
    """Another process ended the job; the message is its reason."""
