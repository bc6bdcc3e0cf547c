"""What the offline experiments count with: best-of-n, rows that are found again, prompts of other forms."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from bench.offline import best_of, best_of_kl
from bench.rows import Rows
from bench.votes_to_approval import by_form
from plaudit_cli.prompts import user


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_best_of_is_the_mean_over_all_choices(n: int) -> None:
    rewards_PK, values_PK = torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    for rewards_K, values_K, found in zip(rewards_PK, values_PK, best_of(n, rewards_PK, values_PK), strict=True):
        choices = [max(choice, key=lambda k: rewards_K[k]) for choice in itertools.combinations(range(5), n)]
        assert float(found) == pytest.approx(float(values_K[choices].mean()))


def test_best_of_kl() -> None:
    assert [round(best_of_kl(n), 3) for n in (1, 2, 4, 8, 16)] == [0.0, 0.193, 0.636, 1.204, 1.835]


def test_rows_are_found_again_by_all_of_their_key(tmp_path: Path) -> None:
    file = tmp_path / "results" / "rows.jsonl"
    Rows(file).add({"method": "base", "seed": 0}, {"kl": 0.5})
    with file.open("a") as out:
        out.write('{"key": {"method": "base", "se')  # killed while writing
    rows = Rows(file)
    rows.add({"method": "base", "seed": 1}, {"kl": 0.25})
    for again in (rows, Rows(file)):
        assert (again.get({"seed": 0, "method": "base"}) or {})["kl"] == 0.5
        assert (again.get({"seed": 1, "method": "base"}) or {})["kl"] == 0.25
        assert again.get({"seed": 0, "method": "ours"}) is None


def test_no_form_is_on_both_sides() -> None:
    prompts = [
        user(f"{form} number {i}") for form in ("Write", "Tell", "Give", "make", "Is", "Explain") for i in range(9)
    ]
    train, held_out = by_form(prompts)
    assert train
    assert held_out
    assert len(train) + len(held_out) == len(prompts)
    assert not {p.text.split()[0] for p in train} & {p.text.split()[0] for p in held_out}
