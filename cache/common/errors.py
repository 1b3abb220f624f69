"""What a user did that cannot be carried out."""


class FedclipError(Exception):
    """Bad input: one line that names the thing, says what is wrong and what to do.

    The command line prints it after ``error:`` and exits with code 2.
    """


class CacheError(FedclipError):
    """A cache that cannot be read, trusted or used."""


class BusyError(CacheError):
    """A cache that another process is writing."""


def first_line(error: BaseException) -> str:
    """Give the beginning of an error's message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:2]) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:197]}..."
