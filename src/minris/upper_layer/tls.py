"""TLS: what both doors and our own calls speak, and whose certificates we trust."""

import functools
import ssl
from pathlib import Path
from typing import Any

from minris.config.ini import Config, Device
from minris.upper_layer.caller import NotSecured

# forward secret and authenticated; no CBC (RFC 9325 4.2, PS3.15 B.12); TLS 1.3 has no others
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
Files = tuple[Path | None, Path | None, Path | None]


def tls_context(protocol: int, certificate: Path | None, key: Path | None) -> ssl.SSLContext:
    """Return a context of TLS 1.2 and later that shows a certificate. Raises OSError, ssl.SSLError."""
    made = ssl.SSLContext(protocol)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.set_ciphers(CIPHERS)
    if certificate:
        made.load_cert_chain(certificate, key)
    return made


def tls_files(config: Config) -> Files:
    """Return our certificate, its key, and the authorities of the devices that we call."""
    dicom = config.dicom
    names = dicom.tls_certificate, dicom.tls_key, dicom.tls_ca or dicom.tls_client_ca
    certificate, key, authorities = (config.directory / name if name else None for name in names)
    return certificate, key, authorities


@functools.lru_cache(maxsize=8)
def _calling_context(files: Files, read_at: tuple[int, ...], named: bool) -> ssl.SSLContext:
    """Return the context for calls, made anew with its files.

    read_at  when the files were last changed
    named    whether the certificate must name the host that is called
    """
    certificate, key, authorities = files
    made = tls_context(ssl.PROTOCOL_TLS_CLIENT, certificate, key)
    made.check_hostname = named
    if authorities:
        made.load_verify_locations(authorities)
    else:
        made.load_default_certs()
    return made


def calling_context(config: Config, named: bool) -> ssl.SSLContext:
    """Return the context for calls to devices. Raises NotSecured for files that cannot be read."""
    files = tls_files(config)
    try:
        read_at = tuple(path.stat().st_mtime_ns for path in files if path)
        return _calling_context(files, read_at, named)
    except OSError as error:  # ssl.SSLError is one
        raise NotSecured(f"cannot read the files of TLS: {error}") from None


def way_to(config: Config, device: Device) -> dict[str, Any]:
    """Return how Caller.open reaches a device: its address, and TLS if it is set. Raises NotSecured."""
    secured = device.tls != "no"
    tls = {"ssl": calling_context(config, device.tls == "yes")} if secured else {}
    return {"address": (device.host, device.port), **tls}
