"""``compile``, ``fit``, ``evaluate`` and ``predict``: the loop around a model.

Theory of operation: the data are cut into global batches, which the strategy splits over replicas. Each replica adds
up its losses and divides by the number of elements in the *global* batch, so that the sum of the replicas' gradients
is the gradient of the mean over the batch, however its rows are spread and also where the last batch is short. Figures
are summed per replica in float64 and over replicas once an epoch, so each example counts once.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np

from distopt import losses, ops, random, replica_context
from distopt.autodiff.tape import GradientTape
from distopt.distribute import Strategy, values
from distopt.keras import losses as keras_losses
from distopt.keras import metrics as keras_metrics
from distopt.keras import optimizers
from distopt.keras.batches import Batch, CountedBatches, GlobalBatches, exactly
from distopt.keras.callbacks import Callback, Callbacks
from distopt.keras.layers import Layer
from distopt.keras.losses import LossLike
from distopt.keras.metrics import Metric, MetricLike
from distopt.keras.utils.experimental import DatasetCreator
from distopt.losses import Reduction
from distopt.nest import map_structure
from distopt.sampling import batch_length
from distopt.types import Array


class History:
    """What ``fit`` returns: ``history[name][i]`` is a figure of epoch ``epoch[i]``."""

    def __init__(self) -> None:
        self.epoch: list[int] = []
        self.history: dict[str, list[float]] = {}

    def append(self, epoch: int, logs: Mapping[str, float]) -> None:
        """Add the figures of one epoch."""
        self.epoch.append(epoch)
        for name, value in logs.items():
            self.history.setdefault(name, []).append(value)


functional_class: list[Any] = []
"""The class of ``Model(inputs, outputs)``; set by :mod:`distopt.keras.models`."""


class Model(Layer):
    """A layer that can be trained; a subclass defines ``call``, and ``build`` if it makes variables itself.

    ``Model(inputs, outputs)`` is a model of the layers between ``keras.Input`` tensors and what was made of them.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Model:
        """Return a new model; one of inputs and outputs if these are given."""
        is_functional = cls is Model and (len(args) > 1 or "inputs" in kwargs)
        new: Model = object.__new__(functional_class[0] if is_functional else cls)
        return new

    def __init__(self, name: str | None = None, **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self._strategy: Strategy = replica_context.get_strategy()
        self._loss: keras_losses.Loss | None = None
        self._metrics: list[Metric] = []
        self._optimizer: Any = None
        self.stop_training = False
        """Set by a callback to end ``fit`` after the step or epoch that is under way."""

    @property
    def optimizer(self) -> Any:
        """The optimizer that ``compile`` was given."""
        return self._optimizer

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: LossLike | None = None,
        metrics: Sequence[MetricLike] | None = None,
        *,
        run_eagerly: bool | None = None,
        steps_per_execution: int | None = None,
        jit_compile: Any = None,
    ) -> None:
        """Set how the model is trained, under the strategy that is current here, or was when the model was made.

        The loss may have any reduction but ``none``: ``auto`` and ``sum_over_batch_size`` mean the mean over the
        elements of the global batch. ``run_eagerly``, ``steps_per_execution`` and ``jit_compile`` have no effect.

        Raises: ValueError for an unknown name, or a loss with reduction ``none``.
        """
        del run_eagerly, steps_per_execution, jit_compile
        chosen = None if loss is None else keras_losses.get(loss)
        if chosen is not None and chosen.reduction is Reduction.NONE:
            raise ValueError("a loss with reduction 'none' gives no number to minimize; use 'sum' or 'auto'")
        if replica_context.has_strategy():
            self._strategy = replica_context.get_strategy()
        self._loss = chosen
        self._metrics = [keras_metrics.get(metric) for metric in metrics or ()]
        self._optimizer = optimizers.get(optimizer)

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: int | str = "auto",
        validation_data: Any = None,
        shuffle: bool = True,
        sample_weight: Any = None,
        initial_epoch: int = 0,
        steps_per_epoch: int | None = None,
        seed: int | None = None,
        callbacks: Sequence[Callback] | None = None,
    ) -> History:
        """Train for the epochs ``initial_epoch <= e < epochs``, and return the figures of each.

        ``x`` and ``y`` are arrays, or ``x`` is an iterable of *global* batches ``(x, y)`` or ``(x, y,
        sample_weight)``, such as a Dataset; so is ``validation_data``, as a tuple or an iterable. ``x`` may also be a
        DatasetCreator, whose function makes batches for single replicas. ``callbacks`` are called in order.
        ``batch_size`` is that of the global batch, by default 32. Arrays are visited in the order
        ``epoch_permutation(seed, epoch, n)``; ``seed`` is by default that of ``distopt.random.set_seed``, so two calls
        visit the data alike unless the second is given an ``initial_epoch`` or another seed. With an optimizer's
        ``use_ema`` the variables end as their averages, unless servers keep these.

        With ``steps_per_epoch`` an epoch is so many batches, and the next one goes on where it ended: for data that
        repeat without end.

        Raises: RuntimeError if the model was not compiled with a loss; ValueError for data that do not fit together, or
            run out before ``steps_per_epoch``, and for a DatasetCreator without it; TypeError for something else among
            the callbacks.
        """
        self._require_loss("fit")
        is_divided = isinstance(x, DatasetCreator)
        if is_divided:
            x = self._made_by(x, steps_per_epoch)
        data = GlobalBatches(x, y, sample_weight, batch_size, random.get_seed() if seed is None else seed, shuffle)
        stream = None if steps_per_epoch is None else data.from_epoch(initial_epoch)
        history, logs = History(), {}
        called = Callbacks(callbacks, self, epochs, steps_per_epoch)
        self.stop_training = False
        called.call("on_train_begin", {})
        for epoch in range(initial_epoch, epochs):
            if self.stop_training:
                break
            called.call("on_epoch_begin", epoch, {})
            batches = data.of_epoch(epoch) if stream is None else exactly(steps_per_epoch, stream)
            logs = self._run_epoch(self._parts(batches, is_divided), self._train_step, called)
            if validation_data is not None:
                called.call("on_test_begin", {})
                held_out = validation_data if isinstance(validation_data, (tuple, list)) else (validation_data,)
                x_held, y_held, weight_held = (*held_out, None, None)[:3]
                figures = self._evaluate(x_held, y_held, weight_held, batch_size)
                called.call("on_test_end", figures)
                logs |= {f"val_{name}": value for name, value in figures.items()}
            called.call("on_epoch_end", epoch, logs)
            history.append(epoch, logs)
            self._report(verbose, f"Epoch {epoch + 1}/{epochs}", logs)
        if self._optimizer.keeps_slots:
            self._optimizer.finalize_variable_values(self.trainable_variables)
        called.call("on_train_end", logs)
        return history

    def evaluate(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        verbose: int | str = "auto",
        sample_weight: Any = None,
        return_dict: bool = False,
    ) -> Any:
        """Return the loss, or ``[loss, *metrics]`` if there are metrics, or a dictionary of them.

        Arguments are those of ``fit``. Each example counts once, at any number of replicas.
        """
        self._require_loss("evaluate")
        logs = self._evaluate(x, y, sample_weight, batch_size)
        self._report(verbose, "Evaluation", logs)
        if return_dict:
            return logs
        return list(logs.values()) if self._metrics else logs["loss"]

    def predict(self, x: Any, batch_size: int | None = None, verbose: int | str = "auto") -> Array:  # noqa: ARG002
        """Return the outputs for all of ``x`` (an array, or an iterable of batches), computed in this process.

        Nothing is written, whatever ``verbose`` says.

        Raises: ValueError if there is no batch.
        """
        outputs = [np.asarray(self(batch[0])) for batch in GlobalBatches(x, None, None, batch_size).of_epoch(0)]
        if not outputs:
            raise ValueError("predict was given no data")
        return np.concatenate(outputs)

    def summary(self, print_fn: Callable[[str], Any] | None = None) -> None:
        """Write a table of the layers and their numbers of parameters; each line goes to ``print_fn`` if given."""
        layers = self._sublayers()
        rows = [("Layer", "Params"), *((f"{la.name} ({type(la).__name__})", _params(la)) for la in layers)]
        width = max(len(name) for name, _ in rows)
        trainable = sum(math.prod(variable.shape) for variable in self.trainable_variables)
        lines = [f'Model: "{self.name}"', *(f"{name:<{width}}  {count:>12}" for name, count in rows)]
        lines.append(f"Total params: {_params(self)}, trainable: {trainable:,}")
        for line in lines:
            (print_fn or _write_line)(line)

    # ------------------------------------------------------------ one epoch

    def _made_by(self, creator: DatasetCreator, steps_per_epoch: int | None) -> Iterable[Any]:
        """Return what the function of ``creator`` makes for the replicas of this process.

        Raises: ValueError without ``steps_per_epoch``.
        """
        if steps_per_epoch is None:
            raise ValueError("a DatasetCreator's data may be without end, so fit needs steps_per_epoch")
        return self._strategy.distribute_datasets_from_function(creator.dataset_fn, creator.input_options)

    def _parts(self, batches: Iterable[Batch], is_divided: bool = False) -> Iterator[tuple[Any, int | None]]:
        """Yield the part of each batch that is this process's, and how many rows it has on all replicas, if known.

        The model is built for the first one, outside of replicas.
        """
        if is_divided:
            for number, batch in enumerate(batches):
                if number == 0:
                    self._build_for(values.select(batch, 0))
                yield batch, None
            return
        counted = CountedBatches(batches, self._build_for)
        for part in self._strategy.experimental_distribute_dataset(counted):
            yield part, counted.lengths.popleft()

    def _run_epoch(
        self,
        parts: Iterable[tuple[Any, int | None]],
        step: Callable[[_Totals, Batch, int], None],
        called: Callbacks | None = None,
    ) -> dict[str, float]:
        strategy = self._strategy
        totals: dict[int, _Totals] = {}
        figures = 2 + 2 * len(self._metrics)

        def replica_step(batch: Batch, global_rows: int | None) -> None:
            replica = replica_context.current_replica("fit")
            if global_rows is None:
                global_rows = int(replica.all_reduce("SUM", np.int64(batch_length(batch))))
            step(totals.setdefault(int(replica.replica_id_in_sync_group), _Totals(figures)), batch, global_rows)

        def replica_sums() -> Array:
            replica = replica_context.current_replica("fit").replica_id_in_sync_group
            return totals.setdefault(int(replica), _Totals(figures)).sums

        num_batches = 0
        for part, global_rows in parts:
            if called is not None:
                called.call("on_train_batch_begin", num_batches, {})
            strategy.run(replica_step, args=(part, global_rows))
            if called is not None:
                called.call("on_train_batch_end", num_batches, {})
            num_batches += 1
            if called is not None and self.stop_training:
                break
        if not num_batches:
            raise ValueError("there are no data to go through")
        sums = np.asarray(strategy.reduce("SUM", strategy.run(replica_sums), axis=None))
        assert self._loss is not None, "checked by the callers"
        if self._loss.reduction is Reduction.SUM:
            sums = np.concatenate([[sums[0], num_batches], sums[2:]])
        names = ["loss", *(metric.name for metric in self._metrics)]
        return {name: keras_metrics.mean(*sums[2 * i : 2 * i + 2]) for i, name in enumerate(names)}

    def _train_step(self, totals: _Totals, batch: Batch, global_rows: int) -> None:
        with GradientTape() as tape:
            predictions, per_example, penalty = self._forward(batch, training=True)
            objective = ops.reduce_sum(per_example)
            assert self._loss is not None, "checked by fit"
            if self._loss.reduction is not Reduction.SUM:
                elements = global_rows * math.prod(per_example.shape[1:])
                objective = objective / per_example.dtype.type(max(elements, 1))
            if penalty is not None:
                objective = objective + losses.scale_regularization_loss(penalty)
        self._optimizer.minimize(objective, self.trainable_variables, tape=tape)
        self._count(totals, batch, predictions, per_example, penalty)

    def _test_step(self, totals: _Totals, batch: Batch, global_rows: int) -> None:
        del global_rows
        self._count(totals, batch, *self._forward(batch, training=False))

    def _forward(self, batch: Batch, training: bool) -> tuple[Any, Any, Any]:
        x, y, *weight = batch
        assert self._loss is not None, "checked by the callers"
        predictions = self(x, training=training)
        y = _as_column(y, predictions)
        per_example = losses.weighted(self._loss.call(y, predictions), *weight)
        penalties = self.losses
        return predictions, per_example, sum(penalties[1:], penalties[0]) if penalties else None

    def _count(self, totals: _Totals, batch: Batch, predictions: Any, per_example: Any, penalty: Any) -> None:
        assert self._loss is not None, "checked by the callers"
        _, y, *weight = batch
        values = per_example.numpy()
        total = float(values.sum(dtype=np.float64))
        if penalty is not None:
            share = values.size
            if self._loss.reduction is Reduction.SUM:
                share = 1 / replica_context.current_replica("fit").num_replicas_in_sync
            total += float(np.asarray(penalty)) * share
        totals.add(0, (total, values.size))
        if self._metrics:
            outputs = predictions.numpy()
            for i, metric in enumerate(self._metrics, start=1):
                totals.add(i, keras_metrics.weighted_sum(metric.measure(y, outputs), *weight))

    def _evaluate(self, x: Any, y: Any, sample_weight: Any, batch_size: int | None) -> dict[str, float]:
        return self._run_epoch(self._parts(GlobalBatches(x, y, sample_weight, batch_size).of_epoch(0)), self._test_step)

    # ------------------------------------------------------------ around it

    def _build_for(self, batch: Batch) -> None:
        """Build the model for rows like those of ``batch``, outside of replicas and tapes."""
        if not self.built or any(not layer.built for layer in self._sublayers()):
            is_current = replica_context.get_strategy() is self._strategy
            with nullcontext() if is_current else self._strategy.scope():
                self(map_structure(lambda rows: rows[:1], batch[0]))

    def _require_loss(self, caller: str) -> None:
        if self._loss is None:
            raise RuntimeError(f"{self.name} has no loss: call compile(optimizer, loss) before {caller}")

    def _report(self, verbose: int | str, title: str, logs: Mapping[str, float]) -> None:
        if verbose and getattr(self._strategy.extended, "rank", 0) == 0:
            _write_line(" - ".join([title, *(f"{name}: {value:.4f}" for name, value in logs.items())]))


class _Totals:
    """Sums and counts of one replica: ``[loss, elements, metric, examples, ...]``."""

    def __init__(self, length: int) -> None:
        self.sums = np.zeros(length)

    def add(self, figure: int, total_and_count: tuple[float, float]) -> None:
        """Add to the sum and the count of the figure of that number."""
        self.sums[2 * figure] += total_and_count[0]
        self.sums[2 * figure + 1] += total_and_count[1]


def _as_column(y: Any, predictions: Any) -> Any:
    """Return labels ``[b]`` of predictions with more axes as ``[b, 1]``, as the reference's ``fit`` does."""
    return np.asarray(y)[:, np.newaxis] if np.ndim(y) == 1 < len(predictions.shape) else y


def _params(layer: Layer) -> str:
    return f"{layer.count_params():,}" if layer.built else "not built"


def _write_line(line: str) -> None:
    sys.stdout.write(line + "\n")
