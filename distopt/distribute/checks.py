"""What a strategy does about uses that it can tell to be wrong, or that only you can."""

from __future__ import annotations

from typing import Literal, get_args, get_type_hints

import msgspec

Action = Literal["raise", "log", "ignore"]
"""``raise`` the error of docs/mistakes.md before a variable changes; ``log`` it once, as a warning; ``ignore``."""

NonFinite = Literal["raise", "skip", "ignore"]
"""``raise``; or ``skip`` the step: no variable, slot or iteration changes; or ``ignore``, as the reference does."""


class Checks(msgspec.Struct, frozen=True, kw_only=True):
    """What is done about each of some mistakes; set as ``strategy.extended.checks``. Those not named here always raise.

    ``reduced_by_hand``: gradients that ``all_reduce`` returned are aggregated again. ``aggregated_twice``: the
    same inside of a hook. ``mean_taken_twice``: the mean over replicas of gradients of a loss that was divided by the
    global batch.

    What the reference allows, and what can be meant so, is only logged: ``never_reduced``, copies of a variable that
    drift apart because nobody reduced their gradients; ``local_mean_loss``, gradients of a mean over a replica's own
    examples that are summed.

    Off unless asked for: ``applied_twice``, the same gradient for the same variable in two steps; ``non_finite``, a
    gradient that is infinite or not a number after aggregation.

    Raises: ValueError for a value that is not among those allowed.

    >>> Checks(non_finite="skip").local_mean_loss, Checks.strict().local_mean_loss
    ('log', 'raise')
    """

    reduced_by_hand: Action = "raise"
    aggregated_twice: Action = "raise"
    mean_taken_twice: Action = "raise"
    never_reduced: Action = "log"
    local_mean_loss: Action = "log"
    applied_twice: Action = "ignore"
    non_finite: NonFinite = "ignore"

    def __post_init__(self) -> None:
        for name, allowed in get_type_hints(Checks).items():
            value = getattr(self, name)
            if value not in get_args(allowed):
                raise ValueError(f"{name} must be one of {', '.join(get_args(allowed))}, not {value!r}")

    @classmethod
    def strict(cls) -> Checks:
        """Return the checks that raise for everything."""
        return cls(never_reduced="raise", local_mean_loss="raise", applied_twice="raise", non_finite="raise")
