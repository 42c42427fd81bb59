"""make_certificates(): keys and certificates of a federation that is tried out."""

from __future__ import annotations

import datetime
import ipaddress
import os
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_lite.checks.arguments import as_path, check_count, shown
from fedjax_lite.deploy.tls import TLS, common_name


class Certificates(NamedTuple):
    """Of one federation."""

    server: TLS
    clients: tuple[TLS, ...]
    """By id; each belongs on its client's machine alone, with the authority's certificate."""


def make_certificates(
    folder: str | os.PathLike[str], *, num_clients: int, host: str, days: int = 30
) -> Certificates:
    """An authority, a certificate of the server and one of every client, signed by it, as PEM.

    For tests and trials on one machine, where all keys lie in one folder for a moment. In earnest
    every machine makes its own key, and an authority that you trust signs it under the same names.
    The authority's key is forgotten: nobody can sign another one.

    Args:
      folder: made where it does not exist; nothing in it is overwritten.
      num_clients: `N`; client `i` is ``client-i``.
      host: address or name of the server.
      days: until they expire.

    Returns:
      `Certificates`.

    Raises:
      TypeError, ValueError: if an argument makes no sense.
      FileExistsError: if there are some already.
      ImportError: without the extra ``crypto``.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     made = make_certificates(folder, num_clients=2, host="127.0.0.1")
      ...     sorted(path.name for path in Path(folder).glob("*.pem"))
      ['authority.pem', 'client-0.pem', 'client-1.pem', 'server.pem']
    """
    check_count(num_clients, "num_clients", minimum=1)
    check_count(days, "days", minimum=1)
    if not isinstance(host, str):
        raise TypeError(f"host must be a str, got {shown(host)}; '127.0.0.1'")
    if not host:
        raise ValueError("host must be an address or a name, got ''; '127.0.0.1'")
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import ExtendedKeyUsageOID as Use
        from cryptography.x509.oid import NameOID
    except ImportError as error:
        raise ImportError("certificates need pip install 'fedjax_lite[crypto]'") from error
    place = as_path(folder, "folder")
    place.mkdir(parents=True, exist_ok=True)
    now = datetime.datetime.now(datetime.UTC)

    def name(text: str) -> Any:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    def signed(subject: str, public: Any, *extensions: Any) -> Any:
        builder = (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name("authority"))
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()),
                critical=False,
            )
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical=critical)
        return builder.sign(authority, hashes.SHA256())

    def side(subject: str, use: Any, *extensions: Any) -> TLS:
        key = ec.generate_private_key(ec.SECP256R1())
        ends = ((x509.BasicConstraints(ca=False, path_length=None), True), (use, False))
        certificate = signed(subject, key.public_key(), *ends, *extensions)
        paths = [place / f"{subject}.{ending}" for ending in ("pem", "key")]
        _write(paths[1], _private(key))
        _write(paths[0], _pem(certificate))
        return TLS(paths[0], paths[1], place / "authority.pem")

    authority = ec.generate_private_key(ec.SECP256R1())
    may_sign = x509.KeyUsage(
        **dict.fromkeys(_USES, False) | {"key_cert_sign": True, "crl_sign": True}
    )
    own = signed(
        "authority",
        authority.public_key(),
        (x509.BasicConstraints(ca=True, path_length=0), True),
        (may_sign, True),
    )
    _write(place / "authority.pem", _pem(own))
    try:
        at: Any = x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        at = x509.DNSName(host)
    of_server, of_client = (
        x509.ExtendedKeyUsage([use]) for use in (Use.SERVER_AUTH, Use.CLIENT_AUTH)
    )
    server = side("server", of_server, (x509.SubjectAlternativeName([at]), False))
    return Certificates(server, tuple(side(common_name(i), of_client) for i in range(num_clients)))


_USES = (
    *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"),
    *("key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
)


def _pem(certificate: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM)


def _private(key: Any) -> bytes:
    from cryptography.hazmat.primitives import serialization as form

    return key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())


def _write(path: Path, data: bytes) -> None:
    """A new file that its owner alone may read."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
