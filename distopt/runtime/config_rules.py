"""What the values of a configuration say together: combinations that contradict each other are refused by name."""

from __future__ import annotations

import difflib
import functools
import inspect
import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import msgspec.inspect

from distopt import optimizers
from distopt.aggregation import LocalSteps
from distopt.aggregation.named import AGGREGATORS, COMPRESSIONS, options_of
from distopt.errors import ConfigError
from distopt.optimizers.feature_options import FEATURE_OPTIONS
from distopt.runtime.config import OPTIMIZERS, JobConfig, PiecewiseConstantDecay
from distopt.runtime.config_schema import describe
from distopt.runtime.toml_text import inline

_KEYS = ("momentum", "nesterov", "beta_1", "beta_2", "epsilon", "amsgrad")
"""Arguments of some optimizers that have keys of their own; others are given as ``optimizer.options``."""


_OPEN = ("task.options", "optimizer.options", "aggregation.options", "aggregation.compression.options")
"""Keys whose values are for others to judge."""


def check(config: JobConfig) -> None:
    """Return if the values of ``config`` agree.

    Raises: ConfigError, which names both keys and both values, for the first pair that does not.
    """
    for complaint in _complaints(config):
        raise ConfigError(complaint)


def _complaints(config: JobConfig) -> Iterator[str]:
    yield from _not_finite("", msgspec.to_builtins(config))
    yield from _of_optimizer(config)
    yield from _of_aggregation(config)
    yield from _of_deployment(config)


