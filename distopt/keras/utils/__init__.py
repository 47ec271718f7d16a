"""What of ``tf.keras.utils`` is offered: data that a function makes, in :mod:`distopt.keras.utils.experimental`."""

from distopt.keras.utils import experimental

__all__ = ["experimental"]
