"""The web page, as people use it. Votes are looked for where the learner finds them, not only on the page."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from plaudit.v1.feedback_pb2 import Thumb
from plaudit.v1.loop_pb2 import LearnerReport, RoundReport
from plaudit_learner.experience.store import Experience
from tests.web.site import WAIT, Site, Visit, visiting

AXE = Path(__file__).parents[2] / "clients/web/node_modules/axe-core/axe.min.js"

pytestmark = pytest.mark.timeout(180)
expect.set_options(timeout=WAIT)
SaidIn = Callable[[Sequence[int]], list[str]]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Experience]:
    store = Experience(tmp_path / "experience.sqlite")
    yield store
    store.close()


@pytest.fixture(scope="module")
def said_in(tiny_model: Path) -> SaidIn:
    """The words that token ids of the tiny model spell."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    return lambda tokens: str(tokenizer.decode(list(tokens), skip_special_tokens=True)).split()


def good(page: Page, index: int = -1):  # type: ignore[no-untyped-def]
    return page.get_by_role("button", name=re.compile("^Good reply")).nth(index)


def bad(page: Page, index: int = -1):  # type: ignore[no-untyped-def]
    return page.get_by_role("button", name=re.compile("^Bad reply")).nth(index)


def test_a_reply_streams_and_a_vote_is_given_changed_and_taken_back(
    visit: Visit, site: Site, store: Experience, said_in: SaidIn
) -> None:
    page = visit.page
    before = len(site.feedback())
    visit.say("Tell me of the sea")
    visit.replied()
    text = page.locator(".reply .markdown").inner_text()
    expect(page.locator(".reply .version")).to_have_text("v0")

    good(page).click()
    expect(good(page)).to_have_attribute("aria-pressed", "true")
    page.get_by_label("Comment").fill("it is brief")
    page.get_by_role("button", name="Save").click()
    visit.sent()
    thumb, comment = site.feedback()[before:]
    interaction = site.interaction(thumb.response_id)
    assert said_in(interaction.reply_token_ids) == text.split()
    assert (thumb.thumb, thumb.policy_version) == (Thumb.THUMB_UP, "v0")
    assert thumb.user == interaction.user != ""
    assert (comment.comment, comment.aspect) == ("it is brief", thumb.aspect)

    bad(page).click()
    expect(good(page)).to_have_attribute("aria-pressed", "false")
    visit.sent()
    assert site.feedback()[-1].thumb == Thumb.THUMB_DOWN
    for record in site.everything():
        store.add(record)
    assert store.tallies(thumb.aspect)["v0"].down >= 1

    bad(page).click()
    expect(bad(page)).to_have_attribute("aria-pressed", "false")
    visit.sent()
    last = site.feedback()[-1]
    assert last.retraction
    assert last.response_id == interaction.response_id
    counted = store.count_votes(thumb.aspect)
    store.add(last)
    assert store.count_votes(thumb.aspect) == counted - 1


def test_an_aspect_is_voted_on_beside_the_whole(visit: Visit, site: Site) -> None:
    page = visit.page
    before = len(site.feedback())
    visit.say("Name a fruit")
    visit.replied()
    bad(page).click()
    chip = page.get_by_role("button", name="Relevance")
    chip.click()
    expect(chip).to_have_attribute("aria-pressed", "true")
    visit.sent()
    said = site.feedback()[before:]
    assert [(one.aspect, one.thumb) for one in said] == [
        ("quality", Thumb.THUMB_DOWN),
        ("relevance", Thumb.THUMB_DOWN),
    ]
    # The other thumb is about the whole: what was wrong in particular does not stand any more.
    good(page).click()
    visit.sent()
    said = site.feedback()[before + 2 :]
    assert {one.aspect: one.WhichOneof("verdict") for one in said} == {"quality": "thumb", "relevance": "retraction"}


