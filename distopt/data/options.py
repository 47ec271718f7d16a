"""What a dataset wants of whoever reads it; names of ``tf.data.Options``."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

from distopt.distribute.inputs import AutoShardPolicy


@dataclass(slots=True)
class DistributeOptions:
    """How a strategy divides the dataset; ``num_devices`` is accepted and has no effect."""

    auto_shard_policy: AutoShardPolicy = AutoShardPolicy.AUTO
    num_devices: int | None = None


@dataclass(slots=True)
class Options:
    """Options of a dataset. Setting one that does not exist is an AttributeError.

    ``deterministic`` is accepted and has no effect: the order of elements never depends on timing here.

    >>> options = Options()
    >>> options.experimental_distribute.auto_shard_policy = AutoShardPolicy.OFF
    """

    deterministic: bool | None = None
    experimental_distribute: DistributeOptions = field(default_factory=DistributeOptions)

    def merge(self, options: Options) -> Options:
        """Return these options, overridden by what ``options`` sets to anything but the default."""
        distribute = self.experimental_distribute
        given = options.experimental_distribute
        default = DistributeOptions()
        changed = {f.name: getattr(given, f.name) for f in fields(given)}
        changed = {name: value for name, value in changed.items() if value != getattr(default, name)}
        deterministic = self.deterministic if options.deterministic is None else options.deterministic
        return Options(deterministic, replace(distribute, **changed))
