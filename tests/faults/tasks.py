"""Tasks that misbehave, for jobs that name them in their configuration."""

from __future__ import annotations

from typing import Any, ClassVar

from distopt import replica_context
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
