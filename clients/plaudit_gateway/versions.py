"""What operators' calls tell: the versions as OpenAI's models, and promotion, roll-back and shares."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from plaudit_client import AsyncClient, PermissionDenied, PlauditError, Policy
from plaudit_gateway.chat_request import OWN_MODEL, Strict, no_model
from plaudit_gateway.errors import from_client


class Model(Strict):
    """What may be asked for as `model`."""

    id: str
    """`plaudit` (the router chooses), or a version."""
    object: Literal["model"]
    created: int
    owned_by: Literal["plaudit"]


class Models(Strict):
    """All of them."""

    object: Literal["list"]
    data: list[Model]


class Reason(Strict):
    """Why."""

    reason: Annotated[str, Field(max_length=1024)] = ""
    """In words, for the record; at most 1,024 bytes."""


class Share(Reason):
    """Which share of conversations, and why."""

    share: Annotated[float, Field(ge=0, lt=1)]
    """0 (none: it waits) to below 1 (to serve everybody, promote it)."""


class Check(Strict):
    """One thing that the gate looked at."""

    measure: str
    candidate: float | None
    reference: float | None
    bound: float | None
    upper: bool
    """Whether `bound` is the most allowed; if not, the least."""
    kept: bool


class PolicyAnswer(Strict):
    """One policy version. Numbers that there are none for are null."""

    version: str
    parent: str
    state: str
    """candidate, canary, stable, retired, rejected or rolled back."""
    reason: str
    changed_at: datetime | None
    metrics: dict[str, float | None]
    checks: list[Check]
    reference: str
    share: float


async def models(client: AsyncClient, *, controlled: bool) -> list[dict[str, Any]]:
    """`plaudit`, and the versions that are loaded, if the caller may know them. Raises Wrong."""
    own: dict[str, Any] = {"id": OWN_MODEL, "object": "model", "created": 0, "owned_by": "plaudit"}
    if not controlled:
        return [own]
    try:
        policies = await client.list_policies()
    except PermissionDenied:
        return [own]
    except PlauditError as error:
        raise from_client(error, {}) from None
    created = {policy.version: _created(policy) for policy in policies.policies}
    own["created"] = created.get(policies.serving_version, 0)
    return [own, *({**own, "id": version, "created": created.get(version, 0)} for version in policies.loaded_versions)]


async def model(name: str, client: AsyncClient, *, controlled: bool) -> dict[str, Any]:
    """One of them. Raises Wrong."""
    for each in await models(client, controlled=controlled):
        if each["id"] == name:
            return each
    raise no_model(name)


async def promote(version: str, body: Reason, client: AsyncClient) -> dict[str, Any]:
    """The version as it is now. Raises Wrong."""
    try:
        return as_json(await client.promote_policy(version, body.reason))
    except PlauditError as error:
        raise from_client(error, {}) from None


async def roll_back(version: str, body: Reason, client: AsyncClient) -> dict[str, Any]:
    """The version as it is now. Raises Wrong."""
    try:
        policy, _ = await client.rollback_policy(version, body.reason)
    except PlauditError as error:
        raise from_client(error, {}) from None
    return as_json(policy)


async def set_share(version: str, body: Share, client: AsyncClient) -> dict[str, Any]:
    """The version as it is now. Raises Wrong."""
    try:
        return as_json(await client.set_canary_share(version, body.share, body.reason))
    except PlauditError as error:
        raise from_client(error, {}) from None


def as_json(policy: Policy) -> dict[str, Any]:
    """As PolicyAnswer."""
    return {
        "version": policy.version,
        "parent": policy.parent,
        "state": policy.state,
        "reason": policy.reason,
        "changed_at": rfc3339(policy.changed_at),
        "metrics": {name: number(value) for name, value in policy.metrics.items()},
        "checks": [
            {
                "measure": check.measure,
                "candidate": number(check.candidate),
                "reference": number(check.reference),
                "bound": number(check.bound),
                "upper": check.upper,
                "kept": check.kept,
            }
            for check in policy.checks
        ],
        "reference": policy.reference,
        "share": policy.share,
    }


def rfc3339(time: datetime | None) -> str | None:
    """In UTC, as `2026-11-26T12:00:00.5Z`."""
    return None if time is None else time.astimezone(UTC).isoformat().replace("+00:00", "Z")


def number(value: float) -> float | None:
    """JSON knows neither NaN nor infinity."""
    return value if math.isfinite(value) else None


def _created(policy: Policy) -> int:
    return int(policy.changed_at.timestamp()) if policy.changed_at else 0