def test_another_reply_is_compared_and_the_choice_can_be_changed(
    visit: Visit, site: Site, store: Experience, said_in: SaidIn
) -> None:
    page = visit.page
    visit.say("Which is it?")
    visit.replied()
    page.get_by_role("button", name="Another reply").click()
    expect(page.locator(".candidate")).to_have_count(2)
    better = page.get_by_role("button", name="This one is better Second reply")
    better.wait_for()
    replies = page.locator(".candidate .markdown").all_inner_texts()
    better.click()
    visit.sent()
    said = site.feedback()[-1]
    second, first = site.interaction(said.response_id), site.interaction(said.preferred_over)
    assert [said_in(reply.reply_token_ids) for reply in (first, second)] == [reply.split() for reply in replies]
    assert list(first.prompt_token_ids) == list(second.prompt_token_ids)
    expect(page.locator(".preferred")).to_be_visible()

    page.get_by_role("button", name="Compare again").click()
    page.get_by_role("button", name="This one is better First reply").click()
    visit.sent()
    for record in site.everything():
        store.add(record)
    mine = [one for one in site.feedback() if one.response_id in (first.response_id, second.response_id)]
    assert [one.WhichOneof("verdict") for one in mine] == ["preferred_over", "preferred_over", "retraction"]
    (standing,) = store.preferences(said.aspect, 10_000)
    assert standing.chosen.reply == tuple(first.reply_token_ids)

    # The conversation goes on with the reply that was chosen.
    visit.say("And then?")
    visit.replied(2)
    good(page).click()
    visit.sent()
    asked = said_in(site.interaction(site.feedback()[-1].response_id).prompt_token_ids)
    assert "".join(said_in(first.reply_token_ids)) in "".join(asked)


def test_a_reload_keeps_conversations_votes_and_drafts(visit: Visit, site: Site) -> None:
    page = visit.page
    visit.say("First things first")
    visit.replied()
    text = page.locator(".reply .markdown").inner_text()
    good(page).click()
    page.get_by_label("Message", exact=True).fill("half a thou")
    visit.sent()
    count = len(site.feedback())
    page.reload()
    expect(page.locator(".reply .markdown")).to_have_text(text, use_inner_text=True)
    expect(good(page)).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_label("Message", exact=True)).to_have_value("half a thou")

    page.get_by_role("link", name="New chat").click()
    expect(page.get_by_label("Message", exact=True)).to_have_value("")
    visit.say("Another one")
    visit.replied()
    expect(page.locator(".conversations li")).to_have_count(2)
    page.get_by_role("link", name="First things first").click()
    expect(page.locator(".said-text")).to_have_text("First things first")
    expect(good(page)).to_have_attribute("aria-pressed", "true")
    page.get_by_role("button", name="Delete “First things first”").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.locator(".conversations li")).to_have_count(1)
    assert len(site.feedback()) == count


def test_what_a_reply_says_is_never_run(visit: Visit, site: Site) -> None:
    """Replies are put into the page as Markdown; one that holds HTML and scripts shows them."""
    page = visit.page
    hostile = "<img src=x onerror=window.hacked=1> <b>bold?</b>\n\n[x](javascript:window.hacked=1)\n\n![p](http://evil.invalid/p)"
    chunks = [
        {"id": "r", "model": "v0", "plaudit": {"receipt": "x", "policy_version": "v0"}, "choices": []},
        {"choices": [{"delta": {"content": hostile}}]},
        {"choices": [{"delta": {}, "finish_reason": "stop"}]},
    ]
    body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=body, content_type="text/event-stream"))
    visit.say("Break out")
    visit.replied()
    expect(page.locator(".markdown")).to_contain_text("<b>bold?</b>")
    assert page.locator(".markdown img, .markdown b").count() == 0
    assert page.locator(".markdown a[href^=javascript]").count() == 0
    assert page.evaluate("window.hacked") is None


