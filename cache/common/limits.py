"""How much may be unpacked from how little: more is a bomb, or nothing that we can use."""

from rich.filesize import decimal

from .errors import FedclipError

# Features and image files hardly shrink; what does by a hundred is small.
_ALWAYS_FINE = 1 << 30
_TIMES = 100


def check_unpacked(what: str, packed: int, unpacked: int) -> None:
    """Refuse what would fill the memory from a small file.

    Raises:
        FedclipError: over 1 GiB would be unpacked from under a hundredth of it.
    """
    if unpacked > max(_ALWAYS_FINE, _TIMES * packed):
        raise FedclipError(
            f"{what} would unpack {decimal(packed)} to {decimal(unpacked)}; if that is meant, "
            "write it without compression"
        )
