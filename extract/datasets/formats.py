"""Formats: which images are decoded, and which files are images or texts."""

import functools
import os
import warnings
from collections.abc import Callable

from .registry import SampleKind

# Pillow reads many more formats, but some run other programs, and few are well maintained.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")

# Text files may begin like files of these formats, so Pillow must be able to open the file.
_AMBIGUOUS = frozenset({"BMP", "PPM"})

# Files with these suffixes are images, whether or not they can be decoded.
_SUFFIXES = frozenset(
    {
        *("avif", "avifs"),
        "bmp",
        "gif",
        *("jfif", "jpe", "jpeg", "jpg", "mpo"),
        *("j2c", "j2k", "jp2", "jpc", "jpf", "jpx"),
        *("apng", "png"),
        *("pbm", "pfm", "pgm", "pnm", "ppm"),
        *("tif", "tiff"),
        "webp",
        # and of formats that are not decoded
        *("dcm", "dib", "exr", "heic", "heif", "hif", "ico", "jxl", "jxr", "pcx", "psd", "svg"),
        *("svgz", "tga", "xbm", "xpm"),
        # raw files of cameras
        *("arw", "cr2", "cr3", "dng", "nef", "orf", "raf", "rw2"),
    }
)

_TEXT_SUFFIX = ".txt"

# Enough for DICOM, whose signature comes last.
_HEAD_BYTES = 132

_HEIF_BRANDS = frozenset(
    {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevm", b"hevs", b"hevx", b"mif1", b"msf1"}
)
_SIGNATURES = (
    (0, b"8BPS", "PSD"),
    (0, b"v/1\x01", "OpenEXR"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (128, b"DICM", "DICOM"),
)


def is_sample(path: str, samples: SampleKind) -> bool:
    """Return whether a file is one of a dataset's images or texts; see `is_image`."""
    return is_image(path) if samples == "images" else path.lower().endswith(_TEXT_SUFFIX)


def is_image(path: str) -> bool:
    """Return whether a file is an image, by its suffix or else by its first bytes.

    A file that cannot be read counts as one, so that decoding reports the reason.
    """
    if os.path.splitext(path)[1][1:].lower() in _SUFFIXES:  # noqa: PTH122
        return True
    try:
        head = _head(path)
    except OSError:
        return True
    if foreign_format(head):
        return True
    accepted = [name for name, accept in _signature_checks() if accept(head)]
    return not _AMBIGUOUS.issuperset(accepted) or (bool(accepted) and _opens(path))


def foreign_format(head: bytes) -> str:
    """Return the name of an image format that Pillow cannot read, or not on every machine.

    Args:
        head: The first bytes of a file, or all of them.

    Returns:
        An empty string if they are not of such a format.
    """
    if head[4:8] == b"ftyp":
        brands = head[8 : min(int.from_bytes(head[:4], "big"), _HEAD_BYTES)]
        if b"avif" in brands or b"avis" in brands:
            return "AVIF"
        return "HEIC" if brands[:4] in _HEIF_BRANDS else ""
    return next(
        (name for start, text, name in _SIGNATURES if head[start : start + len(text)] == text), ""
    )


def _head(path: str) -> bytes:
    handle = os.open(path, os.O_RDONLY)
    try:
        return os.read(handle, _HEAD_BYTES)
    finally:
        os.close(handle)


@functools.cache
def _signature_checks() -> tuple[tuple[str, Callable[[bytes], object]], ...]:
    """List Pillow's own checks of a file's first bytes."""
    # Imported only if needed; importing a plugin registers its format.
    from PIL import (
        AvifImagePlugin,  # noqa: F401
        BmpImagePlugin,  # noqa: F401
        GifImagePlugin,  # noqa: F401
        Image,
        Jpeg2KImagePlugin,  # noqa: F401
        JpegImagePlugin,  # noqa: F401
        PngImagePlugin,  # noqa: F401
        PpmImagePlugin,  # noqa: F401
        TiffImagePlugin,  # noqa: F401
        WebPImagePlugin,  # noqa: F401
    )

    checks = ((name, Image.OPEN[name][1]) for name in FORMATS if name in Image.OPEN)
    return tuple((name, check) for name, check in checks if check is not None)


def _opens(path: str) -> bool:
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(path, formats=FORMATS):
                return True
        except Exception:  # broken files raise errors of many types
            return False
