"""A job's configuration: one frozen struct a section of the TOML file.

``seed``, ``task``, ``data``, ``optimizer``, ``aggregation`` and ``strategy`` are the mathematics: they decide the bits
of the result (:func:`distopt.runtime.config_file.job_digest`). The others say where it runs and what is kept, and
change no bit.

A field's type carries its range, and its ``description`` the words that an error uses for what is allowed.
What fields say together is checked in :mod:`distopt.runtime.config_rules`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta, Struct, structs

from distopt.aggregation.named import AGGREGATORS, COMPRESSIONS

DeploymentName: TypeAlias = Literal["auto", "process", "mpi", "cluster"]
PlacementName: TypeAlias = Literal["auto", "replica", "sharded", "server"]
EngineName: TypeAlias = Literal["compiled", "numpy"]
LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]

Positive: TypeAlias = Annotated[int, Meta(ge=1)]
Count: TypeAlias = Annotated[int, Meta(ge=0)]
Seconds: TypeAlias = Annotated[float, Meta(gt=0, description="a number of seconds > 0")]
PositiveFloat: TypeAlias = Annotated[float, Meta(gt=0)]
NonNegative: TypeAlias = Annotated[float, Meta(ge=0)]
Decay: TypeAlias = Annotated[float, Meta(ge=0, lt=1)]
Name: TypeAlias = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        description="1 to 64 letters, digits, '.', '_' or '-', the first a letter or a digit",
    ),
]
_DOTTED = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*"
TaskName: TypeAlias = Annotated[
    str, Meta(pattern=rf"^(digits|{_DOTTED})$", description='"digits" or "package.module:Class"')
]
OPTIMIZERS = (
    "SGD", "Adam", "AdamW", "Adamax", "Nadam", "Adagrad", "Adadelta", "RMSprop", "Ftrl", "Lion", "Lamb", "Adafactor",
    "Muon",
)  # fmt: skip
OptimizerName: TypeAlias = Annotated[
    str,
    Meta(
        pattern=rf"^({'|'.join(OPTIMIZERS)}|{_DOTTED})$",
        description=", ".join(f'"{name}"' for name in OPTIMIZERS) + ' or "package.module:Class"',
    ),
]
AggregatorName: TypeAlias = Annotated[
    str,
    Meta(
        pattern=rf"^({'|'.join(AGGREGATORS)}|{_DOTTED})$",
        description=", ".join(f'"{name}"' for name in AGGREGATORS) + ' or "package.module:function"',
    ),
]
CompressionName: TypeAlias = Annotated[
    str,
    Meta(pattern=rf"^({'|'.join(COMPRESSIONS)})$", description=" or ".join(f'"{name}"' for name in COMPRESSIONS)),
]
FunctionName: TypeAlias = Annotated[str, Meta(pattern=rf"^{_DOTTED}$", description='"package.module:function"')]
Endpoint: TypeAlias = Annotated[
    str,
    Meta(pattern=r"^(tcp://[^\s/]+:[0-9]{1,5}|ipc://\S+)$", description='"tcp://HOST:PORT" (port 0: any free one)'),
]


class Section(Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all sections: immutable, by keyword only, and deaf to keys it does not know."""


class TaskConfig(Section, frozen=True, kw_only=True):
    """What is learned: a model, its loss and its data."""

    name: TaskName
    hidden: tuple[Positive, ...] = (256,)
    """Widths of the hidden layers."""
    options: dict[str, Any] = {}
    """Keyword arguments for a task of your own."""


class DataConfig(Section, frozen=True, kw_only=True):
    """How much of the data makes a step, and how often it is gone through."""

    global_batch_size: Positive
    """Samples a step, over all replicas."""
    epochs: Positive


class ExponentialDecay(Section, frozen=True, kw_only=True, tag_field="name", tag="ExponentialDecay"):
    """``learning_rate * decay_rate ** (step / decay_steps)``."""

    decay_steps: Positive
    decay_rate: PositiveFloat
    staircase: bool = False


