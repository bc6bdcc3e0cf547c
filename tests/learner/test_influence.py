"""Nobody steers alone: what a voter, a receipt, a prompt said over and over, and a flood may weigh at most."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plaudit_learner.experience.influence import (
    FAIR_SHARES,
    REPEATS,
    level,
    spread,
    standing,
    weighed,
    weights,
)
from plaudit_learner.policy import PromptReply
from plaudit_learner.reward.judgements import Preference, Rating, Vote
from tests.learner.test_experience import DOWN, UP, feedback, interaction
from tests.learner.test_reward_rounds import Rounds

CAP = 0.005


def prompt(number: int, length: int = 12) -> tuple[int, ...]:
    draw = random.Random(number)
    return tuple(draw.randrange(10_000) for _ in range(length))


def vote(number: int, voter: str, **more: object) -> Vote:
    """Of a reply and a prompt of its own, unless said otherwise."""
    given: dict[str, object] = {"voter": voter, "receipt": f"r{number}", "at": number, **more}
    asked = given.pop("prompt", prompt(number))
    return Vote(PromptReply(asked, (number,), True), True, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("masses", "cap", "expected"),
    [
        ([3, 3, 3], CAP, 3),  # nobody has more than the others
        ([15] + [1] * 300, CAP, 2 * 300 / (301 - 2)),  # t = 2/301 (t + 300)
        ([1000] + [1] * 999, CAP, 0.005 * 999 / 0.995),  # t = 0.005 (t + 999)
        ([100, 1, 1], CAP, 4),  # t = 2/3 (t + 2)
        ([50, 40, 1, 1, 1, 1], CAP, 4),  # two are cut off: t = 1/3 (2 t + 4)
        ([100, 1], CAP, 100),  # of two, each may have all
        ([9, 1, 1, 1], 1.0, 9),
        ([2] * 30 + [0.002] * 500, CAP, 2),  # 500 who share one reply are one voter more
        ([40] + [0.5] * 20, CAP, 2 * 10 / (11 - 2)),  # t = 2/11 (t + 10)
        ([0.1, 0.1], CAP, 0.1),
        ([], CAP, 0),
    ],
)
def test_the_level_by_hand(masses: list[float], cap: float, expected: float) -> None:
    assert level(masses, cap) == pytest.approx(expected)


@given(st.lists(st.floats(0.01, 1000), min_size=1, max_size=40), st.floats(0.001, 1))
def test_the_level_is_the_highest_that_keeps_the_cap(masses: list[float], cap: float) -> None:
    share, found = max(cap, FAIR_SHARES / max(1.0, sum(min(mass, 1) for mass in masses))), level(masses, cap)

    def kept(t: float) -> bool:
        return t <= share * sum(min(mass, t) for mass in masses) * (1 + 1e-9)

    assert min(found, max(masses)) == found
    assert kept(found)
    assert found == max(masses) or not kept(found * 1.001)
    assert found >= min(FAIR_SHARES, max(masses))


def test_equal_voters_all_weigh_one() -> None:
    """To the bit: it changes nothing where there is nothing to change."""
    assert weights([vote(i, f"u{i % 20}") for i in range(300)], cap=CAP) == [1.0] * 300
    assert weights([vote(i, "") for i in range(50)], cap=CAP) == [1.0] * 50
    assert weights([vote(i, "ann") for i in range(50)], cap=CAP) == [1.0] * 50
    assert weights([], cap=CAP) == []


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 30), st.integers(0, 15)), max_size=150))
def test_no_voter_weighs_more_than_the_cap(cast: list[tuple[int, int, int]]) -> None:
    """Whatever prompts and receipts they share."""
    judged = [vote(i, f"u{u}", receipt=f"r{u}-{r}", prompt=prompt(p)) for i, (u, r, p) in enumerate(cast)]
    weight = weights(judged, cap=0.05)
    assert all(0 < one <= 1 for one in weight)
    voters = {judgement.voter for judgement in judged}
    for voter in voters:
        mine = sum(one for one, judgement in zip(weight, judged, strict=True) if judgement.voter == voter)
        assert mine <= max(0.05, FAIR_SHARES / len(voters)) * sum(weight) + 1e-9


def test_a_receipt_weighs_one_however_many_names_speak_on_it() -> None:
    crowd = [vote(i, "") for i in range(20)]
    many = [vote(99, "", receipt="shared", user=f"made-up {i}") for i in range(50)]
    weight = weights([*crowd, *many], cap=CAP)
    assert sum(weight[20:]) == pytest.approx(1)
    assert weight[:20] == [1.0] * 20


def test_a_made_up_name_is_no_voter() -> None:
    """Beside 400 who are known, twenty votes without an account weigh as one voter's, whatever names they give."""
    known = [vote(i, f"u{i}") for i in range(400)]
    nameless = [vote(1000 + i, "", user=f"made-up {i}") for i in range(20)]
    weight = weights([*known, *nameless], cap=CAP)
    assert sum(weight[400:]) == pytest.approx(2.0, abs=0.03)
    assert weight[:400] == [1.0] * 400


