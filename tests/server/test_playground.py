"""The playground page, in a headless Chromium against a server with a made-up engine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from server.browser import Browser, find_browser
from server.running import Running

KEY = "a key"
LAST = "[...document.querySelectorAll('.assistant')].at(-1)"
DONE = f"{LAST} && !{LAST}.classList.contains('busy')"


@pytest.fixture(scope="module")
def playing(model: Path) -> Iterator[Running]:
    with Running(model, skip_warmup=True, api_key=(KEY,)) as running:
        yield running


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    find_browser()
    with Browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture
def page(browser: Browser, playing: Running) -> Iterator[Browser]:
    playing.engine.release()
    browser.errors.clear()
    browser.open(playing.url)
    browser.run(f"sessionStorage.setItem('srt-key', '{KEY}')")
    browser.open(playing.url + "/?again")
    browser.wait("document.getElementById('state').textContent === 'ready'")
    yield browser
    if folder := os.environ.get("SRT_SCREENSHOTS"):
        name = os.environ["PYTEST_CURRENT_TEST"].split("::")[1].split(" ")[0]
        browser.screenshot(Path(folder) / f"{name}.png")
    assert browser.errors == []


def test_the_page_is_one_file_that_may_load_nothing_else(playing: Running) -> None:
    answer = httpx.get(playing.url)
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "http" not in answer.text.replace("http://www.w3.org/2000/svg", "").replace("HTTP", "")


def test_without_its_key_the_page_says_so(browser: Browser, playing: Running) -> None:
    browser.open(playing.url)
    browser.run("sessionStorage.clear()")
    browser.open(playing.url + "/?anew")
    browser.wait("document.getElementById('state').className === 'bad'")
    assert "API key" in browser.run("document.getElementById('state').textContent")
    browser.type("key", KEY)
    browser.run("document.getElementById('key').dispatchEvent(new Event('change'))")
    browser.wait("document.getElementById('state').textContent === 'ready'")


def test_an_answer_streams_in_and_tells_its_figures(page: Browser, playing: Running) -> None:
    page.run("document.getElementById('max_tokens').value = 12")
    page.run("document.getElementById('temperature').value = 0")
    page.type("prompt", "Hello world, and all who live in it")
    page.press("Enter")
    page.wait(DONE)
    text = page.run(f"{LAST}.querySelector('.text').textContent")
    assert text.startswith("user\nHello")  # the double says the prompt again
    meta = page.run(f"{LAST}.querySelector('.meta').textContent")
    assert "+ 12 tokens" in meta
    assert "cut at max tokens" in meta
    page.run(f"{LAST}.querySelector('button').click()")
    page.wait(f"{LAST}.textContent.includes('decode 4.0 ms')")
    assert playing.engine.requests[-1].sampling.temperature == 0


def test_stop_aborts_the_answer_in_the_engine(page: Browser, playing: Running) -> None:
    page.run("document.getElementById('temperature').value = 0")
    for end in ("document.getElementById('send').click()", None):
        playing.engine.aborted.clear()
        playing.engine.hold(after=6)
        page.type("prompt", "Hello world, and all who live in it")
        page.press("Enter")
        page.wait(f"{LAST}.querySelector('.text').textContent.length > 0")
        assert page.run("document.getElementById('send').textContent") == "Stop"
        page.wait("document.getElementById('running').textContent === '1'")
        if end is not None:
            page.run(end)
        else:
            page.press("Escape")
        playing.engine.wait_for_aborts(1)
        page.wait(DONE)
        assert "stopped" in page.run(f"{LAST}.querySelector('.meta').textContent")
        assert page.run("document.getElementById('send').textContent") == "Send"


def test_what_the_server_refuses_is_shown_and_forgotten(page: Browser) -> None:
    page.run("document.getElementById('max_tokens').value = 100000")
    page.type("prompt", "Hello")
    page.press("Enter")
    page.wait(DONE)
    assert "100000" in page.run(f"{LAST}.querySelector('.error').textContent")
    assert page.run("messages.length") == 0


def test_markup_in_an_answer_stays_text(page: Browser) -> None:
    page.run("document.getElementById('max_tokens').value = 120")
    page.run("document.getElementById('temperature').value = 0")
    page.type("prompt", "<i id=evil>```js\nlet x\n``` so")
    page.press("Enter")
    page.wait(DONE)
    assert "<i id=evil>" in page.run(f"{LAST}.querySelector('.text').textContent")
    assert page.run("document.getElementById('evil')") is None
    assert page.run(f"{LAST}.querySelector('pre').textContent") == "let x\n"


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1200])
def test_it_fits_its_screen_and_can_be_read(
    page: Browser, playing: Running, width: int, dark: bool
) -> None:
    page.open(playing.url + "/?sized", width=width, height=740, dark=dark)
    page.run("document.getElementById('max_tokens').value = 60")
    page.type("prompt", "A word that is longer than any screen: " + "x" * 200)
    page.press("Enter")
    page.wait(DONE)
    assert page.run("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.run("document.documentElement.scrollHeight <= window.innerHeight")
    box = "document.getElementById('prompt').getBoundingClientRect()"
    assert page.run(f"{box}.bottom <= innerHeight && {box}.top > 0")
    ratio = """(() => {
      const rgb = (s) => s.match(/[\\d.]+/g).slice(0, 3).map(Number);
      const light = (c) => c.map((v) => v / 255).map((v) => v <= 0.03928 ? v / 12.92
        : ((v + 0.055) / 1.055) ** 2.4).reduce((t, v, i) => t + v * [0.2126, 0.7152, 0.0722][i], 0);
      const panel = light(rgb(getComputedStyle(document.querySelector('main')).backgroundColor));
      return ['.meta', '.assistant', '.link'].map((one) => {
        const ink = light(rgb(getComputedStyle(document.querySelector(one)).color));
        return (Math.max(ink, panel) + 0.05) / (Math.min(ink, panel) + 0.05);
      });
    })()"""
    assert min(page.run(ratio)) >= 4.5  # WCAG AA
