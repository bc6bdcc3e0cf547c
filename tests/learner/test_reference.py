"""The reference policy is an instruction-tuned version: what learns beside it, and what rounds make of it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from plaudit import base_model
from plaudit.artifacts import PolicyStore
from plaudit.events import POLICIES, Record
from plaudit.releases import Releases
from plaudit.v1.events_pb2 import PolicyEvent
from plaudit.v1.policy_pb2 import PolicyState
from plaudit_learner.gate.judge import Verdict
from plaudit_learner.policy import Policy
from plaudit_learner.ppo.improve import improve
from plaudit_learner.release import Publisher
from plaudit_learner.reward.evaluate import EvaluateSettings, run
from plaudit_learner.reward.model import RewardModel
from tests.learner.test_improve import QUICK, prompts, reward_model
from tests.learner.test_policy import ITEMS, disturb
from tests.learner.test_reward_rounds import Rounds
from tests.learner.test_rounds import OPTIONS, vote
from tests.tiny_model import make_tiny_adapter


@pytest.fixture
def tuned(tiny_model: Path, tmp_path: Path) -> Path:
    """An adapter that somebody instruction-tuned."""
    return make_tiny_adapter(tmp_path / "tuned", tiny_model, seed=7, scale=0.05)


@pytest.fixture
def policy(tiny_model: Path, tuned: Path) -> Policy:
    return Policy.load(tiny_model, parent_adapter=tuned, reference_adapter=tuned)


def frozen(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in policy.model.named_parameters() if not learns(name)}


def learns(name: str) -> bool:
    return ".default." in name


def test_reference_is_the_tuned_version_whatever_is_learnt(policy: Policy, tiny_model: Path, tuned: Path) -> None:
    assert policy.is_reference
    start = policy.reply_logits(ITEMS)[0].detach()
    disturb(policy)
    assert not policy.is_reference
    with policy.reference():
        reference = policy.reply_logits(ITEMS)[0]
        policy.reference_states(ITEMS, [0])  # a block within the block
        again = policy.reply_logits(ITEMS)[0]
    assert torch.equal(reference, start)
    assert torch.equal(again, start)
    assert not reference.requires_grad
    assert not torch.allclose(policy.reply_logits(ITEMS)[0], start)

    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), str(tuned)).eval()
    item = ITEMS[3]
    with torch.no_grad():
        logits = plain(input_ids=torch.tensor([[*item.prompt, *item.reply]])).logits[0, len(item.prompt) - 1 : -1]
    torch.testing.assert_close(reference[3], logits, atol=1e-4, rtol=1e-4)


def test_gradients_change_the_learning_adapter_only(policy: Policy) -> None:
    before = frozen(policy)
    with policy.reference():
        pass
    with pytest.raises(KeyError), policy.reference():
        raise KeyError  # whatever fails within, the policy learns on
    learning = [name for name, weight in policy.model.named_parameters() if weight.requires_grad]
    assert learning
    assert all(learns(name) for name in learning)
    assert len(learning) == len(policy.parameters())
    optimizer = torch.optim.Adam(policy.model.parameters(), lr=0.1)
    logits, _, _ = policy.reply_logits(ITEMS)
    with policy.reference():  # between forward and backward, as in an update
        policy.reply_logits(ITEMS)
    logits.square().sum().backward()
    optimizer.step()
    assert all(weight.grad is not None for weight in policy.parameters())
    assert not policy.is_reference
    assert all(torch.equal(weight, before[name]) for name, weight in frozen(policy).items())


def test_what_is_kept_and_saved_is_the_learning_adapter(policy: Policy, tiny_model: Path, tmp_path: Path) -> None:
    start, before = policy.snapshot(), frozen(policy)
    disturb(policy)
    expected = policy.reply_logits(ITEMS)[0].detach()
    policy.save_adapter(tmp_path / "saved")
    policy.restore(start)
    assert policy.is_reference
    assert all(torch.equal(weight, before[name]) for name, weight in frozen(policy).items())
    # One adapter on the base model, which is all that a server knows of.
    alone = Policy.load(tiny_model, parent_adapter=tmp_path / "saved")
    torch.testing.assert_close(alone.reply_logits(ITEMS)[0], expected)


def test_a_reference_of_another_shape(tiny_model: Path, tuned: Path, tmp_path: Path) -> None:
    parent = make_tiny_adapter(tmp_path / "parent", tiny_model, seed=8, rank=8, layers=[1])
    policy = Policy.load(tiny_model, parent_adapter=parent, reference_adapter=tuned)
    assert not policy.is_reference
    with policy.reference():
        reference = policy.reply_logits(ITEMS)[0]
    torch.testing.assert_close(reference, Policy.load(tiny_model, parent_adapter=tuned).reply_logits(ITEMS)[0])
    torch.testing.assert_close(
        policy.reply_logits(ITEMS)[0], Policy.load(tiny_model, parent_adapter=parent).reply_logits(ITEMS)[0]
    )


def test_a_round_begins_at_no_distance(policy: Policy) -> None:
    settings = dataclasses.replace(QUICK, iterations=1, minibatch_prompts=QUICK.prompts_per_iteration)
    result = improve(policy, reward_model(policy), prompts(20, 0), settings, seed=0)
    assert result.iterations[0].kl == pytest.approx(0.0, abs=1e-6)
    assert not policy.is_reference


def test_a_published_version_names_its_reference(policy: Policy, tmp_path: Path, tiny_model: Path) -> None:
    home = Rounds(tmp_path / "home", tiny_model)
    store, releases = PolicyStore(str(tmp_path / "versions")), Releases()
    publisher = Publisher(store, home.learner._intake.announce, "0" * 64)
    names: list[tuple[str, str, str]] = []
    for reference in (None, "v1", "v0"):
        event = publisher.publish(
            policy, Verdict([], {}), releases, parent="v0", reference=reference, window={}, metrics={}
        )
        releases.apply(event, len(names))
        names.append((event.version, releases.reference(event.version), store.manifest(event.version)[0].reference))
    home.close()
    assert names == [("v1", "v1", "v1"), ("v2", "v1", "v1"), ("v3", "v0", "v0")]
    assert releases.reference("v0") == "v0"


def test_rounds_go_on_from_the_tuned_version_until_it_is_rolled_back(
    tmp_path: Path, tiny_model: Path, tuned: Path
) -> None:
    home = Rounds(tmp_path / "home", tiny_model, **OPTIONS, canary_share="0")
    store = PolicyStore(str(tmp_path / "home" / "v"))
    _, sha256 = store.publish(
        "v1", tuned, parent="v0", reference="v1", base_model_sha256="0" * 64, window={}, metrics={}, created_by="test"
    )

    def announce(event: PolicyEvent, state: PolicyState.ValueType) -> None:
        event.state = state
        home.log.append([Record(POLICIES, event.version, event.SerializeToString())])
        home.learner._intake.drain(0.0)

    def next_round() -> PolicyEvent:
        home.learner._round()
        home.learner._intake.drain(0.0)
        releases = home.learner._intake.releases
        event = releases.event(releases.versions()[-1])
        assert event is not None
        return event

    home.learner._intake.start()
    v1 = PolicyEvent(schema_version=1, version="v1", reference="v1", parent="v0", manifest_sha256=sha256)
    announce(v1, PolicyState.POLICY_STATE_STABLE)
    vote(home.store, home.policy, 0, 60)
    event = next_round()
    assert (event.version, event.parent, event.reference) == ("v2", "v1", "v1")
    assert RewardModel.load(home.models / "1").reference == "v1"
    of_v1 = dict(home.learner._features)

    if event.state == PolicyState.POLICY_STATE_STABLE:
        announce(event, PolicyState.POLICY_STATE_ROLLED_BACK)
    announce(v1, PolicyState.POLICY_STATE_ROLLED_BACK)
    event = next_round()
    assert (event.version, event.parent, event.reference) == ("v3", "v0", "v0")
    assert RewardModel.load(home.models / "2").reference == "v0"
    item = next(iter(of_v1))
    assert not torch.allclose(home.learner._features[item], of_v1[item]), "read anew, by the other reference"
    home.close()


def test_the_features_of_judgements_are_the_references(tmp_path: Path, tiny_model: Path, tuned: Path) -> None:
    """`plaudit evaluate reward-model` reads with the learner's copy of the version that the reward model names."""
    home = Rounds(tmp_path / "home", tiny_model)
    vote(home.store, home.policy, 0, 60)
    home.store.belongs_to(base_model.fingerprint(tiny_model))
    policy = Policy.load(tiny_model, reference_adapter=tuned)
    home.learner._fit(policy, "v1")
    home.close()
    data = tmp_path / "feedback.jsonl"
    lines = [
        {
            "messages": [{"role": "user", "content": f"question {i}"}],
            "reply": "aeiou"[: 1 + i % 5],
            "thumb": "up" if i % 2 else "down",
        }
        for i in range(20)
    ]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = EvaluateSettings(data=data, state_dir=tmp_path / "home", model=str(tiny_model), as_json=True)
    with pytest.raises(ValueError, match="reads with v1"):
        run(settings)
    shutil.copytree(tuned, tmp_path / "home" / "versions" / "v1")
    by_v1 = json.loads(run(settings))["figures"]
    file = home.models / "1" / "reward_model.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"reference": "v0"}))
    assert json.loads(run(settings))["figures"] != by_v1
