"""Certificates for the tests, made in the tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme


@dataclass(frozen=True)
class Certificate:
    """A certificate chain, its key, and the CA that signed it, as PEM files."""

    chain: Path
    key: Path
    ca: Path


Issue = Callable[..., Certificate]


@pytest.fixture
def issue(tmp_path: Path) -> Issue:
    """Write a certificate for some names; written again under the same file name, it is a renewed one."""
    authorities: dict[str, trustme.CA] = {}

    def write(*names: str, ca: str = "ca", file: str = "server", common_name: str | None = None) -> Certificate:
        signer = authorities.setdefault(ca, trustme.CA())
        made = signer.issue_cert(*names, common_name=common_name)
        paths = Certificate(tmp_path / f"{file}.pem", tmp_path / f"{file}.key", tmp_path / f"{ca}.pem")
        paths.chain.write_bytes(b"".join(link.bytes() for link in made.cert_chain_pems))
        paths.key.write_bytes(made.private_key_pem.bytes())
        paths.ca.write_bytes(signer.cert_pem.bytes())
        return paths

    return write
