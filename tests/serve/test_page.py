"""The page of `tinytf serve`, in a real browser; skipped where playwright or Debian's Chromium is missing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tinytf
from tests.serve.server import Server, write_run

pytest.importorskip("playwright", reason="playwright is not installed")
from playwright.sync_api import Page, expect, sync_playwright

CHROMIUM = shutil.which("chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
KEY = "a-key-of-this-test"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@pytest.fixture(scope="module", name="folder")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    write_run(folder)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    server = Server(folder, "--ckpt_path", "best", "--api_key", KEY)
    yield server
    assert server.stop() == 143
    assert not [line for line in server.lines if "Traceback" in line], server.lines


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)


@pytest.fixture(name="page")
def open_page(server: Server, browser: Any) -> Iterator[Page]:
    """With the key given; nothing is asked of another server, and nothing fails in the console."""
    page = browser.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if "Content Security Policy" in said.text else None)
    page.on("request", lambda sent: None if sent.url.startswith(server.url) else wrong.append(sent.url))
    page.goto(server.url)
    page.locator("#key-input").fill(KEY)
    page.keyboard.press("Enter")
    expect(page.locator("#model")).to_contain_text("step 30")
    yield page
    page.close()
    assert not wrong


def set_value(page: Page, label: str, value: float) -> None:
    page.locator(f'input[type="number"][aria-label="{label}"]').fill(str(value))


def test_a_prompt_is_completed_by_keys_alone_and_goes_on_from_another_token(
    page: Page, folder: Path, server: Server
) -> None:
    model = tinytf.load("best", root=folder / "checkpoints", device="cpu")
    set_value(page, "Temperature", 0)
    set_value(page, "Tokens", 12)
    page.locator("#prompt").fill("It is")
    page.locator("#prompt").press("Control+Enter")
    expect(page.locator("article.done")).to_have_count(1)
    expected = model.generate("It is", temperature=0, max_new_tokens=12)
    text = page.locator("article pre")
    assert text.text_content() == expected
    surprise = page.locator(".token:not(.given)").first.evaluate("span => span.style.getPropertyValue('--surprise')")
    assert 0 <= float(surprise) <= 1
    # The last token's likeliest, and the second of them in its place.
    text.press("End")
    text.press("Enter")
    options = page.locator("#likeliest button")
    expect(options).to_have_count(5)
    expect(options.first).to_have_attribute("aria-selected", "true")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.locator("article.done")).to_have_count(1)
    expect(text).not_to_have_text(expected)
    ids = model.tokenizer.encode(expected).ids
    shown = text.text_content()
    assert shown is not None
    assert shown.startswith(model.tokenizer.decode(ids[:-2]))
    assert len(shown) > len(expected) - 4


def test_samples_and_two_checkpoints_stand_side_by_side(page: Page) -> None:
    set_value(page, "Samples", 2)
    set_value(page, "Tokens", 5)
    page.locator("#seed").fill("4")
    page.locator("#compare").check()
    page.locator("#right").fill("1")
    page.locator("#write").click()
    expect(page.locator("article.done")).to_have_count(4)
    headings = [heading.split(" · ended")[0] for heading in page.locator("article h2").all_text_contents()]
    assert sorted(headings) == [f"step {step} · seed {seed}" for step in (20, 30) for seed in (4, 5)]
    page.locator("#facts summary").click()
    expect(page.locator("#facts dl")).to_contain_text("Parameters")


def test_a_text_is_stopped_and_errors_are_said(page: Page) -> None:
    set_value(page, "Tokens", 60_000)
    set_value(page, "Temperature", 0.1)
    page.locator("#write").click()
    expect(page.locator(".token").nth(5)).to_be_attached()
    page.locator("#halt").click()
    expect(page.locator("#halt")).to_be_disabled()
    set_value(page, "Top p", 7)
    page.locator("#write").click()
    expect(page.locator("#message")).to_contain_text("top_p is 7")


def test_a_chat_goes_on(page: Page) -> None:
    page.get_by_label("Chat").check()
    set_value(page, "Tokens", 4)
    for number, said in enumerate(("It", "is"), 1):
        page.locator("#prompt").fill(said)
        page.locator("#write").click()
        expect(page.locator("article.done")).to_have_count(number)
    assert page.locator(".turn").all_text_contents() == ["It", "is"]


def test_a_narrow_screen_scrolls_in_one_direction(page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