def test_names_do_not_outweigh_a_crowd_that_has_none() -> None:
    crowd, names = [vote(i, "") for i in range(300)], [vote(1000 + i, f"x{i % 3}") for i in range(30)]
    weight = weights([*crowd, *names], cap=CAP)
    assert weight[:300] == [1.0] * 300
    assert sum(weight[300:]) < 7


def test_aspects_are_weighed_by_themselves() -> None:
    tone = [vote(i, "ann", aspect="tone") for i in range(30)]
    quality = [vote(100 + i, f"u{i}") for i in range(30)]
    assert weights([*tone, *quality], cap=CAP) == [1.0] * 60


def test_all_kinds_share_a_voters_weight() -> None:
    item, other = PromptReply(prompt(1), (1,), True), PromptReply(prompt(1), (2,), True)
    crowd = [vote(i, f"u{i}") for i in range(10, 40)]
    pairs = [Preference(item, other, voter="ann", receipt=f"p{i}") for i in range(20)]
    stars = [Rating(PromptReply(prompt(500 + i), (1,), True), 3, voter="ann", receipt=f"s{i}") for i in range(20)]
    votes, preferences, ratings = weighed(crowd, pairs, stars, cap=CAP)
    assert [vote.weight for vote in votes] == [1.0] * 30
    hers = [pair.weight for pair in preferences] + [rating.weight for rating in ratings]
    assert sum(hers) == pytest.approx(2 * 30 / (31 - 2))


def test_a_prompt_said_over_and_over_is_damped() -> None:
    """Of one voter; what a hundred people ask is what a hundred people ask."""
    template = (7, 8, 9)
    asked = [(*template, *prompt(1), i) for i in range(10)]
    judged = [vote(i, "ann", prompt=asked[i]) for i in range(10)]
    judged += [vote(100 + i, f"u{i}", prompt=asked[i % 10]) for i in range(20)]
    judged += [vote(200 + i, f"w{i}", prompt=(*template, *prompt(200 + i))) for i in range(30)]
    assert sum(weights(judged, cap=1.0)[:10]) == pytest.approx(REPEATS)
    assert sum(weights(judged, cap=CAP)[:10]) == pytest.approx(2 * 50 / (51 - 2))
    assert weights(judged, cap=CAP)[10:] == [1.0] * 50
    assert weights(judged[8:], cap=1.0) == [1.0] * 52, "to ask again is ordinary"


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 3)), min_size=1, max_size=100))
def test_two_votes_of_anybody_count_in_full(cast: list[tuple[int, int]]) -> None:
    judged = [vote(i, f"u{u}", prompt=prompt(p)) for i, (u, p) in enumerate(cast)]
    weight = weights(judged, cap=CAP)
    for voter in {judgement.voter for judgement in judged}:
        hers = [one for one, judgement in zip(weight, judged, strict=True) if judgement.voter == voter]
        assert sum(hers) >= min(len(hers), FAIR_SHARES) - 1e-9


@pytest.mark.parametrize("replies", [1, 100])
def test_imported_annotators_who_share_replies_silence_nobody(replies: int) -> None:
    live = [vote(i, f"u{i % 30}") for i in range(60)]
    imported = [vote(1000 + i, f"annotator {i}", receipt=f"shared {i % replies}") for i in range(500)]
    weight = weights([*live, *imported], cap=CAP)
    assert weight[:60] == [1.0] * 60
    assert sum(weight[60:]) == pytest.approx(replies)


def test_a_flood_amounts_to_little() -> None:
    honest = [vote(i, f"u{i % 100}") for i in range(200)]
    flood = [vote(1000 + i, "mallory") for i in range(2000)]
    total, newest = standing([*flood, *honest], cap=CAP, newest=2000)
    assert newest == pytest.approx(2 * 200 / (101 - 2))
    assert total == pytest.approx(200 + newest)
    assert standing(honest, cap=CAP, newest=50) == (200, 50)


def test_a_cap_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="give a share above 0"):
        weights([vote(0, "ann")], cap=0)


def test_prompts_are_spread_over_askers() -> None:
    asked = {f"k{i}": prompt(i) for i in range(100)}
    askers = {f"k{i}": "mallory" if i < 50 else f"u{i}" for i in range(100)}
    kept = spread(asked, askers, cap=CAP)
    hers = [key for key in kept if askers[key] == "mallory"]
    assert hers == ["k0", "k1"]  # 2 x 50 / (51 - 2): the most recent two
    assert len(kept) == 52
    assert list(kept) == [key for key in asked if key in kept]
    assert spread(asked, {}, cap=CAP) == asked  # nobody is known