def test_the_server_goes_and_comes_back(browser: Browser, site: Site) -> None:
    with visiting(browser, site) as visit:
        page = visit.page
        visit.say("Are you there?")
        visit.replied()
        before = len(site.feedback())
        site.do(site.stop_server())
        try:
            good(page).click()
            expect(page.get_by_role("alert")).to_contain_text("can’t be reached")
            expect(good(page)).to_have_attribute("aria-pressed", "true")
            visit.say("And now?")
            expect(page.locator(".problem")).to_be_visible()
            page.get_by_label("Message", exact=True).fill("not lost")
            page.reload()  # neither the vote nor the words are lost with the page
            expect(page.get_by_label("Message", exact=True)).to_have_value("not lost")
            expect(good(page)).to_have_attribute("aria-pressed", "true")
            expect(page.locator(".waiting")).to_be_visible()
            assert len(site.feedback()) == before
        finally:
            site.do(site.start_server())
        page.get_by_role("button", name="Try now").click()
        expect(page.get_by_role("alert")).to_have_count(0)
        visit.sent()
        (vote,) = site.feedback()[before:]
        assert vote.thumb == Thumb.THUMB_UP
        page.get_by_role("button", name="Retry").click()
        visit.replied(2)
        expect(page.locator(".problem")).to_have_count(0)
        expect(page.get_by_label("Message", exact=True)).to_have_value("not lost")
        assert [line for line in visit.complaints if "503" not in line] == []


def test_a_key_is_asked_for_where_the_server_wants_one(browser: Browser, site: Site) -> None:
    """The server here asks for none: what one that does would say is said in its place."""

    def keyed(route: Route) -> None:
        if route.request.headers.get("authorization") == "Bearer sesame":
            route.continue_()
        else:
            message = {"message": "no key", "type": "invalid_request_error", "code": "invalid_api_key"}
            route.fulfill(status=401, json={"error": message})

    with visiting(browser, site) as visit:
        page = visit.page
        page.route("**/v1/chat/completions", keyed)
        page.route("**/v1/feedback", keyed)
        visit.say("May I?")
        page.get_by_role("button", name="Enter key").click()
        page.get_by_label("API key").fill("sesame")
        page.keyboard.press("Enter")
        expect(page.get_by_role("dialog")).to_have_count(0)
        page.get_by_role("button", name="Retry").click()
        visit.replied()
        before = len(site.feedback())
        good(page).click()
        visit.sent()
        assert len(site.feedback()) == before + 1
        assert page.evaluate("sessionStorage['plaudit.key']") == '"sesame"'
        assert page.evaluate("!JSON.stringify(localStorage).includes('sesame')")


def test_a_version_arrives_while_a_reply_streams_and_the_reply_is_stopped(visit: Visit, site: Site) -> None:
    """v1's replies end at 1,500 tokens only, so this one is still on its way when v2 is served."""
    page = visit.page
    site.deployment.publish_endless("v1")
    site.serve("v1")
    visit.say("Talk on")
    expect(page.locator(".reply .version")).to_have_text("v1")
    site.deployment.publish("v2", seed=3, parent="v1")
    site.serve("v2")
    stop = page.get_by_role("button", name="Stop")
    expect(stop).to_be_visible()
    grown = "before => document.querySelector('.markdown').textContent.length > before"
    for _ in range(2):
        page.wait_for_function(grown, arg=len(page.locator(".markdown").text_content() or ""))
    expect(page.locator(".reply .version")).to_have_text("v1")
    stop.click()
    expect(page.locator(".aside")).to_have_text("Stopped.")
    good(page).click()  # what was sampled can be voted on
    visit.sent()
    assert (site.feedback()[-1].policy_version, site.feedback()[-1].thumb) == ("v1", Thumb.THUMB_UP)
    half = site.interaction(site.feedback()[-1].response_id)
    assert half.policy_version == "v1"
    assert len(half.reply_token_ids) < 1500
    page.get_by_role("button", name="Another reply").click()
    page.get_by_role("button", name="This one is better Second reply").wait_for()
    expect(page.locator(".candidate .version")).to_have_text(["v1", "v2"])


SLOW_REPLY = """() => {
  const real = window.fetch;
  const encoder = new TextEncoder();
  let stream;
  const send = (chunk) => stream.enqueue(encoder.encode(`data: ${JSON.stringify(chunk)}\\n\\n`));
  window.say = (content) => send({ choices: [{ delta: { content } }] });
  window.end = () => {
    send({ choices: [{ delta: {}, finish_reason: "stop" }] });
    stream.enqueue(encoder.encode("data: [DONE]\\n\\n"));
    stream.close();
  };
  window.fetch = async (url, options) => {
    if (!url.endsWith("v1/chat/completions")) return real(url, options);
    const body = new ReadableStream({ start(controller) { stream = controller; } });
    options.signal.addEventListener("abort", () => stream.error(options.signal.reason));
    send({ model: "v0", plaudit: { receipt: "x", policy_version: "v0" }, choices: [] });
    say("one ");
    return new Response(body);
  };
}"""
"""A reply that comes as the test says."""


