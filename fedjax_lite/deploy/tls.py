"""Who may talk to whom: certificates on both sides, and plain text on one machine only."""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import ssl
from pathlib import Path
from typing import Any

from fedjax_lite.checks.arguments import as_path, shown


@dataclasses.dataclass(frozen=True)
class TLS:
    """The files by which one side of a connection proves who it is, and checks the other.

    Both sides show a certificate that the authority signed, under TLS 1.2 or newer. A server's
    must name the host that clients connect to; a client's common name must be `common_name` of its
    id, so that nobody answers for somebody else. Keep the authority for this federation: whoever
    has a certificate of it may connect under the name in it.

    Raises:
      TypeError: if a field is no path.
      ValueError: if a file cannot be read, or a key is not the certificate's.

    Example:
      >>> TLS("missing.pem", "missing.key", "authority.pem")
      Traceback (most recent call last):
      ...
      ValueError: certificate must be a file of PEM, got missing.pem, which is not there; \
fl.deploy.make_certificates makes some to try
    """

    certificate: str | os.PathLike[str]
    """PEM: its own certificate, and those between it and the authority."""
    key: str | os.PathLike[str]
    """PEM: its private key, which nobody else may read."""
    authority: str | os.PathLike[str]
    """PEM: of who signs the other side's certificate."""

    def __post_init__(self) -> None:
        """Raises TypeError or ValueError where a field is no file."""
        for field in dataclasses.fields(self):
            path = as_path(getattr(self, field.name), field.name)
            if not path.is_file():
                raise ValueError(
                    f"{field.name} must be a file of PEM, got {path}, which is not there; "
                    "fl.deploy.make_certificates makes some to try"
                )

    def context(self, *, server: bool) -> ssl.SSLContext:
        """The settings of a side: TLS 1.2 or newer, the other's certificate demanded and checked.

        Raises:
          ValueError: if the files do not fit together.
        """
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        made.minimum_version = ssl.TLSVersion.TLSv1_2
        made.verify_mode = ssl.CERT_REQUIRED
        try:
            made.load_verify_locations(cafile=str(Path(self.authority)))
            made.load_cert_chain(str(Path(self.certificate)), str(Path(self.key)))
        except OSError as error:  # ssl.SSLError among them
            raise ValueError(
                f"certificate, key and authority must be PEM that fit together, got "
                f"{self.certificate}, {self.key}, {self.authority}: {error}"
            ) from None
        return made


def common_name(client_id: int) -> str:
    """The name in a client's certificate.

    Example:
      >>> common_name(3)
      'client-3'
    """
    return f"client-{client_id}"


def name_in(certificate: Any) -> str | None:
    """The one common name of a certificate, as `ssl` shows it; None where there is not one.

    Example:
      >>> name_in({"subject": ((("commonName", "client-3"),),)})
      'client-3'
    """
    parts = [pair for group in (certificate or {}).get("subject", ()) for pair in group]
    names = [value for kind, value in parts if kind == "commonName"]
    return names[0] if len(names) == 1 else None


def check_side(host: Any, port: Any, tls: Any, *, listens: bool) -> None:
    """Raises where a place to listen at or to connect to makes no sense, or lies open.

    Args:
      host: an address; of a server to connect to, a name as well.
      port: 1 to 65535, or 0 to listen at any.
      tls: `TLS`, or None for plain text, which must not leave the machine.
      listens: whether the place is to listen at.

    Raises:
      TypeError: if one is of another type.
      ValueError: if plain text would leave the machine, or the address is none.

    Example:
      >>> check_side("127.0.0.1", 8080, None, listens=True)
      >>> check_side("192.0.2.1", 8080, None, listens=True)
      Traceback (most recent call last):
      ...
      ValueError: tls must be given where host is not this machine (127.0.0.1, ::1), got host \
'192.0.2.1' in plain text; fl.deploy.TLS(certificate, key, authority)
    """
    if not isinstance(host, str):
        raise TypeError(f"host must be a str, got {shown(host)}; '127.0.0.1'")
    low = 0 if listens else 1
    if isinstance(port, bool) or not isinstance(port, int):
        raise TypeError(f"port must be an int, got {shown(port)}; 8443")
    if not low <= port < 2**16:
        raise ValueError(f"port must lie in [{low}, 65536), got {port}; 8443")
    if tls is not None and not isinstance(tls, TLS):
        raise TypeError(
            f"tls must be TLS or None, got {shown(tls)}; fl.deploy.TLS(certificate, key, authority)"
        )
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        if listens:
            raise ValueError(
                f"host must be the one address to listen at, got {host!r}; '127.0.0.1'"
            ) from None
        address = None
    is_here = host == "localhost" if address is None else address.is_loopback
    if tls is None and not is_here:
        raise ValueError(
            "tls must be given where host is not this machine (127.0.0.1, ::1), got host "
            f"{host!r} in plain text; fl.deploy.TLS(certificate, key, authority)"
        )