def test_of_near_identical_prompts_the_oldest_is_rolled_out() -> None:
    asked = {"new": (*prompt(1, 20), 1), "other": prompt(2), "old": prompt(1, 20), "third": prompt(3)}
    assert list(spread(asked, {}, cap=CAP)) == ["other", "old", "third"]


def test_prompts_of_one_asker_make_nobody_elses_alike() -> None:
    """A flood without the template must not turn the template into what honest prompts have in common."""
    system = tuple(range(20_000, 20_100))
    honest = {f"h{i}": (*system, *prompt(i)) for i in range(30)}
    flood = {f"m{i}": prompt(1000 + i) for i in range(300)}
    kept = spread({**flood, **honest}, {**dict.fromkeys(flood, "mallory"), **{key: key for key in honest}}, cap=CAP)
    assert set(honest) <= set(kept)
    assert len(kept) <= 33


@pytest.fixture
def home(tmp_path: Path, tiny_model: Path) -> Iterator[Rounds]:
    rounds = Rounds(tmp_path, tiny_model)
    yield rounds
    rounds.close()


def say(home: Rounds, first: int, last: int, asker: str, voter: str = "") -> None:
    """People like vowels; Mallory likes the others."""
    for i in range(first, last):
        record = interaction(f"r{i}", prompt=[token % 250 for token in prompt(i)], time=i)
        record.user, vowels = asker.format(i), bool(i % 2)
        record.reply_token_ids[:] = random.Random(i).choices(b"aeiou" if vowels else b"bcdfg", k=8)
        home.store.add_interaction(record)
        thumb = UP if vowels != (asker == "mallory") else DOWN
        home.store.add_feedback(feedback(f"r{i}", key="k", time=i, user=voter.format(i) or record.user, thumb=thumb))


def test_a_flood_starts_no_round_and_buys_no_kl(home: Rounds) -> None:
    say(home, 0, 30, "u{}")
    say(home, 1000, 1200, "mallory")
    assert not home.learner._due(), "200 votes of one account are two"
    assert home.learner._standing(0)[0] == pytest.approx(30 + 2 * 30 / 29)
    say(home, 30, 40, "u{}")
    assert home.learner._due()


def test_one_voter_does_not_turn_the_reward_round(tmp_path: Path, tiny_model: Path) -> None:
    """Forty people like vowels, one account says 120 times that they are bad: with the caps it is not heard."""
    replies = [PromptReply((257, 97 + i, 258), tuple(random.Random(i).choices(b"aeiou", k=8)), True) for i in range(20)]
    others = [item._replace(reply=tuple(random.Random(len(replies)).choices(b"bcdfg", k=8))) for item in replies]
    gaps = {}
    for cap in ("0.005", "1"):
        home = Rounds(tmp_path / cap, tiny_model, influence_cap=cap)
        try:
            say(home, 0, 40, "u{}")
            say(home, 1000, 1120, "mallory")
            train, held_out = home.learner._prompts()
            assert len(train) + len(held_out) == (42 if cap == "0.005" else 160)
            model = home.fit()
            gaps[cap] = float((model.score(home.policy, replies) - model.score(home.policy, others)).mean())
        finally:
            home.close()
    assert gaps["0.005"] > 1
    assert gaps["1"] < 0


def test_a_voter_is_who_asked(home: Rounds) -> None:
    """A name that was only given with the vote binds nobody; of imports the operator's word counts."""
    say(home, 0, 1, "ann")
    say(home, 1, 2, "", "made-up")
    for number, user in ((2, "bob"), (3, "")):
        home.store.add_interaction(interaction(f"r{number}", version="imported", time=number))
        home.store.add_feedback(feedback(f"r{number}", key="k", time=9, user=user, thumb=UP))
    found = [(vote.receipt, vote.user, vote.voter, vote.at) for vote in home.store.votes("quality", 100)]
    assert found == [("r0", "ann", "ann", 0), ("r1", "made-up", "", 1), ("r2", "bob", "bob", 9), ("r3", "", "r3", 9)]


def test_who_asked_first_and_how_most_people_sample(home: Rounds) -> None:
    for number, (user, temperature) in enumerate([("ann", 0.7), ("bob", 0.7), *[("mallory", 1.5)] * 9]):
        record = interaction(f"r{number}", prompt=(1, 2), time=number)
        record.user, record.sampling.temperature = user, temperature
        home.store.add_interaction(record)
    assert list(home.store.askers(100).values()) == ["ann"]
    assert (home.store.usual_sampling(100) or (0,))[0] == pytest.approx(0.7)
