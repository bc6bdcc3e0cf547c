"""The server's side of TLS: a certificate that is renewed on disk is what the next handshake shows."""

from __future__ import annotations

import ssl
from functools import partial
from pathlib import Path

import grpc

from plaudit.certificates import load_pair
from plaudit_server.config import ServerSettings
from plaudit_server.metrics import ServerMetrics
from plaudit_server.reread import Reread


def credentials(settings: ServerSettings, metrics: ServerMetrics) -> grpc.ServerCredentials | None:
    """For one port, to be made anew for each; None: no TLS.

    With tls_client_ca, whoever has no certificate that it signed does not get through the handshake.
    Raises OSError if a file cannot be read, ValueError if it is not what it should be.
    """
    certificate, key, client_ca = settings.tls_certificate, settings.tls_key, settings.tls_client_ca
    if certificate is None or key is None:
        return None
    paths = [certificate, key, *([client_ca] if client_ca else [])]
    files = Reread("TLS certificates", paths, partial(_read, certificate, key, client_ca), metrics)
    shown = files()

    def renewed() -> grpc.ServerCertificateConfiguration | None:
        """gRPC asks at every handshake; None: as before."""
        nonlocal shown
        before, shown = shown, files()
        return None if shown is before else shown

    return grpc.dynamic_ssl_server_credentials(
        shown,
        renewed,  # type: ignore[arg-type]  # the stubs do not know of None
        require_client_authentication=client_ca is not None,
    )


def _read(certificate: Path, key: Path, client_ca: Path | None) -> grpc.ServerCertificateConfiguration:
    # gRPC would say nothing of a key that does not fit, but to its own log; Python's ssl raises.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    load_pair(context, certificate, key)
    trusted = None
    if client_ca is not None:
        try:
            context.load_verify_locations(client_ca)
        except ssl.SSLError as error:
            raise ValueError(f"{client_ca} must hold the clients' CA certificates, as PEM ({error.reason})") from None
        trusted = client_ca.read_bytes()
    pair = (key.read_bytes(), certificate.read_bytes())
    return grpc.ssl_server_certificate_configuration([pair], root_certificates=trusted)
