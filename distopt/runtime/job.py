"""A job as one process builds it: task, model and optimizer, from nothing but the configuration.

Every process of a job calls :func:`build_job` with the same configuration and gets the same variables in the same
order; :func:`manifest` is what they compare before step 0 to be sure of that.
"""

from __future__ import annotations

import importlib
import platform
from dataclasses import dataclass
from typing import Any

import msgspec

import distopt
from distopt import random
from distopt.aggregation import Aggregator, GradientAggregator, LocalSteps
from distopt.aggregation.named import AGGREGATORS, COMPRESSIONS
from distopt.errors import ConfigError
from distopt.keras import optimizers
from distopt.keras.optimizers import schedules
from distopt.numerics import numerics_fingerprint
from distopt.optimizers import pipeline
from distopt.protocol.manifest import Manifest, VariableSpec
from distopt.runtime.config import AggregationConfig, JobConfig
from distopt.runtime.config_file import job_digest, mathematics_toml
from distopt.tasks import Task, find_task


@dataclass
class Job:
    """What a configuration describes, built."""

    config: JobConfig
    task: Task
    model: Any
    variables: list[Any]
    """The trainable variables, in creation order."""
    optimizer: Any
    hooks: tuple[str, ...]
    """Names of the functions of the user's that the gradient's path runs, as configured."""
    streams: random.Streams
    """What the training draws its random values from."""

    @property
    def all_variables(self) -> list[Any]:
        """The variables of the model, those that are not trained too, in creation order."""
        return list(self.model.variables)

    @property
    def digest(self) -> str:
        """Of the part of the configuration that decides what is computed."""
        return job_digest(self.config)


def build_job(config: JobConfig) -> Job:
    """Return the job that ``config`` describes, its variables and slots created.

    Raises: ConfigError for a task, aggregator or transformer that cannot be found.
    """
    task = make_task(config)
    model = task.build(config.seed)
    variables = list(model.trainable_variables)
    optimizer = make_optimizer(config)
    optimizer.build(variables)
    name = config.aggregation.name
    if name in AGGREGATORS:
        aggregator = optimizer.gradient_aggregator
        named = [] if isinstance(aggregator, Aggregator) else [aggregator.full_name]
    else:
        named = [name]
    hooks = (*named, *config.optimizer.gradient_transformers)
    return Job(config, task, model, variables, optimizer, hooks, random.Streams(config.seed))


def make_task(config: JobConfig) -> Task:
    """Return the task that ``config`` names, with its options.

    Raises: ConfigError for a task that cannot be found, or options that it refuses.
    """
    name = config.task.name
    try:
        found = find_task(name)
    except (ValueError, TypeError, ImportError) as error:
        raise ConfigError(f"task.name = {name!r}: {error}") from error
    given = dict(config.task.options)
    if "hidden" in {field.name for field in msgspec.structs.fields(found.Options)}:
        given.setdefault("hidden", config.task.hidden)
    try:
        options = msgspec.convert(given, found.Options)
    except msgspec.ValidationError as error:
        raise ConfigError(f"task.options = {config.task.options!r}: {error}") from error
    try:
        return found(options, config.seed)
    except ModuleNotFoundError as error:
        raise ConfigError(f"task.name = {name!r}: {error}") from error


def make_optimizer(config: JobConfig) -> Any:
    """Return the optimizer that ``config`` describes, with its aggregator.

    Raises: ConfigError for a class or function that cannot be found, or a class that does not take the arguments.
    """
    chosen = config.optimizer
    schedule = chosen.schedule_arguments()
    learning_rate: Any = chosen.learning_rate
    if schedule is not None:
        name, arguments = schedule
        learning_rate = getattr(schedules, name)(**arguments)
    is_own = ":" in chosen.name
    optimizer = load_object(chosen.name, "optimizer.name") if is_own else getattr(optimizers, chosen.name)
    arguments = chosen.arguments()
    if chosen.gradient_transformers:
        arguments["gradient_transformers"] = [
            load_object(name, "optimizer.gradient_transformers") for name in chosen.gradient_transformers
        ]
    try:
        made = optimizer(learning_rate=learning_rate, **arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"optimizer.name = {chosen.name!r}: {error}") from error
    # Those of TensorFlow 1 have no argument for it.
    made.gradient_aggregator = _aggregator(config.aggregation)
    return made


def load_object(name: str, key: str) -> Any:
    """Return the object that ``"package.module:attribute"`` names; ``key`` is where the configuration says so.

    Raises: ConfigError if there is no such module or attribute.
    """
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise ConfigError(f"{key} = {name!r}: module {module!r} cannot be imported: {error}") from error
    except AttributeError:
        raise ConfigError(f"{key} = {name!r}: module {module!r} has no {attribute!r}") from None


def check_placement(job: Job, placement: str, num_servers: int) -> None:
    """Refuse what ``placement`` cannot run, before step 0.

    Raises: PlacementError naming the hooks.
    """
    if placement in ("sharded", "server"):
        from distopt.distribute.owners import refuse_hooks

        refuse_hooks(pipeline.GradientPath(job.optimizer, aggregate=True), placement, num_servers, job.hooks)


def manifest(job: Job) -> Manifest:
    """Return what this process must agree on with all others.

    The optimizer's name has, where the job gives none, a number that counts how often this process has made one: not as
    often on all where a rank was lost before step 0.
    """
    config = job.config
    return Manifest(
        job=mathematics_toml(config),
        variables=tuple(VariableSpec(v.name, tuple(v.shape), str(v.dtype)) for v in job.variables),
        optimizer={key: repr(value) for key, value in sorted(_configuration(job.optimizer).items()) if key != "name"},
        hooks=job.hooks,
        versions={"distopt": distopt.__version__, "python": ".".join(platform.python_version_tuple()[:2])},
        numerics=numerics_fingerprint(config.numerics.engine),
    )


def _configuration(optimizer: Any) -> dict[str, Any]:
    """Return the optimizer's own description; those of TensorFlow 1 have none, so their arguments must do."""
    get_config = getattr(optimizer, "get_config", None)
    return {} if get_config is None else get_config()


def encode_manifest(value: Manifest) -> bytes:
    """Return ``value`` as bytes for a collective."""
    return msgspec.msgpack.encode(value)


def decode_manifest(payload: bytes) -> Manifest:
    """Return what :func:`encode_manifest` encoded."""
    return msgspec.msgpack.decode(payload, type=Manifest)


def _aggregator(config: AggregationConfig) -> Any:
    kind: Any = AGGREGATORS.get(config.name)
    if kind is None:
        found = load_object(config.name, "aggregation.name")
        return found() if isinstance(found, type) and issubclass(found, GradientAggregator) else found
    aggregator: GradientAggregator = kind(**config.options)
    if config.compression is not None:
        codec: Any = COMPRESSIONS[config.compression.name]
        aggregator = aggregator.compressed(codec(**config.compression.options))
    return aggregator if config.local_steps == 1 else LocalSteps(aggregator, config.local_steps)