def test_two_tabs_on_one_conversation(visit: Visit) -> None:
    """The reply streams in the first; the second one shows it, is written in, stops it, and outlives the first."""
    first = visit.page
    first.evaluate(SLOW_REPLY)
    visit.say("Count")
    expect(first.locator(".markdown")).to_have_text("one")
    second = first.context.new_page()
    second.set_default_timeout(WAIT)
    second.goto(visit.url)
    second.get_by_role("link", name="Count").click()
    first.evaluate("say('two ')")
    expect(second.locator(".markdown")).to_have_text("one two")
    draft = second.get_by_label("Message", exact=True)
    draft.fill("And")
    first.evaluate("say('three ')")
    expect(second.locator(".markdown")).to_have_text("one two three")
    first.evaluate("end()")
    expect(second.locator(".thumbs")).to_have_count(1)
    expect(draft).to_have_value("And")
    expect(first.get_by_label("Message", exact=True)).to_have_value("And")
    expect(first.locator(".markdown")).to_have_text("one two three")

    visit.say("Again")
    second.get_by_role("button", name="Stop").click()
    for page in (first, second):
        expect(page.locator(".aside")).to_have_text("Stopped.")

    visit.say("Once more")
    expect(second.get_by_role("button", name="Stop")).to_be_visible()
    first.goto("about:blank")
    expect(second.locator(".aside")).to_have_count(2)
    expect(second.get_by_role("button", name="Send")).to_be_visible()


def test_keyboard_alone(visit: Visit, site: Site) -> None:
    page = visit.page
    expect(page.get_by_label("Message", exact=True)).to_be_focused()
    page.keyboard.type("One")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    page.keyboard.press("Enter")
    visit.replied()
    expect(page.locator(".said-text")).to_have_text("One\ntwo", use_inner_text=True)
    page.keyboard.press("Escape")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("+")
    visit.sent()
    assert site.feedback()[-1].thumb == Thumb.THUMB_UP
    page.keyboard.press("r")
    page.locator(".better").first.wait_for()
    page.keyboard.press("1")
    visit.sent()
    assert site.feedback()[-1].WhichOneof("verdict") == "preferred_over"
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_chinese(browser: Browser, site: Site) -> None:
    with visiting(browser, site, locale="zh-CN") as visit:
        page = visit.page
        expect(page.get_by_role("heading", name="想了解什么？")).to_be_visible()
        assert page.locator("html").get_attribute("lang") == "zh-Hans"
        page.get_by_role("button", name="设置").click()
        page.get_by_role("radio", name="English").check()
        expect(page.get_by_role("dialog").get_by_role("heading", name="Settings")).to_be_visible()
        page.keyboard.press("Escape")
        page.reload()
        expect(page.get_by_role("heading", name="What would you like to know?")).to_be_visible()
        assert visit.complaints == []


