"""The callers file: who may call the servers of a deployment, and what each may do (docs/security.md).

    {"keys": [{"name": "shop", "sha256": "9f86…", "permissions": ["chat", "feedback"], "expires": "2027-01-01T00:00Z"}],
     "certificates": [{"name": "ops.example.org", "permissions": ["admin"]}]}

`plaudit keys` writes it, servers read it, and again whenever it changes. Of an API key only the SHA-256 is kept. A slow
hash, as for passwords, would protect nothing: a key is 256 random bits, which nobody guesses however fast the hash is.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections import Counter
from pathlib import Path
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from plaudit import secret_file
from plaudit.permission import Permission

_PREFIX = "plaudit_"  # lets scanners for leaked secrets find it


Permissions = Annotated[frozenset[Permission], Field(min_length=1)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ApiKey(_Entry):
    """Who shows the key whose hash this is."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    """Whose key it is; stands in logs."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Of the key, see `digest`."""
    permissions: Permissions
    expires: AwareDatetime | None = None
    """From then on it is refused; None: never."""


class ClientCertificate(_Entry):
    """Who shows a client certificate for this name."""

    name: Annotated[str, Field(pattern=r"^\S{1,128}$")]
    """A subject alternative name of the certificate (DNS name, e-mail, URI); if it has none, its common name."""
    permissions: Permissions


class Callers(_Entry):
    """All who may call."""

    keys: tuple[ApiKey, ...] = ()
    certificates: tuple[ClientCertificate, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Callers:
        names = [key.name for key in self.keys] + [certificate.name for certificate in self.certificates]
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise ValueError(f"the name {twice[0]} stands twice; each caller needs one of its own")
        return self


def read(path: Path) -> Callers:
    """The file's content. Raises OSError if it cannot be read, ValueError, in one line, if something in it is wrong."""
    try:
        return Callers.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ValueError(f"{path}: {in_one_line(error)}") from None


def in_one_line(error: ValidationError) -> str:
    """What is wrong, place by place; what stands there is not repeated."""
    return "; ".join(
        f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" if problem["loc"] else problem["msg"]
        for problem in error.errors(include_input=False)
    )


def write(path: Path, callers: Callers) -> None:
    """Replace the file. Raises OSError."""
    content = callers.model_dump(mode="json", exclude_none=True)
    for entry in (*content["keys"], *content["certificates"]):
        entry["permissions"].sort()
    secret_file.write(path, json.dumps(content, indent=2).encode() + b"\n")


def new_secret() -> str:
    """An API key, to be shown once: 256 random bits behind `plaudit_`."""
    return _PREFIX + secrets.token_urlsafe(32)


def digest(secret: str) -> str:
    """What the file keeps of an API key."""
    return hashlib.sha256(secret.encode()).hexdigest()
