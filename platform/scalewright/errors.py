"""The errors a user can meet. Each message names the value, the limit and the way out."""


class ScalewrightError(Exception):
    """Something the user can act on; jobs print the message without a traceback.

    `exit_code`: 1 failed, 2 usage or config.
    """

    exit_code = 1


class ConfigError(ScalewrightError):
    """A config, plan or command line that cannot be run as it is."""

    exit_code = 2


class DataError(ScalewrightError):
    """Media, a shard or a catalogue that cannot be used."""


class CheckpointError(ScalewrightError):
    """A checkpoint that is missing, incomplete or belongs to another run."""


class DivergedError(ScalewrightError):
    """The loss or the gradient is no longer finite."""
