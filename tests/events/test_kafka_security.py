"""The event log over TLS and with a password, by a proxy that asks for both before the embedded broker."""

from __future__ import annotations

import ssl
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest
import trustme

from plaudit.events import FEEDBACK, EventLogUnavailable, Record, from_beginning, open_log
from plaudit.events.kafka import KafkaLog
from plaudit.events.kafka_security import KafkaSecurity
from tests.events.guarded_broker import GuardedBroker

TIMEOUT = 1.0


class Pem(NamedTuple):
    ca: Path
    certificate: Path
    key: Path


@dataclass(frozen=True)
class Files:
    server: Pem
    client: Pem
    stranger: Pem


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    directory = tmp_path_factory.mktemp("pem")

    def pem(name: str, ca: trustme.CA, *names: str) -> Pem:
        made = ca.issue_cert(*names)
        paths = Pem(directory / f"{name}-ca.pem", directory / f"{name}.pem", directory / f"{name}.key")
        ca.cert_pem.write_to_path(paths.ca)
        made.cert_chain_pems[0].write_to_path(paths.certificate)
        made.private_key_pem.write_to_path(paths.key)
        return paths

    ca = trustme.CA()
    return Files(
        server=pem("server", ca, "127.0.0.1"),
        client=pem("client", ca, "plaudit@example.org"),
        stranger=pem("stranger", trustme.CA(), "plaudit@example.org"),
    )


def _context(files: Files, *, clients: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.server.certificate, files.server.key)
    if clients:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(files.server.ca)
    return context


@pytest.fixture(scope="module")
def mutual(files: Files) -> Iterator[GuardedBroker]:
    with GuardedBroker(_context(files, clients=True)) as broker:
        yield broker


@pytest.fixture(scope="module")
def sasl(files: Files) -> Iterator[GuardedBroker]:
    with GuardedBroker(_context(files, clients=False), {"plaudit": "right"}) as broker:
        yield broker


def _writes_and_reads(url: str) -> None:
    with open_log(f"{url}&prefix=test-{uuid.uuid4().hex}.") as log:
        log.append([Record(FEEDBACK, "key", b"value")])
        assert [entry.value for entry in log.read(from_beginning(log, FEEDBACK), timeout=10)] == [b"value"]


@pytest.mark.kafka
def test_a_log_over_mutual_tls(mutual: GuardedBroker, files: Files) -> None:
    client = files.client
    _writes_and_reads(
        f"kafka://{mutual.address}?security=SSL&ca={client.ca}&certificate={client.certificate}&key={client.key}"
    )


@pytest.mark.kafka
@pytest.mark.parametrize("who", ["a stranger", "nobody"])
def test_mutual_tls_lets_no_other_in(mutual: GuardedBroker, files: Files, who: str) -> None:
    pem = files.stranger
    certificate, key = (pem.certificate, pem.key) if who == "a stranger" else (None, None)
    security = KafkaSecurity("SSL", ca=files.server.ca, certificate=certificate, key=key)
    with pytest.raises(EventLogUnavailable, match=mutual.address):
        KafkaLog([mutual.address], timeout=TIMEOUT, security=security)


@pytest.mark.kafka
def test_a_broker_whose_certificate_another_ca_signed_or_for_another_name_is_not_believed(
    sasl: GuardedBroker, files: Files, tmp_path: Path
) -> None:
    password = tmp_path / "password"
    password.write_text("right")
    logins = len(sasl.logins)
    port = sasl.address.rpartition(":")[2]
    for ca, address in ((files.stranger.ca, sasl.address), (files.server.ca, f"localhost:{port}")):
        security = KafkaSecurity("SASL_SSL", ca=ca, mechanism="PLAIN", username="plaudit", password_file=password)
        with pytest.raises(EventLogUnavailable, match="certificate"):
            KafkaLog([address], timeout=TIMEOUT, security=security)
    assert len(sasl.logins) == logins  # the password was not shown


