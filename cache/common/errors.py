"""Errors that a user can fix."""


class FedclipError(Exception):
    """Bad input; the message is one line, ``what: what is wrong; what to do``.

    The command line prints it after ``error:`` and exits with code 2.
    """


class CacheError(FedclipError):
    """A cache that cannot be read, trusted or used."""


class BusyError(CacheError):
    """A cache that another process is writing."""


def first_line(error: BaseException) -> str:
    """Return the first lines of an error's message on one line, at most 200 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:2]) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:197]}..."