def _not_finite(key: str, value: Any) -> Iterator[str]:
    """TOML can write ``inf`` and ``nan``; no field can use them."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _not_finite(f"{key}.{name}" if key else name, item)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _not_finite(f"{key}[{index}]", item)
    elif isinstance(value, float) and not math.isfinite(value) and not key.startswith(_OPEN):
        yield f"{key} = {value} is refused; allowed: a finite number"


def _of_optimizer(config: JobConfig) -> Iterator[str]:
    optimizer = config.optimizer
    given = optimizer.arguments()
    is_own = ":" in optimizer.name
    if not is_own:
        taken = _parameters(optimizer.name)
        for argument in _KEYS:
            if argument in given and argument not in taken:
                names = [name for name in OPTIMIZERS if argument in _parameters(name)]
                yield exclude(
                    "optimizer.name", optimizer.name, f"optimizer.{argument}", given[argument],
                    f"{argument} is an argument of {', '.join(names)}",
                )  # fmt: skip
        allowed = sorted(taken.difference(_KEYS, ("learning_rate", "name", "kwargs")))
        yield from _unknown_options("optimizer.options", optimizer.options, optimizer.name, allowed)
    if optimizer.clipnorm is not None and optimizer.global_clipnorm is not None:
        yield exclude(
            "optimizer.clipnorm", optimizer.clipnorm, "optimizer.global_clipnorm", optimizer.global_clipnorm,
            "a gradient is clipped by its own norm or by the norm of all",
        )  # fmt: skip
    if optimizer.gradient_transformers:
        for clip in ("clipnorm", "clipvalue", "global_clipnorm"):
            if clip in given:
                yield exclude(
                    f"optimizer.{clip}", given[clip],
                    "optimizer.gradient_transformers", list(optimizer.gradient_transformers),
                    "clip inside a transformer instead",
                )  # fmt: skip
    schedule = optimizer.schedule
    if isinstance(schedule, PiecewiseConstantDecay):
        if len(schedule.boundaries) != len(schedule.values):
            yield exclude(
                "optimizer.schedule.boundaries", list(schedule.boundaries),
                "optimizer.schedule.values", list(schedule.values),
                "each boundary needs the one value that holds after it",
            )  # fmt: skip
        if any(b <= a for a, b in zip(schedule.boundaries, schedule.boundaries[1:], strict=False)):
            yield (
                f"optimizer.schedule.boundaries = {inline(list(schedule.boundaries))} is refused; "
                "allowed: steps in ascending order"
            )


def _unknown_options(key: str, given: Mapping[str, Any], name: str, allowed: Sequence[str]) -> Iterator[str]:
    for option, value in given.items():
        if option not in allowed:
            near = difflib.get_close_matches(option, allowed, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            yield (
                f"{key}.{option} = {inline(value)} is refused{hint}; "
                f"allowed with {name}: {', '.join(allowed) or 'no options'}"
            )


def _of_aggregation(config: JobConfig) -> Iterator[str]:
    chosen = config.aggregation
    kind: Any = AGGREGATORS.get(chosen.name)
    if kind is None:
        yield from _of_own_aggregator(config)
        return
    options = yield from _options("aggregation.options", chosen.options, chosen.name, kind)
    if options is None:
        return
    aggregator = kind(**options)
    try:
        aggregator.check_replicas(config.strategy.replicas)
    except ValueError as error:
        yield exclude(
            "aggregation", {"name": chosen.name, **chosen.options}, "strategy.replicas", config.strategy.replicas,
            str(error),
        )  # fmt: skip
    compression = chosen.compression
    if compression is not None:
        codec: Any = COMPRESSIONS[compression.name]
        taken = yield from _options("aggregation.compression.options", compression.options, compression.name, codec)
        if taken is None:
            return
        try:
            aggregator = aggregator.compressed(codec(**taken))
        except ValueError as error:
            yield exclude("aggregation.name", chosen.name, "aggregation.compression.name", compression.name, str(error))
    if chosen.local_steps > 1:
        try:
            LocalSteps(aggregator, chosen.local_steps)
        except ValueError as error:
            yield exclude("aggregation.name", chosen.name, "aggregation.local_steps", chosen.local_steps, str(error))


def _of_own_aggregator(config: JobConfig) -> Iterator[str]:
    chosen = config.aggregation
    if chosen.compression is not None:
        yield exclude(
            "aggregation.name", chosen.name, "aggregation.compression.name", chosen.compression.name,
            "compress with your own aggregator's method `compressed`",
        )  # fmt: skip
    if chosen.options:
        yield exclude(
            "aggregation.name", chosen.name, "aggregation.options", chosen.options,
            "options are for named aggregators; give your own its arguments where it is made",
        )  # fmt: skip
    if chosen.local_steps > 1:
        yield exclude(
            "aggregation.name", chosen.name, "aggregation.local_steps", chosen.local_steps,
            "make distopt.aggregation.LocalSteps of your own aggregator where it is made",
        )  # fmt: skip


def _options(key: str, given: Mapping[str, Any], name: str, kind: type) -> Generator[str, None, dict[str, Any] | None]:
    """Yield complaints about the options of ``kind``; return them in their types if there is none."""
    types = options_of(kind)
    unknown = list(_unknown_options(key, given, name, sorted(types)))
    yield from unknown
    options = {}
    for option, value in given.items() if not unknown else ():
        try:
            options[option] = msgspec.convert(value, types[option])
        except msgspec.ValidationError:
            allowed = describe(msgspec.inspect.type_info(types[option]))
            yield f"{key}.{option} = {inline(value)} is refused; allowed: {allowed}"
            return None
    if unknown:
        return None
    try:
        kind(**options)
    except ValueError as error:
        yield f"{key} = {inline(dict(given))} is refused: {error}"
        return None
    return options


@functools.cache
def _parameters(name: str) -> frozenset[str]:
    return frozenset({*inspect.signature(getattr(optimizers, name)).parameters, *FEATURE_OPTIONS})


def _of_deployment(config: JobConfig) -> Iterator[str]:
    deployment = config.deployment
    if deployment.on in ("mpi", "process") and deployment.placement == "server":
        yield exclude(
            "deployment.on", deployment.on, "deployment.placement", deployment.placement,
            'only on = "cluster" has servers',
        )  # fmt: skip
    if deployment.on in ("process", "cluster") and deployment.placement == "sharded":
        yield exclude(
            "deployment.on", deployment.on, "deployment.placement", deployment.placement,
            'only the ranks of on = "mpi" share memory',
        )  # fmt: skip
    if deployment.on in ("process", "cluster") and deployment.communication.overlap:
        yield exclude(
            "deployment.on", deployment.on, "deployment.communication.overlap", True,
            'only the ranks of on = "mpi" send gradients from host to host',
        )  # fmt: skip
    if deployment.heartbeat_interval_s >= deployment.peer_timeout_s:
        yield exclude(
            "deployment.heartbeat_interval_s", deployment.heartbeat_interval_s,
            "deployment.peer_timeout_s", deployment.peer_timeout_s,
            "a peer must be able to send a heartbeat before it counts as lost",
        )  # fmt: skip


def exclude(key: str, value: Any, other_key: str, other_value: Any, why: str) -> str:
    """Return the message for two values that exclude each other."""
    return f"{key} = {inline(value)} and {other_key} = {inline(other_value)} exclude each other: {why}"
