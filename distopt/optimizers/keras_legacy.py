"""The Keras face, legacy generation: what users of ``tf.keras.optimizers.legacy`` call.

Source: tf_keras 2.21 ``OptimizerV2``, whose semantics this follows; see the class docstrings for what differs.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any, Self

import numpy as np

from distopt import deferral, replica_context, schedules
from distopt.aggregation import Sum
from distopt.aggregation.base import checked_aggregator
from distopt.autodiff.tape import GradientTape
from distopt.graph import Deferred, Operation, get_default_graph
from distopt.graph import gradients as deferred_gradients
from distopt.nest import flatten
from distopt.optimizers.clip_options import CLIP_OPTIONS, ClipOptions, Transformer
from distopt.optimizers.feature_options import FEATURE_OPTIONS, FeatureOptions
from distopt.optimizers.given_pairs import WRONG_PAIRS, returned_by, wrong_pair
from distopt.optimizers.hyper_attributes import HyperAttributes
from distopt.optimizers.names import unique_name
from distopt.optimizers.pipeline import (
    GradientPath,
    Pair,
    Pairs,
    check_gradients,
    filter_empty_gradients,
)
from distopt.optimizers.recorded import RecordedUpdates
from distopt.optimizers.slots_and_weights import SlotsAndWeights
from distopt.tensor import Operand
from distopt.variable import Variable

_OPTIONS = (*CLIP_OPTIONS, "lr", "decay", "slot_dtype")

NO_EFFECT = ("jit_compile", "is_legacy_optimizer")
"""Arguments of TensorFlow 2.11 to 2.15, also in its configurations, that say nothing here."""


class Optimizer(RecordedUpdates, HyperAttributes, ClipOptions, FeatureOptions, SlotsAndWeights):
    """Base of the Keras optimizers.

    ``gradient_aggregator`` sums over replicas unless given: an element-wise ``Aggregator``, or a function from one
    replica's ``[(gradient, variable)]`` to the aggregated ones. ``gradient_transformers`` are functions from pairs to
    pairs, run in order after clipping. Keyword arguments: ``clipvalue``, ``clipnorm`` and ``global_clipnorm`` clip
    aggregated gradients; ``decay`` divides the rate by ``1 + decay * iterations``; ``lr`` is ``learning_rate``.
    A subclass without a parameter of that name may hand it on to this class.

    ``slot_dtype="float32"``: float16 and bfloat16 variables get slots of float32, the update is computed in it, and
    only the new variable is rounded. The reference has no such option: there, slots have the variable's dtype.

    Keyword arguments that Keras 3 added, all off unless given: ``weight_decay``; ``use_ema``, ``ema_momentum`` and
    ``ema_overwrite_frequency``; ``gradient_accumulation_steps``; ``loss_scale_factor``. They are attributes, too.
    Gradients that are accumulated when a training ends, and have not made a full step, stay in the accumulators: the
    next call, or a resumed job, goes on with them. ``jit_compile`` and ``is_legacy_optimizer`` have no effect.

    Hypers may be read and overwritten as attributes: ``optimizer.learning_rate = 0.05``, or ``lr``.

    Raises: TypeError for an unknown keyword argument; ValueError for a negative one, for ``clipnorm`` with
        ``global_clipnorm``, and for a clip option with transformers.
    """

    _HAS_AGGREGATE_GRAD = True
    _use_locking = True
    """For methods of a subclass that hand it on; it has no effect."""

    def __init__(
        self,
        name: str | None = None,
        gradient_aggregator: Any = None,
        gradient_transformers: Sequence[Transformer] | None = None,
        learning_rate: Any = None,
        **kwargs: Any,
    ) -> None:
        slot_dtype = kwargs.pop("slot_dtype", None)
        for option in NO_EFFECT:
            kwargs.pop(option, None)
        features = {option: kwargs.pop(option) for option in FEATURE_OPTIONS if option in kwargs}
        for option, value in kwargs.items():
            if option not in _OPTIONS:
                known = ", ".join([*_OPTIONS, *FEATURE_OPTIONS])
                raise TypeError(f"{type(self).__name__} takes no argument {option!r}; besides its own: {known}")
            if option != "lr" and not isinstance(value, int | float | np.number | None):
                raise TypeError(f"{option} must be a number, not {value!r}")
            if isinstance(value, int | float | np.number) and value < 0:
                raise ValueError(f"{option} must not be negative, but is {value}")
        if "lr" in kwargs:
            warnings.warn("the argument `lr` is deprecated, use `learning_rate`", DeprecationWarning, stacklevel=3)
        super().__init__(name or unique_name(type(self).__name__))
        self.gradient_aggregator = Sum() if gradient_aggregator is None else checked_aggregator(gradient_aggregator)
        transformers = [] if callable(gradient_transformers) else list(gradient_transformers or [])
        if callable(gradient_transformers) or not all(map(callable, transformers)):
            raise TypeError(f"gradient_transformers is a list of functions over pairs, not {gradient_transformers!r}")
        self.gradient_transformers: list[Transformer] = transformers
        if kwargs.get("clipnorm") is not None and kwargs.get("global_clipnorm") is not None:
            raise ValueError("clipnorm and global_clipnorm exclude each other")
        self._set_features(features)
        for option in CLIP_OPTIONS:
            setattr(self, option, kwargs.get(option))
        decay = kwargs.get("decay", 0.0)
        if decay is None or decay < 0:
            raise TypeError(f"decay must be a number, not {decay!r}")
        self._initial_decay = decay
        if slot_dtype is not None and np.dtype(slot_dtype) != np.float32:
            raise ValueError(f"slot_dtype must be None or float32, but is {slot_dtype!r}")
        self.features.slot_dtype = None if slot_dtype is None else np.dtype(np.float32)
        if learning_rate is not None:
            self._set_hyper("learning_rate", learning_rate)

    @property
    def iterations(self) -> Variable:
        """The number of steps taken: an int64 variable, created on first use."""
        return super().iterations if self._iterations is None else self._iterations

    @iterations.setter
    def iterations(self, variable: Variable) -> None:
        if self._iterations is not None:
            raise RuntimeError(f"iterations of {self._name} exist already; assign to the variable instead")
        self._adopt_iterations(variable)

    # The gradients' path. The underscored stages may be overridden; then they run on each replica.

    def minimize(
        self,
        loss: Any,
        var_list: Any,
        grad_loss: Any = None,
        name: str | None = None,
        tape: GradientTape | None = None,
    ) -> Any:
        """Take one step down the gradient of ``loss`` and return ``iterations``; ``None`` for an empty ``var_list``.

        In a graph, return the operation that does it. ``loss`` is a function without arguments, or with ``tape`` a
        tensor that it recorded. ``var_list`` is a structure of variables, or a function that returns one and is called
        after the loss.

        Raises: ValueError for a tensor without ``tape``, for a variable whose dtype has no gradients, and as
            :meth:`apply_gradients`.
        """
        pairs = self._compute_gradients(loss, var_list, grad_loss, tape)
        return self.apply_gradients(pairs, name=name)

    def compute_gradients(self, loss: Any, var_list: Any, tape: GradientTape | None = None) -> list[Pair]:
        """Return the gradients of ``loss`` with their variables, as :meth:`minimize` applies them; None for none.

        Raises: as :meth:`minimize`.
        """
        return self._compute_gradients(loss, var_list, tape=tape)

    def aggregate_gradients(self, grads_and_vars: Iterable[tuple[Any, Any]]) -> list[Pair]:
        """Return the pairs aggregated over the replicas, as :meth:`apply_gradients` does unless it is told not to.

        Called in a replica context. Source: ``tf.keras.optimizers.Optimizer`` of TensorFlow 2.11 to 2.15.

        Raises: as :meth:`apply_gradients`.
        """
        replica_context.current_replica("aggregate_gradients")
        return list(self._aggregate_gradients(self._checked(grads_and_vars)))

    def _compute_gradients(
        self, loss: Any, var_list: Any, grad_loss: Any = None, tape: GradientTape | None = None
    ) -> list[Pair]:
        if not callable(loss) and tape is None:
            raise ValueError("a loss that is no function needs the tape that recorded it: minimize(..., tape=tape)")
        tape = GradientTape() if tape is None else tape
        if callable(loss):
            with tape:
                if not callable(var_list):
                    tape.watch(var_list)
                loss = loss()
                if callable(var_list):
                    var_list = var_list()
        with tape:
            loss = self.scale_loss(self._transform_loss(loss))
        variables = flatten(var_list)
        for variable in variables:
            if not isinstance(variable, Operand):
                raise ValueError(f"var_list must hold variables, not {variable!r}")
        pairs = self._get_gradients(tape, loss, variables, grad_loss)
        for gradient, variable in pairs:
            if gradient is not None and variable.dtype not in self._valid_dtypes():
                raise ValueError(f"variable {variable.name!r} of dtype {variable.dtype} cannot be minimized")
        return pairs

    def _get_gradients(self, tape: GradientTape, loss: Any, var_list: list[Any], grad_loss: Any = None) -> list[Pair]:
        if isinstance(loss, Deferred):
            gradients = deferred_gradients(loss, var_list, grad_loss)
        else:
            gradients = tape.gradient(loss, var_list, grad_loss)
        return list(zip(gradients, var_list, strict=True))

    def get_gradients(self, loss: Any, params: Any) -> list[Any]:
        """Return the deferred gradients, not clipped, of a deferred ``loss`` with respect to ``params``, in a graph.

        Raises: ValueError if one of them has no gradient; where things run eagerly TypeError for a function and
            ValueError for a tensor, as in the reference: there are ``minimize`` and ``GradientTape``.
        """
        if not isinstance(loss, Deferred):
            raise (TypeError if callable(loss) else ValueError)(
                f"get_gradients and get_updates take a deferred loss, in a graph, not {loss!r}; where things run "
                "eagerly use GradientTape and apply_gradients, or minimize"
            )
        variables = flatten(params)
        gradients = deferred_gradients(loss, variables)
        for gradient, variable in zip(gradients, variables, strict=True):
            if gradient is None:
                raise ValueError(f"variable {variable.name!r} has no gradient; does the loss depend on it?")
        return gradients

    def get_updates(self, loss: Any, params: Any) -> list[Any]:
        """Return the operation that applies :meth:`get_gradients`, in a list; only in a graph, as that."""
        variables = flatten(params)
        return [self.apply_gradients(zip(self.get_gradients(loss, variables), variables, strict=True))]

    def apply_gradients(
        self,
        grads_and_vars: Iterable[tuple[Any, Any]],
        name: str | None = None,
        experimental_aggregate_gradients: bool = True,
        skip_gradients_aggregation: bool = False,
    ) -> Any:
        """Apply gradients to variables and return ``iterations``; ``None`` if there are no pairs.

        In a graph, return an operation that does it, called ``name``. Called in a replica context. Gradients are summed
        over the replicas unless ``experimental_aggregate_gradients`` is false, or ``skip_gradients_aggregation`` true,
        which is its name since TensorFlow 2.11; then clipped and transformed. Pairs without a gradient are left out,
        with a logged warning.

        Raises: ValueError if no variable has a gradient, or a gradient does not fit its variable; RuntimeError in a
            cross-replica context; TapeError if a live tape has read one of the variables. Nothing has changed then.
        """
        aggregate = experimental_aggregate_gradients and not skip_gradients_aggregation
        if deferral.may_record and deferral.building() is not None:
            return self._record_step(grads_and_vars, aggregate, name or self._name)
        pairs = self._checked(grads_and_vars)
        if not self.fits.is_latest(pairs) and pairs.key not in self.fits:
            self.build(pairs.variables)
            self.fits.add(pairs.variables)
        if not pairs.key:
            return None
        context = replica_context.current_replica("apply_gradients")
        GradientPath(self, aggregate).run(context, pairs)
        return self.iterations

    def _record_step(self, grads_and_vars: Iterable[tuple[Any, Any]], aggregate: bool, name: str) -> Operation:
        """Return the operation that applies gradients and counts the step."""
        present = filter_empty_gradients(grads_and_vars)
        if not present:
            return Operation(get_default_graph(), "NoOp", lambda _scope: None, name=name)
        _ = self.iterations
        self._hypers.create_variables()

        def apply(pairs: list[Any]) -> None:
            context = replica_context.current_replica("apply_gradients")
            with self._held():
                GradientPath(self, aggregate).run(context, self._checked(pairs))

        return self._record(present, apply, name, "AssignAddVariableOp")

    def _checked(self, grads_and_vars: Iterable[tuple[Any, Any]]) -> Pairs:
        """Return the pairs that have a gradient, each fit for its variable."""
        pairs = list(grads_and_vars)
        try:
            return self._fitting(pairs)
        except WRONG_PAIRS:
            if (wrong := wrong_pair(pairs)) is not None:
                raise wrong from None
            raise

    def _fitting(self, pairs: list[Pair]) -> Pairs:
        known = self.fits.known(pairs)
        return check_gradients(filter_empty_gradients(pairs)) if known is None else known

    def _transform_loss(self, loss: Any) -> Any:
        return loss

    def _transform_unaggregated_gradients(self, grads_and_vars: Iterable[Pair]) -> Iterable[Pair]:
        return grads_and_vars

    def _aggregate_gradients(self, grads_and_vars: Iterable[Pair]) -> Iterable[Pair]:
        aggregated: Iterable[Pair] = self.gradient_aggregator(list(grads_and_vars))
        return returned_by(self.gradient_aggregator, aggregated)  # type: ignore[no-any-return]

    def _transform_gradients(self, grads_and_vars: Iterable[Pair]) -> Iterable[Pair]:
        # Where gradients are accumulated, their mean is clipped: that comes later.
        pairs = grads_and_vars if self.features.accumulation_steps > 1 else self.clip(grads_and_vars)
        for transform in self.gradient_transformers:
            pairs = returned_by(transform, transform(list(pairs)))
        return pairs

    # Configuration.

    def get_config(self) -> dict[str, Any]:
        """Return the arguments from which :meth:`from_config` makes an equal optimizer, without functions."""
        clips = {option: getattr(self, option) for option in CLIP_OPTIONS}
        given = {name: value for name, value in self._feature_config().items() if value != FEATURE_OPTIONS[name]}
        config = {
            "name": self._name,
            **{option: value for option, value in clips.items() if value is not None},
            **given,
        }
        slot_dtype = self.features.slot_dtype
        return config if slot_dtype is None else {**config, "slot_dtype": slot_dtype.name}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> Self:
        """Return the optimizer that ``config`` describes; ``lr`` in it is renamed, and a schedule made an object."""
        if "lr" in config:
            config["learning_rate"] = config.pop("lr")
        if isinstance(config.get("learning_rate"), dict):
            config["learning_rate"] = schedules.deserialize(config["learning_rate"], custom_objects)
        return cls(**config)
