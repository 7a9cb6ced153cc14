"""The page of `tinytf serve`, in a real browser; skipped where playwright or Debian's Chromium is missing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tinytf
from tests.serve.server import Server, write_run
from tinytf.run.loading import TrainedModel

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
    page.locator("#key").fill(KEY)
    page.keyboard.press("Enter")
    expect(page.locator("#facts")).to_contain_text("Parameters")
    yield page
    page.close()
    assert not wrong


def complete(page: Page, prompt: str, texts: int = 1, **settings: float) -> None:
    """Write a prompt, and wait for its texts."""
    for name, value in settings.items():
        page.locator(f"#{name}-value").fill(str(value))
    page.locator("#prompt").fill(prompt)
    page.locator("#prompt").press("Control+Enter")
    expect(page.locator("#status")).to_contain_text("per second", timeout=60_000)
    expect(page.locator("article[aria-busy=false]")).to_have_count(texts)


@pytest.fixture(scope="module")
def model(folder: Path) -> TrainedModel:
    return tinytf.load("best", root=folder / "checkpoints", device="cpu")


def test_keys_alone_complete_a_prompt_and_go_on_from_another_token(page: Page, model: TrainedModel) -> None:
    complete(page, "It is", temperature=0, max_tokens=12)
    text = page.locator(".text")
    expected = model.generate("It is", temperature=0, max_new_tokens=12)
    assert text.text_content() == expected
    assert page.locator(".text .given").all_text_contents() == [
        model.tokenizer.decode([token]) for token in model.tokenizer.encode("It is").ids
    ]
    before = text.locator("span").all_text_contents()
    # From the prompt by Tab: stop at the text, its last token, the second likeliest there.
    text.locator("[tabindex='0']").focus()
    page.keyboard.press("End")
    likeliest = page.locator("#likeliest button")
    expect(likeliest).to_have_count(5)
    expect(likeliest.first).to_have_attribute("aria-current", "true")
    second = likeliest.nth(1).locator("bdi").text_content()
    page.keyboard.press("2")
    expect(text.locator("span")).to_have_count(len(before) + 12)
    picked = text.locator(".picked").text_content() or ""
    assert picked.replace(" ", "\u2423").replace("\n", "\u21b5") == second != before[-1]
    after = text.locator("span").all_text_contents()
    assert after[: len(before)] == [*before[:-1], picked]
    page.get_by_role("button", name="Undo").press("Enter")
    assert text.text_content() == expected


def test_a_token_says_on_hover_what_else_was_likely(page: Page) -> None:
    page.locator("#seed").fill("5")
    complete(page, "", max_tokens=3)
    token = page.locator(".text .new").nth(1)
    token.hover()
    shares = page.locator("#likeliest button span").all_text_contents()
    assert len(shares) == 5
    numbers = [float(share.removesuffix(" %").removeprefix("<")) for share in shares]
    assert numbers == sorted(numbers, reverse=True)
    assert 0 <= float(token.evaluate("span => span.style.getPropertyValue('--surprise')")) <= 1
    page.mouse.move(2, 2)
    expect(page.locator("#likeliest")).to_be_hidden()


def test_samples_and_two_checkpoints_stand_side_by_side(page: Page, model: TrainedModel) -> None:
    page.locator("#seed").fill("4")
    complete(page, "It is", texts=2, n=2, max_tokens=5, temperature=0.7)
    assert page.locator(".text").all_text_contents() == [
        model.generate("It is", temperature=0.7, max_new_tokens=5, seed=seed) for seed in (4, 5)
    ]
    page.locator("#compare").check()
    expect(page.locator("article[aria-busy=false]")).to_have_count(4)
    # Along the run's steps, each with the same seeds.
    page.locator("#step-2").press("ArrowRight")
    expect(page.locator("#step-2-value")).to_have_text("20")
    expect(page.locator(".head span").first).to_have_text("step 20")
    expect(page.locator("article[aria-busy=false]")).to_have_count(4)
    heads = [" ".join(page.locator("article").nth(at).locator(".head > *").all_text_contents()) for at in range(4)]
    assert heads == [f"step {step} seed {seed}" for step in (20, 30) for seed in (4, 5)]


def test_a_text_is_stopped_and_errors_say_what_to_do(page: Page) -> None:
    page.locator("#max_tokens-value").fill("60000")
    page.locator("#temperature-value").fill("0.1")
    page.locator("#go").click()
    expect(page.locator(".text .new").nth(5)).to_be_attached()
    page.keyboard.press("Escape")
    expect(page.locator("article[aria-busy=false]")).to_have_count(1)
    expect(page.locator("#stop")).to_be_hidden()
    page.locator("#top_p-value").fill("7")
    page.locator("#go").click()
    expect(page.locator("#error")).to_have_text("Top p: give a number from 0.01 to 1.")
    page.locator("#top_p-value").fill("1")
    page.locator("#prompt").fill("It is the east " * 40)
    page.locator("#go").click()
    expect(page.locator("#error")).to_contain_text("shorten it")
    page.route("**/v1/completions", lambda route: route.abort())
    page.locator("#go").click()
    expect(page.locator("#error")).to_contain_text("Is tinytf serve still running?")


def test_a_stop_string_ends_a_text_in_the_middle_of_a_token(page: Page, model: TrainedModel) -> None:
    whole = model.generate("It is", temperature=0, max_new_tokens=12)
    stop = whole[len("It is") + 3 :][:4]
    page.locator("#stops").fill(stop.replace("\\", "\\\\").replace("\n", "\\n"))
    complete(page, "It is", temperature=0, max_tokens=12)
    assert page.locator(".text").text_content() == whole[: whole.index(stop, len("It is"))]


def test_a_text_of_a_stranger_is_text(page: Page) -> None:
    """Markup in a prompt stands on the page as it was written."""
    markup = "<img src=x onerror=alert(1)><b>It is</b>"
    complete(page, markup, max_tokens=2, temperature=0.1)
    assert (page.locator(".text").text_content() or "").startswith(markup)
    assert page.locator(".text img, .text b").count() == 0


def test_a_chat_goes_on(page: Page) -> None:
    page.get_by_label("Chat").check(force=True)
    page.locator("#max_tokens-value").fill("4")
    for number, said in enumerate(("It", "is"), 1):
        page.locator("#prompt").fill(said)
        page.keyboard.press("Control+Enter")
        expect(page.locator(".answer")).to_have_count(number)
        expect(page.locator("#status")).to_contain_text("per second")
    assert page.locator(".question").all_text_contents() == ["It", "is"]


def test_a_narrow_screen_scrolls_in_one_direction(page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 700})
    complete(page, "It is")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    expect(page.locator("#sliders")).to_be_hidden()
    page.locator("summary").press("Enter")
    expect(page.locator("#sliders")).to_be_visible()
