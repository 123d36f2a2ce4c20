"""The one error tree. Every message is one line that says what is wrong and what to do.

The exit codes are those of sysexits(3); the command line exits with the code of the error's class.
"""

from __future__ import annotations


class VnpError(Exception):
    """Base of all errors that vnp raises on purpose; str(error) is the line a user reads.

    may_pass: what is wrong may come right by itself (a full disk, a folder that is away), so that
    who has work in hand had better wait than give it up.
    """

    exit_code = 70
    may_pass = False


class UsageError(VnpError):
    """The command or its arguments are wrong (EX_USAGE)."""

    exit_code = 64


class DataError(VnpError):
    """The input's content is wrong (EX_DATAERR): names file, line and record."""

    exit_code = 65


class NoInputError(VnpError):
    """An input is missing or cannot be read (EX_NOINPUT)."""

    exit_code = 66


class UnavailableError(VnpError):
    """A service that is needed does not answer: Redis, vnpd (EX_UNAVAILABLE)."""

    exit_code = 69


class FullError(UnavailableError):
    """Redis has no memory for this now; nothing of it was done."""


class InternalError(VnpError):
    """A bug in vnp (EX_SOFTWARE)."""

    exit_code = 70


class AccountingError(InternalError):
    """The totals of a job do not add up: something of the input is unaccounted for."""


class OutputError(VnpError):
    """The output folder cannot be used: in use, another job's, no space (EX_CANTCREAT)."""

    exit_code = 73


class StoreError(OutputError):
    """An object store does not answer, or refuses (EX_IOERR)."""

    exit_code = 74
    may_pass = True


class HeldError(OutputError):
    """Somebody else has a lock. holder: what they say of themselves."""

    may_pass = True

    def __init__(self, message: str, holder: str) -> None:
        super().__init__(f"{message} (held by {holder or 'unknown'})")
        self.holder = holder


class FencedError(OutputError):
    """Another writer has taken the output folder over: nothing that this one does counts."""

    may_pass = True


class IdentityError(OutputError):
    """The output folder holds results of another identity (promise 6)."""


class CorruptionError(VnpError):
    """A file that vnp wrote is damaged: names the file (EX_IOERR)."""

    exit_code = 74


class PermissionDeniedError(VnpError):
    """The service may not read or write a path (EX_NOPERM)."""

    exit_code = 77


class ConfigError(VnpError):
    """The configuration, or a model it names, is wrong (EX_CONFIG)."""

    exit_code = 78