@pytest.mark.kafka
def test_a_log_with_a_password_over_tls(sasl: GuardedBroker, files: Files, tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("right\n")
    _writes_and_reads(
        f"kafka://{sasl.address}?security=SASL_SSL&ca={files.server.ca}"
        f"&sasl=PLAIN&username=plaudit&password-file={password}"
    )
    assert set(sasl.logins) == {"plaudit"}


@pytest.mark.kafka
def test_a_wrong_password_is_unavailable_soon_and_a_renewed_one_is_taken_up(
    sasl: GuardedBroker, files: Files, tmp_path: Path
) -> None:
    password = tmp_path / "password"
    password.write_text("right")
    security = KafkaSecurity(
        "SASL_SSL", ca=files.server.ca, mechanism="PLAIN", username="plaudit", password_file=password
    )
    with KafkaLog([sasl.address], timeout=TIMEOUT, security=security, prefix=f"test-{uuid.uuid4().hex}.") as log:
        password.write_text("wrong")
        log._drop(log._connect())  # as a broker that goes away makes it do
        start = time.monotonic()
        with pytest.raises(EventLogUnavailable, match=sasl.address):
            log.append([Record(FEEDBACK, "key", b"value")])
        assert time.monotonic() - start < 8
        assert sasl.refused
        password.unlink()
        with pytest.raises(EventLogUnavailable, match="password-file"):
            log.append([Record(FEEDBACK, "key", b"value")])
        password.write_text("right")
        log.append([Record(FEEDBACK, "key", b"value")])


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("securty=SSL", "securty: not a parameter"),
        ("security=TLS", "security: 'TLS'; give one of PLAINTEXT, SSL, SASL_PLAINTEXT, SASL_SSL"),
        ("security=SSL&security=PLAINTEXT", "a parameter stands twice"),
        ("ca=/ca.pem", "ca: needs security=SSL or SASL_SSL"),
        ("security=SASL_PLAINTEXT&ca=/ca.pem", "ca: needs security=SSL or SASL_SSL"),
        ("security=SSL&ca=", "ca: is empty"),
        ("security=SSL&ca=/no/such/ca.pem", "ca: /no/such/ca.pem: no certificates in PEM"),
        ("security=SSL&certificate=/a.pem", "certificate and key belong together"),
        ("security=SSL&certificate=/no/a.pem&key=/no/a.key", "certificate: /no/a.pem, /no/a.key: no certificate"),
        ("security=SASL_SSL&username=a&password-file=/p", "sasl: is missing"),
        ("security=SASL_SSL&sasl=PLAIN&password-file=/p", "username: is missing"),
        ("security=SASL_SSL&sasl=PLAIN&username=a", "password-file: is missing"),
        ("security=SASL_SSL&sasl=GSSAPI&username=a&password-file=/p", "sasl: 'GSSAPI'; give one of PLAIN, SCRAM"),
        ("security=SASL_SSL&sasl=PLAIN&username=a&password-file=/no/p", "password-file: /no/p: cannot be read"),
        ("username=a", "username: needs security=SASL_SSL or SASL_PLAINTEXT"),
    ],
)
def test_a_wrong_url_says_which_parameter_and_what_would_be_right(query: str, says: str) -> None:
    with pytest.raises(ValueError, match=r"event log 'kafka://") as caught:
        open_log(f"kafka://127.0.0.1:1?{query}")
    assert says in str(caught.value)


def test_a_key_that_is_no_key_and_an_empty_password_are_named(files: Files, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.write_text(" \n")
    pem = files.client
    with pytest.raises(ValueError, match=f"certificate: {pem.certificate}, {empty}: no certificate with its"):
        KafkaSecurity("SSL", certificate=pem.certificate, key=empty).options()
    with pytest.raises(ValueError, match=f"password-file: {empty}: is empty"):
        KafkaSecurity("SASL_PLAINTEXT", mechanism="PLAIN", username="a", password_file=empty).options()
