"""By default a server is reached from its own machine alone; everything else is asked for, or refused at once."""

from __future__ import annotations

import pytest

from plaudit.addresses import is_loopback
from plaudit.settings import parse
from plaudit_server.config import ServerSettings

NEEDED = ["--event-log=sqlite:x", "--policy-store=x", "--state-dir=x", "--user-key-file=x", "--receipt-keys=x"]
TLS = ["--tls-certificate=server.pem", "--tls-key=server.key"]


def settings(*flags: str) -> ServerSettings:
    return parse(ServerSettings, "plaudit-server", [*NEEDED, *flags])


def test_defaults_listen_on_loopback() -> None:
    default = settings()
    assert (default.listen, default.control_listen, default.metrics_host) == (
        "127.0.0.1:50051",
        "127.0.0.1:51051",
        "127.0.0.1",
    )


@pytest.mark.parametrize("where", ["--listen=0.0.0.0:50051", "--control-listen=[::]:51051", "--listen=chat.test:443"])
@pytest.mark.parametrize(
    ("flags", "missing"),
    [
        ([], "give tls-certificate and tls-key and callers-file or tls-client-ca"),
        (TLS, "give callers-file or tls-client-ca"),
        (["--callers-file=callers.json"], "give tls-certificate and tls-key,"),
    ],
)
def test_listening_elsewhere_open_is_refused(
    where: str, flags: list[str], missing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        settings(where, *flags)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert f"{where.partition('=')[0].removeprefix('--')} (" in said
    assert missing in said
    assert "--allow-insecure" in said


@pytest.mark.parametrize(
    "flags",
    [[*TLS, "--callers-file=callers.json"], [*TLS, "--tls-client-ca=ca.pem"], ["--allow-insecure"]],
)
def test_listening_elsewhere_closed_or_by_the_flag_is_fine(flags: list[str]) -> None:
    assert settings("--listen=0.0.0.0:50051", "--control-listen=0.0.0.0:51051", *flags)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--tls-key=server.key"], "tls-certificate and tls-key belong together"),
        (["--tls-client-ca=ca.pem"], "tls-client-ca needs tls-certificate and tls-key"),
    ],
)
def test_half_of_tls_is_refused(flags: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        settings(*flags)
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("127.0.0.1:0", True),
        ("127.9.9.9:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("unix:/run/plaudit", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("192.168.0.1:1", False),
        ("localhost.evil.example:1", False),
        (":1", False),
        ("", False),
    ],
)
def test_what_is_loopback(address: str, local: bool) -> None:
    assert is_loopback(address) is local


def test_a_key_in_the_environment_does_not_matter_to_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("API_KEY", "CA", "CERTIFICATE", "SERVER", "CONTROL"):  # those of the command
        monkeypatch.setenv(f"PLAUDIT_{name}", "x")
    assert settings().callers_file is None
