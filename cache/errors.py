"""What a user did that cannot be carried out."""


class FedclipError(Exception):
    """Bad input: one line that names the thing, says what is wrong and what to do.

    The command line prints it after ``error:`` and exits with code 2.
    """


class CacheError(FedclipError):
    """A cache that cannot be read, trusted or used."""


class BusyError(CacheError):
    """A cache that another process is writing."""
