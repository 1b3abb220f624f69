"""Certificates and keys for a federation across sites: made once, never overwritten.

The authority (CA) signs the server's certificate, and sites check the server against it. Every site
has a key pair of its own, and the server accepts the sites whose public keys it has. Formats are
those of Flower's own programs: PEM certificates, OpenSSH keys on the curve P-384.
"""

import datetime
import ipaddress
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from ...cache import FedclipError
from ...cache.common.errors import first_line
from ...cache.common.files import check_name, regular

AUTHORITY, AUTHORITY_KEY = "ca.crt", "ca.key"
CERTIFICATE, CERTIFICATE_KEY = "server.crt", "server.key"

# Folder of the sites' public keys at the server.
SITES = "sites"

PRIVATE, PUBLIC = ".key", ".pub"

# Characters of a certificate's common name, by its standard (X.520).
_LONGEST = 64

DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Credentials:
    """How a site proves who it is, and the server too.

    Attributes:
        key: The site's private key, an elliptic curve's.
        authority: Certificate of the authority (CA) that signed the server's, PEM.
    """

    key: Any
    authority: bytes


def make_server(folder: Path, hosts: Sequence[str], days: int) -> list[Path]:
    """Make an authority and the server's certificate.

    The authority's key is needed only to sign another certificate later; if it is in `folder`, it
    signs this one.

    Args:
        folder: Gets ``ca.crt``, ``ca.key``, ``server.crt`` and ``server.key``.
        hosts: Names or IP addresses by which sites reach the server.
        days: For how long the certificate is valid.

    Returns:
        The files made.

    Raises:
        FedclipError: there is a certificate already.
    """
    for name in (CERTIFICATE, CERTIFICATE_KEY):
        refuse_existing(folder / name)
    files: dict[Path, bytes] = {}
    if (folder / AUTHORITY).exists() and (folder / AUTHORITY_KEY).exists():
        authority = _read_certificate(folder / AUTHORITY)
        authority_key = _read_key(folder / AUTHORITY_KEY)
    else:
        for name in (AUTHORITY, AUTHORITY_KEY):
            refuse_existing(folder / name)
        authority_key = ec.generate_private_key(ec.SECP384R1())
        authority = _certificate("fedclip authority", authority_key, 10 * 365)
        files[folder / AUTHORITY_KEY] = _private(authority_key)
        files[folder / AUTHORITY] = _pem(authority)
    key = ec.generate_private_key(ec.SECP384R1())
    certificate = _certificate(hosts[0][:_LONGEST], key, days, (authority, authority_key), hosts)
    files[folder / CERTIFICATE_KEY] = _private(key)
    files[folder / CERTIFICATE] = _pem(certificate)
    return _write(files)


def make_site(folder: Path, name: str) -> list[Path]:
    """Make a site's key pair, ``<name>.key`` and ``<name>.pub``.

    Raises:
        FedclipError: one of them exists.
    """
    check_name(name, "site")
    private, public = folder / f"{name}{PRIVATE}", folder / f"{name}{PUBLIC}"
    for path in (private, public):
        refuse_existing(path)
    key = ec.generate_private_key(ec.SECP384R1())
    line = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    content = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    return _write({private: content, public: line + f" {name}\n".encode()})


def read_sites(folder: Path) -> dict[str, bytes]:
    """Read the public keys of the sites that may join, as PEM by name.

    Raises:
        FedclipError: there are none, or one is damaged.
    """
    found: dict[str, bytes] = {}
    for path in sorted((folder / SITES).glob(f"*{PUBLIC}")):
        key = public_key_to_bytes(
            _read(path, "public key", serialization.load_ssh_public_key, ec.EllipticCurvePublicKey)
        )
        if key in found.values():
            raise FedclipError(f"{path}: is the key of another site, too; each needs its own")
        found[path.stem] = key
    if not found:
        raise FedclipError(
            f"{folder / SITES}: has no public key of a site (*{PUBLIC}); put those in that may join"
        )
    return found


