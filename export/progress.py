"""How far a long step of an export is."""

from collections.abc import Callable

Progress = Callable[[float], None]  # is called with the share of the step that is done, from 0 to 1


def no_progress(_: float) -> None:
    """Tells nobody."""


class Work:
    """A step of which parts are done one after another."""

    def __init__(self, progress: Progress, whole: float) -> None:
        """
        Args:
            whole: the work of all parts together, in any unit, or the most that it can be.
        """
        self._progress, self._whole, self._done = progress, whole, 0.0

    def done(self, part: float = 1.0) -> None:
        """So much more is done."""
        self._done += part
        self._progress(min(1.0, self._done / self._whole))