class InverseTimeDecay(Section, frozen=True, kw_only=True, tag_field="name", tag="InverseTimeDecay"):
    """``learning_rate / (1 + decay_rate * step / decay_steps)``."""

    decay_steps: Positive
    decay_rate: NonNegative
    staircase: bool = False


class PolynomialDecay(Section, frozen=True, kw_only=True, tag_field="name", tag="PolynomialDecay"):
    """From ``learning_rate`` to ``end_learning_rate`` along ``(1 - step / decay_steps) ** power``."""

    decay_steps: Positive
    end_learning_rate: NonNegative = 0.0001
    power: PositiveFloat = 1.0
    cycle: bool = False


class CosineDecay(Section, frozen=True, kw_only=True, tag_field="name", tag="CosineDecay"):
    """From ``learning_rate`` to ``alpha * learning_rate`` along half a cosine."""

    decay_steps: Positive
    alpha: NonNegative = 0.0


class PiecewiseConstantDecay(Section, frozen=True, kw_only=True, tag_field="name", tag="PiecewiseConstantDecay"):
    """``learning_rate`` up to step ``boundaries[0]``, ``values[i]`` after step ``boundaries[i]``."""

    boundaries: Annotated[tuple[Positive, ...], Meta(min_length=1)]
    values: Annotated[tuple[NonNegative, ...], Meta(min_length=1)]


ScheduleConfig: TypeAlias = ExponentialDecay | InverseTimeDecay | PolynomialDecay | CosineDecay | PiecewiseConstantDecay


class OptimizerConfig(Section, frozen=True, kw_only=True):
    """The optimizer, with the argument names of ``tf.keras.optimizers``; what is left out has TensorFlow's default."""

    name: OptimizerName
    learning_rate: PositiveFloat
    momentum: Annotated[float, Meta(ge=0, le=1)] | None = None
    nesterov: bool | None = None
    beta_1: Decay | None = None
    beta_2: Decay | None = None
    epsilon: PositiveFloat | None = None
    amsgrad: bool | None = None
    clipnorm: PositiveFloat | None = None
    clipvalue: PositiveFloat | None = None
    global_clipnorm: PositiveFloat | None = None
    gradient_transformers: tuple[FunctionName, ...] = ()
    schedule: ScheduleConfig | None = None
    options: dict[str, int | float | bool | str] = {}
    """Further keyword arguments of the optimizer's class."""

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments for the optimizer's class that are plain numbers and flags, and were given.

        Without ``learning_rate`` (a schedule may replace it) and the transformers (names to look up).
        """
        others = {"name", "learning_rate", "gradient_transformers", "schedule", "options"}
        given = structs.asdict(self).items()
        return {key: value for key, value in given if key not in others and value is not None} | self.options

    def schedule_arguments(self) -> tuple[str, dict[str, Any]] | None:
        """Return the class name and keyword arguments of the schedule in ``tf.keras.optimizers.schedules``, or None."""
        if self.schedule is None:
            return None
        arguments = structs.asdict(self.schedule)
        if isinstance(self.schedule, PiecewiseConstantDecay):
            arguments = {
                "boundaries": list(self.schedule.boundaries),
                "values": [self.learning_rate, *self.schedule.values],
            }
        else:
            arguments = {"initial_learning_rate": self.learning_rate, **arguments}
        return type(self.schedule).__name__, arguments


class CompressionConfig(Section, frozen=True, kw_only=True):
    """How each replica compresses what it contributes; what is left over is added to its next gradient."""

    name: CompressionName
    options: dict[str, int | float | bool | str] = {}


class AggregationConfig(Section, frozen=True, kw_only=True):
    """How the replicas' gradients become one; see docs/aggregators.md."""

    name: AggregatorName = "sum"
    options: dict[str, int | float | bool | str] = {}
    """Keyword arguments of a named aggregator."""
    compression: CompressionConfig | None = None
    local_steps: Positive = 1
    """More than 1: replicas update copies of their own, which are averaged (by ``name``) every so many steps."""