def read_certificate(folder: Path) -> tuple[Path, Path]:
    """Find the server's certificate and its key.

    Raises:
        FedclipError: one is missing, or the certificate has expired.
    """
    paths = folder / CERTIFICATE, folder / CERTIFICATE_KEY
    for path in paths:
        if not regular(path).is_file():
            raise FedclipError(f"{path}: is missing; make it with fedclip keys, or ask for it")
    certificate = _read_certificate(paths[0])
    _read_key(paths[1])
    until = certificate.not_valid_after_utc
    if until < datetime.datetime.now(datetime.UTC):
        raise FedclipError(f"{paths[0]}: expired on {until:%Y-%m-%d}; make or ask for another one")
    return paths


def read_credentials(folder: Path) -> Credentials:
    """Read a site's private key and the authority's certificate.

    Raises:
        FedclipError: there is not exactly one key, or a file is missing or damaged.
    """
    keys = sorted(folder.glob(f"*{PRIVATE}"))
    if len(keys) != 1:
        found = ", ".join(path.name for path in keys) or "none"
        raise FedclipError(
            f"--keys {folder}: needs exactly one private key (*{PRIVATE}), and has {found}"
        )
    authority = folder / AUTHORITY
    if not regular(authority).is_file():
        raise FedclipError(f"{authority}: is missing; ask the server's operator for it")
    if keys[0].stat().st_mode & 0o077:
        raise FedclipError(f"{keys[0]}: others may read this private key; run chmod 600 {keys[0]}")
    key = _read(
        keys[0],
        "private key without a passphrase",
        lambda content: serialization.load_ssh_private_key(content, None),
        ec.EllipticCurvePrivateKey,
    )
    authorities = _read(authority, "certificate", x509.load_pem_x509_certificates, list)
    return Credentials(key, b"".join(map(_pem, authorities)))


def _certificate(
    name: str,
    key: Any,
    days: int,
    signer: tuple[x509.Certificate, Any] | None = None,
    hosts: Sequence[str] = (),
) -> Any:
    """Make a certificate, of an authority if nobody else signs it."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    issuer, issuer_key = (signer[0].subject, signer[1]) if signer else (subject, key)
    issuer_public = issuer_key.public_key()
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - DAY)
        .not_valid_after(now + days * DAY)
        .add_extension(x509.BasicConstraints(ca=signer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_public), critical=False
        )
        .add_extension(
            x509.KeyUsage(
                digital_signature=True,
                key_cert_sign=signer is None,
                crl_sign=signer is None,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
    )
    if hosts:
        names = [_host(host) for host in hosts]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def _host(host: str) -> Any:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(certificate: Any) -> bytes:
    content: bytes = certificate.public_bytes(serialization.Encoding.PEM)
    return content


def _private(key: Any) -> bytes:
    content: bytes = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return content


def _read(path: Path, what: str, load: Callable[[bytes], Any], kind: type) -> Any:
    """Read a key or a certificate.

    Raises:
        FedclipError: the file has none, or one of another kind.
    """
    try:
        found = load(regular(path).read_bytes())
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise FedclipError(f"{path}: is not a {what} ({first_line(error)})") from None
    if not isinstance(found, kind):
        raise FedclipError(
            f"{path}: is not the key of an elliptic curve; make it with fedclip keys"
        )
    return found


def _read_certificate(path: Path) -> Any:
    return _read(path, "certificate", x509.load_pem_x509_certificate, x509.Certificate)


def _read_key(path: Path) -> Any:
    return _read(
        path,
        "private key without a passphrase",
        lambda content: serialization.load_pem_private_key(content, None),
        object,  # an organization's authority may use RSA
    )


def refuse_existing(path: Path) -> None:
    """Refuse to replace a key or a certificate.

    Raises:
        FedclipError: there is something at `path`.
    """
    if path.exists() or path.is_symlink():
        raise FedclipError(f"{path}: exists, and keys are never overwritten; move it away first")


def _write(files: Mapping[Path, bytes]) -> list[Path]:
    """Write files that do not exist; the private keys so that nobody else can read them."""
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = 0o600 if path.suffix == PRIVATE else 0o644
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
    return [*files]
