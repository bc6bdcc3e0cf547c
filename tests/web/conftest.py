"""The page in a real browser (Debian's Chromium, headless), before a real gateway and a real server."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from plaudit_gateway.page import BUILT
from tests.fixtures_server import Deployment
from tests.web.site import Site, Visit, visiting


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_model_sha256: str) -> Iterator[Site]:
    if not (BUILT / "index.html").is_file():
        pytest.fail("the page is not built; run `make page`")
    root = tmp_path_factory.mktemp("web")
    (root / "receipt.key").write_bytes(b"k" * 32)
    (root / "user.key").write_bytes(b"u" * 32)
    site = Site(Deployment(root, tiny_model, tiny_model_sha256, f"sqlite:{root / 'events.sqlite'}"))
    thread = threading.Thread(target=site.loop.run_forever, name="site")
    thread.start()
    try:
        site.do(site.start_server())
        site.do(site.start_gateway())
        yield site
    finally:
        site.do(site.stop())
        site.loop.call_soon_threadsafe(site.loop.stop)
        thread.join(60)
        site.loop.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("chromium is not installed (requirements/debian.txt)")
    with sync_playwright() as playwright:
        # No sandbox: root has none. Nothing but this repository's page is opened.
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser, site: Site) -> Iterator[Visit]:
    """A first visit, during which the page must not complain."""
    with visiting(browser, site) as visit:
        yield visit
        assert visit.complaints == []
