"""The errors a user can meet. Each message names the value, the limit and the way out."""


class ScalewrightError(Exception):
    """Something the user can act on; jobs print the message without a traceback.

    `exit_code`: 1 failed, 2 usage or config, 75 worth another attempt.
    """

    exit_code = 1


class ConfigError(ScalewrightError):
    """A config, plan or command line that cannot be run as it is."""

    exit_code = 2


class DataError(ScalewrightError):
    """Media, a shard or a catalogue that cannot be used."""


class CheckpointError(ScalewrightError):
    """A checkpoint that is missing, incomplete or belongs to another run."""


class StorageError(ScalewrightError):
    """No checkpoint could be written for so long that training on would be lost work.

    `cause` is what a failed attempt is put down to: storage, and no node.
    """

    exit_code = 75
    cause = "storage"


class FencedError(ScalewrightError):
    """A newer attempt took this one's place: it must write nothing more into the run folder."""

    exit_code = 75


class DivergedError(ScalewrightError):
    """The loss or the gradient is no longer finite."""


class CorruptionError(ScalewrightError):
    """A rank computed something else than its peers, or than itself, from the same numbers.

    `ranks` are those it lies among: one, or several that could not be told apart. `step` (from 1)
    has not changed the weights. `confidence`: 1 where a single rank is proven wrong.
    """

    def __init__(self, message: str, ranks: tuple[int, ...], step: int, confidence: float) -> None:
        super().__init__(message, ranks, step, confidence)  # all of them, to survive pickling
        self.ranks, self.step, self.confidence = ranks, step, confidence

    def __str__(self) -> str:
        return str(self.args[0])

    @property
    def culprit(self) -> int | None:
        """The one rank that is named, if it is one."""
        return self.ranks[0] if len(self.ranks) == 1 else None
