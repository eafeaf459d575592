"""The errors of the planner and its exit codes.

0 done, 1 failed, 2 usage or bad input, 3 the fit is not trustworthy, 130 interrupted. A fit that is
not trustworthy is a result, not an error: it is carried as a `Refusal` (plan.py).
"""

EXIT_FAILED = 1
EXIT_INPUT = 2
EXIT_UNTRUSTED = 3
EXIT_INTERRUPTED = 130


class PlannerError(Exception):
    """Something the user can act on; printed without a traceback."""

    exit_code = EXIT_FAILED


class InputError(PlannerError):
    """A path, a sweep or an option that cannot be used as it is."""

    exit_code = EXIT_INPUT
