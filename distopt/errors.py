"""Every error that distopt raises on purpose.

::

    DistoptError
    ├── ConfigError (ValueError)              a key, value or combination in a job's configuration
    ├── CheckpointError                       a checkpoint that is absent, damaged or of another job
    ├── ReplicaContextError (RuntimeError)    a call from the wrong side of ``strategy.run``
    ├── PlacementError (ValueError)           a placement that cannot do what the job asks of it
    │   └── UnaggregatedGradientsError (NotImplementedError)  own updates, where replicas share a value
    ├── TapeError (RuntimeError)              misuse of a gradient tape
    ├── UninitializedVariableError (RuntimeError)  a variable of a graph without a value in this session
    ├── NotOfferedError (AttributeError)      a name of TensorFlow that is not offered; says what to use
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
    ├── JobAbortedError                       another process ended the job; carries its reason
    ├── SharedMemoryError (MemoryError)       memory that the processes of a host share cannot be had
    └── MistakeError                          a use that would have given wrong numbers; see docs/mistakes.md
        ├── OutsideReplicaError (ReplicaContextError)    ``apply_gradients`` and the like outside of ``strategy.run``
        ├── InsideReplicaError (ReplicaContextError)     ``strategy.reduce`` and the like inside of it
        ├── UnequalMergeCallsError (ReplicaContextError) replicas meet different numbers of times
        ├── MergeOrderError (ReplicaContextError)        replicas meet for different things
        ├── DifferentVariablesError (ValueError)         replicas apply gradients to different variables
        ├── VariableOrderError (ValueError)              ... to the same ones in another order
        ├── MissingGradientError (ValueError)            ... which some of them have no gradient for
        ├── VariablePerReplicaError (ValueError)         ... of their own, or make different ones
        ├── UnequalShapesError (ValueError)              replicas reduce values of different shapes
        ├── UnequalDtypesError (ValueError)              ... of different dtypes
        ├── UnequalReduceOpsError (ValueError)           ... by different operations
        ├── GradientShapeError (ValueError)              a gradient that does not fit its variable
        ├── GradientDtypeError (ValueError)              ... in its dtype
        ├── LocalMeanLossError (ValueError)              a loss that was averaged over a replica's own examples
        ├── NumberToSumVariableError (ValueError)        a number assigned on every replica to a SUM variable
        ├── CountedManyTimesError (ValueError)           a sum over replicas of what is no value of a replica
        ├── PerReplicaAsTensorError (ValueError)         one value a replica used as if it were one value
        ├── VariableListChangedError (PlacementError)    other variables than those that the servers own
        ├── TapeReusedError (TapeError)                  gradients asked of a tape that has given them
        ├── ReducedByHandError (ValueError)              gradients that were reduced by hand are aggregated again
        ├── AggregatedTwiceError (ValueError)            ... or by a hook
        ├── NeverReducedError (ValueError)               replicas apply unequal gradients that nobody reduces
        ├── MeanTakenTwiceError (ValueError)             the mean over replicas of what was averaged already
        ├── AppliedTwiceError (ValueError)               the same gradient in two steps
        ├── NonFiniteGradientError (ArithmeticError)     a gradient that is infinite or not a number
        ├── UnequalHypersError (ValueError)              processes have different learning rates
        ├── UnequalStepsError (ValueError)               processes are at different steps
        ├── UnequalValuesError (ValueError)              processes have different values of a variable
        ├── TwoStrategiesError (ValueError)              one optimizer under two strategies
        └── ForeignVariableError (ValueError)            a variable of another strategy

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


class UnaggregatedGradientsError(PlacementError, NotImplementedError):
    """Gradients that were not aggregated would give each replica a value of its own where there is one for all."""


class TapeError(DistoptError, RuntimeError):
    """A gradient tape was used in a way that would give wrong gradients."""


class UninitializedVariableError(DistoptError, RuntimeError):
    """A variable of a graph was used in a session that has not given it a value."""


class NotOfferedError(DistoptError, AttributeError):
    """A name of TensorFlow that distopt does not offer; the message says what to use instead."""


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


class SharedMemoryError(DistoptError, MemoryError):
    """The processes of a host cannot get, or pass each other, the memory that they are to share."""


class MistakeError(DistoptError):
    """A use that would have given wrong numbers, found before anything changed; docs/mistakes.md lists them all."""


class OutsideReplicaError(MistakeError, ReplicaContextError):
    """What only a replica can do was called outside of ``strategy.run``."""


class InsideReplicaError(MistakeError, ReplicaContextError):
    """What is done once for all replicas was called inside one of them."""


class UnequalMergeCallsError(MistakeError, ReplicaContextError):
    """Some replicas wait for the others in a merge call or reduction that those do not make."""


class MergeOrderError(MistakeError, ReplicaContextError):
    """Replicas, or processes, meet for different things: their calls are not the same, or not in the same order."""


class DifferentVariablesError(MistakeError, ValueError):
    """Replicas apply gradients to different variables."""


class VariableOrderError(MistakeError, ValueError):
    """Replicas apply gradients to the same variables, listed in different orders."""


class MissingGradientError(MistakeError, ValueError):
    """Some replicas have no gradient for a variable that others have one for."""


class VariablePerReplicaError(MistakeError, ValueError):
    """Replicas have, or make, different variables where they should share one."""


class UnequalShapesError(MistakeError, ValueError):
    """Replicas reduce values of different shapes with each other."""


class UnequalDtypesError(MistakeError, ValueError):
    """Replicas reduce values of different dtypes with each other."""


class UnequalReduceOpsError(MistakeError, ValueError):
    """Replicas reduce with each other by different operations."""


class GradientShapeError(MistakeError, ValueError):
    """A gradient has not its variable's shape, or a row that the variable does not have."""