class StrategyConfig(Section, frozen=True, kw_only=True):
    """How the mathematics is spread."""

    replicas: Positive = 1
    """Copies of the computation whose gradients make a step; not the number of processes."""


class NumericsConfig(Section, frozen=True, kw_only=True):
    """What computes. Both engines give the same bits."""

    engine: EngineName = "compiled"
    blas_threads: Positive = 1
    """Threads of the BLAS in each process; part of the numerics fingerprint."""
    update_threads: Positive | None = None
    """Threads that share the update of a large variable in each process; they decide no bits. Unless given: as many as
    there are processors, or 1 where the job has several processes."""
    allow_different_fingerprints: bool = False
    """Go on, with a warning, where processes may round differently."""


class CommunicationConfig(Section, frozen=True, kw_only=True):
    """How the ranks of an MPI job tell each other gradients and variables, from host to host; no bit depends on it."""

    bytes_per_pack: Count = 0
    """How long the pieces are, each on its way while the next is worked on. 0: 1 MB."""
    overlap: bool = False
    """Let a piece leave as soon as its gradients exist, while the backward pass goes on."""


class DeploymentConfig(Section, frozen=True, kw_only=True):
    """Where the job runs and how long it waits for others."""

    on: DeploymentName = "auto"
    """``process``: this one; ``mpi``: the ranks of an MPI launcher; ``cluster``: coordinator, servers and workers;
    ``auto``: ``mpi`` inside an MPI launcher, else ``cluster``."""
    workers: Positive = 2
    servers: Positive = 1
    placement: PlacementName = "auto"
    """Where the update runs: ``replica`` (on every worker), ``sharded`` (a part on each rank of an MPI job on one
    host), or ``server``; ``auto`` is ``server`` on a cluster, else ``replica``."""
    address: Endpoint = "tcp://127.0.0.1:0"
    """Where the coordinator listens."""
    advertise: Endpoint | None = None
    """Where others reach it, if that is not ``address``."""
    heartbeat_interval_s: Seconds = 0.5
    peer_timeout_s: Seconds = 5.0
    """A process that is silent for so long is lost."""
    join_timeout_s: Seconds = 60.0
    """How long the coordinator waits for all processes to join, and MPI ranks for each other until the first step is
    done."""
    round_timeout_s: Seconds = 60.0
    """How long a step may wait for the contributions of live workers."""
    collective_timeout_s: Seconds = 10.0
    """How long an MPI rank waits in one collective, after the first step."""
    survive_losses: bool = True
    """Let MPI ranks go on without those that are lost, where the launcher lets them (`mpirun --with-ft ulfm`)."""
    keep_every_steps: Count = 100
    """After how many steps ranks that survive losses keep the state in memory, where a part would be lost with one of
    them; after a loss the steps since are made again. 0: never, so they begin at the last checkpoint."""
    communication: CommunicationConfig = CommunicationConfig()


class RunConfig(Section, frozen=True, kw_only=True):
    """What is kept of a run."""

    directory: Annotated[str, Meta(min_length=1)] = "runs"
    checkpoint_every_epochs: Count = 1
    """0: only at the end."""
    checkpoint_every_steps: Count = 0
    """0: only at the ends of epochs."""
    log_level: LogLevel = "info"


class JobConfig(Section, frozen=True, kw_only=True):
    """A whole job."""

    name: Name
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
    task: TaskConfig
    data: DataConfig
    optimizer: OptimizerConfig
    aggregation: AggregationConfig = AggregationConfig()
    strategy: StrategyConfig = StrategyConfig()
    numerics: NumericsConfig = NumericsConfig()
    deployment: DeploymentConfig = DeploymentConfig()
    run: RunConfig = RunConfig()
