"""How to reach Kafka safely: the part of an event log's URL that says so. Secrets stand in files, never in the URL.

    kafka://HOST:PORT?security=SASL_SSL&ca=FILE&sasl=SCRAM-SHA-512&username=NAME&password-file=FILE
    kafka://HOST:PORT?security=SSL&ca=FILE&certificate=FILE&key=FILE

So a URL can be shown in a log, and a mounted secret is all that a cluster needs. The files are read whenever a
connection is made: a password or certificate that is renewed in its file is what the next one uses.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar, get_args

Protocol = Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]
Mechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]

T = TypeVar("T", bound=str)

PARAMETERS = ("security", "ca", "certificate", "key", "sasl", "username", "password-file")
"""Names in the URL's query."""


@dataclass(frozen=True, slots=True)
class KafkaSecurity:
    """TLS and SASL of the connections to Kafka's brokers; by default neither."""

    protocol: Protocol = "PLAINTEXT"
    ca: Path | None = None
    """Certificates of the CAs that may have signed the brokers' certificates, PEM; None: those of the system."""
    certificate: Path | None = None
    """Our own certificate chain, PEM (mutual TLS)."""
    key: Path | None = None
    """Its unencrypted private key, PEM."""
    mechanism: Mechanism | None = None
    username: str | None = None
    password_file: Path | None = None
    """Holds the password, in UTF-8; white space at its end is not part of it."""

    @classmethod
    def from_query(cls, query: Mapping[str, str]) -> KafkaSecurity:
        """What the parameters of a URL say. Raises ValueError, naming the parameter that is wrong."""
        for name, value in query.items():
            if name not in PARAMETERS:
                raise ValueError(f"{name}: not a parameter; there are prefix, {', '.join(PARAMETERS)}")
            if not value:
                raise ValueError(f"{name}: is empty; give a value, or leave it out")
        protocol = _one_of("security", query.get("security", "PLAINTEXT"), get_args(Protocol))
        tls, sasl = protocol in ("SSL", "SASL_SSL"), protocol.startswith("SASL_")
        for name in ("ca", "certificate", "key"):
            if name in query and not tls:
                raise ValueError(f"{name}: needs security=SSL or SASL_SSL, not {protocol}")
        if ("certificate" in query) != ("key" in query):
            raise ValueError("certificate and key belong together; give both, or neither")
        for name in ("sasl", "username", "password-file"):
            if (name in query) != sasl:
                needs = "is missing" if sasl else "needs security=SASL_SSL or SASL_PLAINTEXT"
                raise ValueError(f"{name}: {needs} (security is {protocol})")
        return cls(
            protocol=protocol,
            ca=_path(query, "ca"),
            certificate=_path(query, "certificate"),
            key=_path(query, "key"),
            mechanism=_one_of("sasl", query["sasl"], get_args(Mechanism)) if sasl else None,
            username=query.get("username"),
            password_file=_path(query, "password-file"),
        )

    def options(self) -> dict[str, object]:
        """kafka-python's options of a client, made of what is in the files now.

        Raises ValueError, naming the file, if one cannot be read or does not fit.
        """
        options: dict[str, object] = {"security_protocol": self.protocol}
        if self.protocol in ("SSL", "SASL_SSL"):
            options["ssl_context"] = self._context()
        if self.mechanism is not None:
            options |= {
                "sasl_mechanism": self.mechanism,
                "sasl_plain_username": self.username,
                "sasl_plain_password": self._password(),
            }
        return options

    def _context(self) -> TlsContext:
        # Ours and not kafka-python's: it names a file that is wrong, and says why brokers could not be believed.
        context = TlsContext(ssl.PROTOCOL_TLS_CLIENT)  # which checks certificates and names
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.sslsocket_class = _TlsSocket
        try:
            if self.ca is None:
                context.load_default_certs()
            else:
                context.load_verify_locations(self.ca)
        except (OSError, ssl.SSLError) as error:
            raise ValueError(f"ca: {self.ca}: no certificates in PEM ({error})") from error
        if self.certificate is not None:
            try:
                # Never ask on the terminal: a key that needs a password is refused.
                context.load_cert_chain(self.certificate, self.key, password=_no_password)
            except (OSError, ssl.SSLError, ValueError) as error:
                raise ValueError(
                    f"certificate: {self.certificate}, {self.key}: no certificate with its unencrypted key ({error})"
                ) from error
        return context

    def _password(self) -> str:
        assert self.password_file is not None
        try:
            password = self.password_file.read_text().rstrip()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"password-file: {self.password_file}: cannot be read ({error})") from error
        if not password:
            raise ValueError(f"password-file: {self.password_file}: is empty")
        return password


class TlsContext(ssl.SSLContext):
    """What TLS connections are made with."""

    failure: str | None = None
    """Why the last handshake failed: kafka-python only says that there is no broker."""


class _TlsSocket(ssl.SSLSocket):
    """One that is closed when its handshake fails; kafka-python leaves it open."""

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except BaseException as error:
            assert isinstance(self.context, TlsContext)
            self.context.failure = str(error)
            self.close()
            raise


def _no_password() -> str:
    raise ValueError("the key is encrypted")


def _one_of(name: str, value: str, values: tuple[T, ...]) -> T:
    for known in values:
        if value == known:
            return known
    raise ValueError(f"{name}: {value!r}; give one of {', '.join(values)}")


def _path(query: Mapping[str, str], name: str) -> Path | None:
    return Path(query[name]) if name in query else None
