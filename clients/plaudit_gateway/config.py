"""Settings of plaudit-gateway. Nothing heavy is imported here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from plaudit.addresses import is_loopback
from plaudit.settings import ASPECTS, ProgramSettings

_ADDRESS = re.compile(r"\S+:\d{1,5}")


class GatewaySettings(ProgramSettings):
    """HTTP in front of Plaudit's servers: OpenAI's chat API, votes, the loop, and the web page."""

    listen: str = "127.0.0.1:8080"
    """Where HTTP is served, HOST:PORT; port 0: any free one (it is printed)."""
    server: str = "127.0.0.1:50051"
    """The servers' public address, HOST:PORT; several of them with commas between."""
    retries: Annotated[int | None, Field(ge=0)] = None
    """How often a call that a server refuses, or that reaches none, is made again; default: as often as there are other
    addresses in --server. Where one address is several servers' name, say 2: the next one is another's turn."""
    control: str | None = None
    """A server's control address, HOST:PORT: for the list of versions and for the loop; without it there is neither."""
    aspects: list[str] = Field(default=[*ASPECTS], min_length=1)
    """What the web page asks votes for, with commas between: as the servers are told, the same first. The gRPC API does
    not say it."""
    server_tls: bool = False
    """Talk TLS to the servers, whose certificates are signed by one of the CAs that gRPC trusts."""
    server_ca: Path | None = None
    """Talk TLS to the servers; who signs their certificates, PEM."""
    client_certificate: Path | None = None
    """The gateway's own certificate chain, PEM, for servers that ask for one. Its permissions are then those of
    everybody who brings no key."""
    client_key: Path | None = None
    """Its unencrypted private key, PEM."""
    observe_key_file: Path | None = None
    """An API key with the permission `observe`, shown for whoever reads the loop without a key."""
    tls_certificate: Path | None = None
    """Certificate chain of the HTTP port, PEM; renewed on disk, new connections get the new one."""
    tls_key: Path | None = None
    """Its unencrypted private key, PEM."""
    allow_insecure: bool = False
    """Listen beyond loopback without TLS: behind a proxy that has it."""
    allow_origin: list[str] = Field(default=[])
    """Origins of other web pages that may call this API, for instance https://app.example.org; default: none may."""
    allow_host: list[str] = Field(default=[])
    """Names under which this gateway is called, beside those of loopback. When it listens on loopback, or if any is
    given, requests for other names are refused."""
    max_body_bytes: Annotated[int, Field(ge=1024)] = 4 << 20
    """The largest request body."""
    head_seconds: Annotated[float, Field(gt=0)] = 10.0
    """How long a connection may stay open before the head of its next request is there."""
    body_seconds: Annotated[float, Field(gt=0)] = 30.0
    """How long a request body may take to arrive."""
    max_connections: Annotated[int, Field(ge=1)] = 1024
    """Connections open at once; one more takes the place of the one that has waited longest for a request's head, or is
    closed if requests run on all."""
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = 0
    """Port of Prometheus metrics; 0: none."""
    metrics_host: str = "127.0.0.1"
    """Address that metrics are served at, open to whoever reaches it; they name no user and hold no text."""
    drain_seconds: Annotated[int, Field(ge=0)] = 30
    """How long running requests may take to finish after SIGTERM."""
    exit_with_parent: bool = False
    """Also stop when standard input ends (for supervisors)."""

    @model_validator(mode="after")
    def _check(self) -> GatewaySettings:
        for name, address in (("listen", self.listen), ("server", self.server), ("control", self.control)):
            for one in (address or "127.0.0.1:0").split(","):
                if not _ADDRESS.fullmatch(one):
                    raise ValueError(f"{name} ({one}) must be HOST:PORT, for instance 127.0.0.1:8080")
        for certificate, key in (("tls_certificate", "tls_key"), ("client_certificate", "client_key")):
            if (getattr(self, certificate) is None) != (getattr(self, key) is None):
                names = " and ".join((certificate.replace("_", "-"), key.replace("_", "-")))
                raise ValueError(f"{names} belong together; give both, or neither")
        for origin in self.allow_origin:
            if not re.fullmatch(r"https?://[^/\s*]+", origin):
                raise ValueError(
                    f"allow-origin ({origin}) must be one origin, for instance https://app.example.org: no path, no *"
                )
        if self.tls_certificate is None and not self.allow_insecure and not is_loopback(self.listen):
            raise ValueError(
                f"listen ({self.listen}) can be reached from other machines, and API keys travel on it; give "
                "tls-certificate and tls-key, listen on 127.0.0.1, or say --allow-insecure"
            )
        return self

    @property
    def hosts(self) -> frozenset[str] | None:
        """Names, without port, that requests may be for; None: all."""
        if not self.allow_host and not is_loopback(self.listen):
            return None
        own = self.listen.rpartition(":")[0].lower()
        return frozenset({"localhost", "127.0.0.1", "[::1]", own, *(host.lower() for host in self.allow_host)})
