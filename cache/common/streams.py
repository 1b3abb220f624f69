"""Standard output and error that never cost a user the work, whatever they are connected to."""

import io
import os
import sys
from typing import Any, TextIO


def open_streams() -> None:
    """Make the standard streams of this process safe to use.

    A closed one is connected to the null device, as the next file to be opened would take its
    place and get what is printed. A pipe whose reader has gone takes the rest without an error,
    and so do messages on standard error that cannot be written. Characters that the encoding
    lacks are escaped.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest descriptor that is free
    sys.stdin = sys.stdin or io.TextIOWrapper(io.FileIO(0, closefd=False))
    sys.stdout = _stream(sys.stdout, 1, "standard output")
    sys.stderr = _stream(sys.stderr, 2, None)


def has_reader(stream: TextIO) -> bool:
    """Return whether what is written to a standard stream still gets to somebody."""
    outlet = getattr(getattr(stream, "buffer", None), "raw", None)
    return not (isinstance(outlet, _Outlet) and outlet.dropping)


def _stream(stream: TextIO | None, descriptor: int, name: str | None) -> TextIO:
    return io.TextIOWrapper(
        io.BufferedWriter(_Outlet(descriptor, name)),
        encoding=stream.encoding if stream else "utf-8",
        errors="backslashreplace",
        line_buffering=descriptor == 2 or (stream is not None and stream.isatty()),
    )


class _Outlet(io.FileIO):
    """A descriptor that is written until that fails, and from then on drops everything.

    Args:
        descriptor: The descriptor.
        shown: Its name in an error, raised once; None if errors do not matter.

    Attributes:
        dropping: Whether writing failed, and everything is dropped.
    """

    def __init__(self, descriptor: int, shown: str | None) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._shown = shown
        self.dropping = False

    def write(self, content: Any, /) -> int:
        """Write bytes, and return how many."""
        try:
            return super().write(content)
        except OSError as error:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            self.dropping = True
            if self._shown is not None and not isinstance(error, BrokenPipeError):
                error.filename = self._shown
                raise
            return len(content)
