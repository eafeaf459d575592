"""What was found in the data or the fit that a reader must know."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One message: the value, the limit and the way out.

    `code` is its stable name in snake_case. With `refuses` nothing that rests on these data is to
    be trusted: the exit code is 3 unless forced.
    """

    code: str
    text: str
    refuses: bool = False