class GradientDtypeError(MistakeError, ValueError):
    """A gradient has not its variable's dtype."""


class LocalMeanLossError(MistakeError, ValueError):
    """A loss was divided by the number of a replica's own examples, and its gradients are then summed."""


class NumberToSumVariableError(MistakeError, ValueError):
    """A Python number was assigned on every replica to a variable whose values are summed."""


class CountedManyTimesError(MistakeError, ValueError):
    """A value that is not one a replica was to be summed over replicas."""


class PerReplicaAsTensorError(MistakeError, ValueError):
    """One value a replica was used as if it were one value."""


class VariableListChangedError(MistakeError, PlacementError):
    """The variables of an apply call are not those that the servers own."""


class TapeReusedError(MistakeError, TapeError):
    """A tape that is not persistent was asked for gradients a second time."""


class ReducedByHandError(MistakeError, ValueError):
    """Gradients that a reduction returned are given to ``apply_gradients``, which would reduce them once more."""


class AggregatedTwiceError(MistakeError, ValueError):
    """Gradients that one hook has reduced are given to an aggregator."""


class NeverReducedError(MistakeError, ValueError):
    """Replicas apply unequal gradients to their copies of a variable, and nobody has reduced them."""


class MeanTakenTwiceError(MistakeError, ValueError):
    """Gradients of a loss that was divided by the global batch are divided by the number of replicas as well."""


class AppliedTwiceError(MistakeError, ValueError):
    """The same gradient is applied in two steps."""


class NonFiniteGradientError(MistakeError, ArithmeticError):
    """A gradient is infinite or not a number; names variable, replica and step."""


class UnequalHypersError(MistakeError, ValueError):
    """The processes of a step have different hypers, such as the learning rate.

    ``of_digests``: ``"hypers"`` or ``"settings"``, of which only digests were compared, so that whoever knows the
    process's own values has to add them; else empty.
    """

    def __init__(self, message: str, of_digests: str = "") -> None:
        super().__init__(message)
        self.of_digests = of_digests


class UnequalStepsError(MistakeError, ValueError):
    """The optimizers of the processes of a step have made different numbers of steps."""


class UnequalValuesError(MistakeError, ValueError):
    """The processes of a job begin to train a variable from different values."""


class TwoStrategiesError(MistakeError, ValueError):
    """An optimizer that made steps under one strategy is used under another."""


class ForeignVariableError(MistakeError, ValueError):
    """A variable was created under another strategy than the one that is to update it."""
