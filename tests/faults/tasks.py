"""Tasks that misbehave, or draw at random, for jobs that name them in their configuration."""

from __future__ import annotations

from typing import Any, ClassVar

from distopt import ops, replica_context
from distopt.keras import Sequential
from distopt.keras.layers import Dropout
from distopt.keras.optimizers import SGD
from distopt.tasks.digits import Digits
from distopt.types import Array


class FailsOnOneReplica(Digits):
    """Digits, but replica 5 raises in its fourth step."""

    name: ClassVar[str] = "fails_on_one_replica"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._calls = 0

    def per_example_loss(self, model: Any, x: Array, y: Array) -> Any:
        if replica_context.current_replica("the task").replica_id_in_sync_group == 5:
            self._calls += 1
            if self._calls == 4:
                raise ArithmeticError("the data of this replica are bad")
        return super().per_example_loss(model, x, y)


class DriftsOnOneReplica(SGD):
    """SGD, but the process of replica 5 sets another learning rate before its fourth step."""

    def apply_gradients(self, *arguments: Any, **options: Any) -> Any:
        replica = replica_context.current_replica("the optimizer").replica_id_in_sync_group
        if replica == 5 and int(self.iterations.storage) == 3:
            self.learning_rate = 0.5
        return super().apply_gradients(*arguments, **options)


class WithDropout(Digits):
    """Digits, of which most pixels are left out at random."""

    name: ClassVar[str] = "with-dropout"

    def build(self, seed: int) -> Sequential:
        """Return the perceptron behind a layer of dropout."""
        perceptron = super().build(seed)
        model = Sequential([Dropout(0.5), Dropout(0.1, seed=3), *perceptron.layers], name=self.name)
        model.build((None, 64))
        return model

    def per_example_loss(self, model: Any, x: Array, y: Array) -> Any:
        """Return the cross-entropy of each row, in training."""
        return ops.softmax_cross_entropy(y, model(x, training=True))