@pytest.mark.parametrize("width", [1100, 390])
def test_chat_has_no_accessibility_finding(browser: Browser, site: Site, width: int) -> None:
    size = {"width": width, "height": 800}
    with visiting(browser, site, viewport=size) as visit:
        page = visit.page
        assert_accessible(page)
        visit.say("Something")
        visit.replied()
        bad(page).click()
        page.get_by_label("Comment").wait_for()
        assert_accessible(page)
        page.get_by_role("button", name="Another reply").click()
        page.locator(".better").first.wait_for()
        assert_accessible(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.keyboard.press("Alt+n")
        if width < 800:
            page.get_by_role("button", name="Open menu").click()
        page.get_by_role("button", name="Settings").click()
        page.get_by_role("dialog").wait_for()
        assert_accessible(page)


def test_the_loop_is_shown_live_and_operators_promote_and_roll_back(browser: Browser, site: Site) -> None:
    """Here, v1 and v2 were made by the test above. What the learner would report is said in its place."""
    learner = LearnerReport(stage="waiting", new_votes=7, votes_per_round=40)
    learner.stage_since.GetCurrentTime()
    for version, up, down in (("v0", 30, 70), ("v1", 60, 40)):
        learner.approvals.add(policy_version=version, up=up, down=down, low=0.2, high=0.8)
        learner.buckets.add(seconds=60, policy_version=version, up=up, down=down).start.FromSeconds(1_790_000_000)
    site.report("learner", learner)
    first = RoundReport(number=1, parent="v0", reference="v0", votes=100, updates_planned=4, kl_budget=0.5)
    first.heads.add(aspect="quality", auc=0.71, accuracy=0.66, ece=math.nan, judgements=90)
    for update in (1, 2):
        first.updates.add(number=update, reward=0.1 * update, kl=0.05 * update)
    site.report("round-1", first)
    with visiting(browser, site) as visit:
        page = visit.page
        page.get_by_role("link", name="Loop", exact=True).click()
        stage = page.get_by_role("region", name="Learner")
        expect(stage).to_contain_text("7 of 40 votes for the next round")
        figures = page.get_by_role("region", name="Approval by version")
        figures.locator("summary").click()
        expect(figures.locator("tbody tr").nth(1)).to_have_text(re.compile("v1.*60.*20.*80"))
        expect(page.get_by_role("img", name=re.compile("Approval|Votes|Reward|PPO"))).to_have_count(5)
        expect(page.get_by_role("region", name="Reward model").locator("tbody")).to_contain_text("0.71")
        assert drawn(page) == [True] * 5
        assert_accessible(page)

        learner.stage = "improving"
        site.report("learner", learner)  # the page is told
        expect(stage.locator("[aria-current=step]")).to_have_text("Improving the policy")
        expect(stage).to_contain_text("Round 1: update 2 of at most 4")

        page.get_by_role("button", name="Promote: v1").click()
        page.get_by_label("Why").fill("people like it")
        page.get_by_role("dialog").get_by_role("button", name="Promote").click()
        expect(page.get_by_role("dialog")).to_have_count(0)
        site.serve("v1")
        expect(page.locator(".releases li").first).to_contain_text("people like it")
        page.get_by_role("button", name="Roll back: v1").click()
        page.get_by_role("dialog").get_by_role("button", name="Roll back").click()
        site.serve("v2")
        expect(page.locator(".tile").first).to_contain_text("v2")

        side = page.get_by_role("region", name="Side by side")
        side.get_by_label("Left").select_option("v0")
        side.get_by_label("Right").select_option("v2")
        recorded = len(site.interactions())
        side.get_by_label("Prompt").fill("The same to both")
        side.get_by_role("button", name="Compare").click()
        expect(side.locator(".candidate .version")).to_have_text(["v0", "v2"])
        expect(side.get_by_role("button", name="Compare")).to_be_enabled()
        expect(side.locator(".problem")).to_have_count(0)
        assert "".join(side.locator(".candidate .markdown").all_inner_texts()).strip()  # one may be empty, by chance
        assert len(site.interactions()) == recorded
        assert_accessible(page)
        page.set_viewport_size({"width": 390, "height": 800})
        assert_accessible(page)
        assert page.evaluate("document.querySelector('.loop').scrollWidth") <= 390
        assert visit.complaints == []


def drawn(page: Page) -> list[bool]:
    """Of each chart: whether anything is drawn on it."""
    shown: list[bool] = page.evaluate(
        """() => [...document.querySelectorAll("canvas")].map((canvas) =>
          canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.some((value) => value > 0))"""
    )
    return shown


def assert_accessible(page: Page) -> None:
    """No serious or critical finding of axe, in either theme."""
    for theme, rules in (("light", "{}"), ("dark", "{ runOnly: ['color-contrast'] }")):
        page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
        if theme == "light":
            page.evaluate(AXE.read_text())
        found = page.evaluate(f"async () => (await axe.run(document, {rules})).violations")
        grave = [
            (theme, finding["id"], [node["html"] for node in finding["nodes"]])
            for finding in found
            if finding["impact"] in ("serious", "critical")
        ]
        assert grave == []
    page.emulate_media(color_scheme="light")
