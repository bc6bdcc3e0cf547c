"""Versions to train from or to compare with: fetched from the policy store, loaded beside the reference policy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from plaudit.artifacts import PolicyStore
from plaudit.releases import BASE
from plaudit_learner.policy import AdapterConfig, Policy


@dataclass(frozen=True)
class Versions:
    """One process's; two must not share `copies`."""

    policies: PolicyStore
    copies: Path
    """Directory of what was fetched."""
    model: Path
    base_model_sha256: str
    layers: int
    """Layers that carry LoRA in a new adapter."""

    def load(self, version: str, seed: int, reference: str) -> Policy:
        """A version beside the reference policy; of the base model: a new adapter.

        Raises ArtifactError if the store cannot be read, or holds something else than the manifest says.
        """
        return Policy.load(
            self.model,
            parent_adapter=self._adapter(version),
            reference_adapter=self._adapter(reference),
            config=AdapterConfig(layers=self.layers),
            seed=seed,
        )

    def forget_others(self, *versions: str) -> None:
        """Remove the copies of all versions but these, and what a kill left of a copy."""
        self.policies.forget_others(self.copies, versions)

    def _adapter(self, version: str) -> Path | None:
        """A version's weights, verified as servers verify them; None for the base model."""
        if version == BASE:
            return None
        return self.policies.fetch(version, self.copies, base_model_sha256=self.base_model_sha256)[0]
