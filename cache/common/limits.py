"""Limits on unpacking: data that exceeds them is a decompression bomb, or of no use here."""

from rich.filesize import decimal

from .errors import FedclipError

# Features and image files hardly compress; files that shrink a hundredfold are small.
_ALWAYS_FINE = 1 << 30
_TIMES = 100


def check_unpacked(what: str, packed: int, unpacked: int) -> None:
    """Refuse a small file that would fill the memory when unpacked.

    Raises:
        FedclipError: the unpacked size is over 1 GiB and over 100 times the packed size.
    """
    if unpacked > max(_ALWAYS_FINE, _TIMES * packed):
        raise FedclipError(
            f"{what} would unpack {decimal(packed)} to {decimal(unpacked)}; if that is intended, "
            "save it without compression"
        )
