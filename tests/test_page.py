"""The page of `remanence serve`, in headless Chromium: what one sees and does.

Most tests use a small server without a model, whose every answer is known and which can be made to fail
(fake_server.py); the last ones use the real server. With REMANENCE_SCREENSHOTS=1 one of them makes the docs' pictures.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from fake_server import PAGE, POLICY, FakeMemory, FakeServer, running
from listening import Listening

sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
from playwright.sync_api import Browser, Page, expect  # noqa: E402

ROOT = Path(__file__).parents[1]
CHROMIUM = os.environ.get("REMANENCE_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
LAPTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install chromium, or REMANENCE_CHROMIUM"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for all tests; each has a page of its own."""
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM)
        yield chromium
        chromium.close()


@pytest.fixture
def server() -> Iterator[FakeServer]:
    """A server with one memory, of ten writes of a novel, four of a person, and some words that wait."""
    with running() as fake:
        memory = fake.memories["nora"] = FakeMemory()
        begin = memory.created - 90_000
        memory.write("It was a dark and stormy night when " * 10, "novel.txt", begin)
        memory.write("My dog Pepper is a greyhound and sleeps", "chat", begin + 20)
        memory.write("The spare key is in the blue teapot", "chat", begin + 21)
        memory.write("My sister Ines lives by the sea in", "chat", begin + 22)
        memory.write("<img src=x onerror=alert(1)> & <b>bold</b> is how I like it", "notes.html", begin + 23)
        yield fake


class Tab:
    """A page, what it asked the network for, and what its console complained of.

    Complaints that a test expects are matched by `expected`; any other fails it at the end.
    """

    def __init__(self, browser: Browser, server: FakeServer | RealServer, **context: Any) -> None:
        self.context = browser.new_context(**({"viewport": LAPTOP} | context))
        self.context.set_default_timeout(10_000)
        self.server, self.requests, self.complaints, self.expected = server, [], [], "(?!)"
        self.page: Page = self.context.new_page()
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda m: m.type in ("error", "warning") and self.complaints.append(m.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def open(self, memory: str = "") -> Page:
        """The page, with a memory in it."""
        self.page.goto(self.server.url + (f"#{memory}" if memory else ""))
        expect(self.page.locator("#line .entry").first).to_be_attached()
        return self.page

    def ask(self, text: str) -> None:
        """Say something, and wait for the whole answer."""
        answers = self.page.locator(".turn.model .foot .badge")
        before = answers.count()
        self.page.fill("#question", text)
        self.page.press("#question", "Enter")
        expect(answers).to_have_count(before + 1)
        expect(self.page.locator("#send")).to_be_visible()

    def close(self) -> None:
        """End, and fail if something was asked of others or went wrong unseen."""
        self.context.close()
        outside = [url for url in self.requests if not url.startswith((self.server.url, "blob:" + self.server.url))]
        assert not outside
        assert not [c for c in self.complaints if not re.search(self.expected, c)]


@pytest.fixture
def tab(browser: Browser, server: FakeServer) -> Iterator[Tab]:
    """A page in a laptop's window."""
    one = Tab(browser, server)
    yield one
    one.close()


def sideways(page: Page, selector: str = "html") -> int:
    """By how many pixels the content of a part of the page is wider than that part."""
    return page.locator(selector).evaluate("part => part.scrollWidth - part.clientWidth")


# What it is made of ---------------------------------------------------------------------------------------------------


def test_it_loads_with_nothing_from_elsewhere(tab: Tab) -> None:
    page = tab.open()
    page.wait_for_load_state("networkidle")
    assert page.title() == "nora · Remanence"
    loaded = {url.removeprefix(tab.server.url).split("?")[0].split("#")[0] for url in tab.requests}
    files = {f"static/{path.name}" for path in PAGE.iterdir() if path.name != "index.html"}
    assert files <= loaded, "every file of the page is used"
    assert loaded <= files | {"", "v1/models", "v1/memories", "v1/memories/nora", "v1/memories/nora/history"}


def test_no_file_names_another_host_or_makes_html_of_text() -> None:
    for path in PAGE.iterdir():
        text = path.read_text(encoding="utf-8")
        hosts = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+", text)) - {"http://www.w3.org"}  # the name of SVG
        assert not hosts, path.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)
    html = (PAGE / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"\sstyle=|\son\w+=|<style|<script(?![^>]*\ssrc=)", html), "a strict policy forbids it"
    assert "unsafe" not in POLICY


def test_the_measured_curve_is_the_one_of_the_benchmark() -> None:
    shipped = json.loads((PAGE / "curve.json").read_text(encoding="utf-8"))
    result = json.loads((ROOT / "benchmarks" / "results" / "accuracy.json").read_text(encoding="utf-8"))
    assert set(shipped) == {result["fingerprint"]}
    curve = shipped[result["fingerprint"]]
    assert curve["facts"] == result["settings"]["facts"]
    rows = [{"distance": r["distance"], "with": r["full"], "without": r["no long-term store"]} for r in result["rows"]]
    assert curve["rows"] == rows


# Talking --------------------------------------------------------------------------------------------------------------


def test_an_answer_comes_piece_by_piece(tab: Tab) -> None:
    page = tab.open()
    tab.server.pause_s = 0.15
    page.fill("#question", "Where is the spare key?")
    page.press("#question", "Enter")
    answer = page.locator(".turn.model .text")
    seen = set()
    for _ in range(200):
        seen.add(answer.text_content() if answer.count() else "")
        if page.locator(".turn.model .badge").count():
            break
        page.wait_for_timeout(25)
    whole = "The spare key is in the blue teapot"
    assert answer.text_content() == whole
    assert len([text for text in seen if text and whole.startswith(text)]) > 3, "pieces, not all at once"
    assert tab.server.asked[-1] == {
        "model": "fake", "user": "nora", "stream": True,
        "messages": [{"role": "user", "content": "Where is the spare key?"}],
    }  # fmt: skip
    tab.ask("And my dog Pepper?")
    assert [m["role"] for m in tab.server.asked[-1]["messages"]] == ["user", "assistant", "user"]


def test_an_answer_can_be_stopped(tab: Tab) -> None:
    page = tab.open()
    tab.server.pause_s = 0.3
    page.fill("#question", "Where is the spare key?")
    page.press("#question", "Enter")
    expect(page.locator(".turn.model .text")).not_to_be_empty()
    page.click("#stop")
    expect(page.locator(".turn.model .foot")).to_have_text("Stopped.")
    expect(page.locator("#send")).to_be_visible()
    assert page.locator(".turn.model .text").text_content() != "The spare key is in the blue teapot"


def test_sources_open_and_say_where_from(tab: Tab) -> None:
    page = tab.open()
    tab.ask("Where is the spare key?")
    expect(page.locator(".badge.good")).to_have_text("From memory, +2.50")
    source = page.locator(".source").first
    expect(source).to_be_hidden()
    page.locator(".sources summary").first.click()
    expect(source).to_be_visible()
    for words in ("+2.50", "chat", "in the pool", "read in 4 layers", "The spare key is in the blue teapot"):
        expect(source).to_contain_text(words)


def test_an_answer_without_memory_says_so(tab: Tab) -> None:
    page = tab.open()
    tab.ask("Hello?")
    expect(page.locator(".turn.model .badge")).to_have_text("Answered without memory")
    expect(page.locator("#reads-sum")).to_have_text("The last turn was answered without memory.")
    assert page.locator(".sources").count() == 0 and page.locator("#strip .lit:not(i)").count() == 0


def test_an_answer_that_matched_badly_says_so(tab: Tab) -> None:
    page = tab.open()
    tab.ask("Zebras?")
    expect(page.locator(".turn.model .badge.weak")).to_have_text("From memory, −1.50")
    expect(page.locator(".turn.model .foot")).to_contain_text("nothing matched well: do not rely on it")


def test_a_text_can_be_remembered_without_an_answer(tab: Tab) -> None:
    page = tab.open()
    expect(page.locator("#keep")).to_be_hidden()
    page.fill("#question", "The boiler was last looked after in May")
    page.click("#keep")
    expect(page.locator(".turn.own .note")).to_have_text("Remembered, 8 tokens.")
    expect(page.locator("#line .entry:not(.window)").first).to_contain_text("The boiler was last looked after in May")
    expect(page.locator("#question")).to_have_value("")
    assert not tab.server.asked and tab.server.memories["nora"].writes[-1]["source"] == "page"


# Seeing the memory ----------------------------------------------------------------------------------------------------


def test_it_shows_what_it_holds_and_fills_as_one_types(tab: Tab) -> None:
    page = tab.open()
    meters = page.locator("#meters")
    expect(page.locator("#holds-sum")).to_contain_text("14 writes · 112 tokens")
    for words in ("2 of 8 tokens", "16 of 16 vectors", "56 vectors"):
        expect(meters).to_contain_text(words)
    assert page.locator(".ghost").count() == 0
    page.fill("#question", "I moved to Lisbon with my cat")
    expect(page.locator("#draft-note")).to_have_text("Will be remembered, about 7 tokens.")
    expect(meters).to_contain_text("about 7 more with what you type: becomes a write")
    assert page.locator(".meter.window .ghost").bounding_box()["width"] > 20  # type: ignore[index]
    page.fill("#question", "Where did I move to?")
    expect(page.locator("#draft-note")).to_contain_text("it will not be remembered")
    expect(page.locator(".ghost")).to_have_count(0)
    tab.ask("I moved to Lisbon with my cat last May.")
    expect(page.locator(".turn.model .foot").last).to_contain_text("What you said is remembered.")
    expect(page.locator("#holds-sum")).to_contain_text("15 writes")
    expect(page.locator("#line .entry:not(.window)").first).to_contain_text("I moved to Lisbon with my cat last")


def test_the_strip_lights_what_was_read_and_only_that(tab: Tab) -> None:
    page = tab.open()
    tab.ask("Where is the spare key?")
    read = tab.server.memories["nora"].read("Where is the spare key?")["read"]
    expect(page.locator("#strip rect.lit")).to_have_count(sum(map(len, read)))
    assert page.locator("#strip rect.lit:not(.faint)").count() == 4, "one of the three scores is above zero"
    assert page.locator("#strip .place").count() == 14 + 1, "a column for each write, one for what waits"
    chips = page.locator("#strip .chip")
    expect(chips.first).to_have_text("write 11 +2.50 4 of 4 layers")
    chips.first.click()
    assert page.evaluate("document.activeElement.dataset.write") == "11"
    expect(page.locator('#line .entry[data-write="11"]')).to_contain_text("read, +2.50")
    assert page.locator("#line .entry.read").count() == 3


def test_a_long_text_is_one_entry_that_opens(tab: Tab) -> None:
    page = tab.open()
    group = page.locator("#line > .group")
    expect(group).to_have_count(1)
    expect(group).to_contain_text("Writes 0 to 9")
    expect(group).to_contain_text("80 tokens")
    expect(page.locator('#line .entry[data-write="4"]')).to_be_hidden()
    group.locator("summary").click()
    expect(page.locator('#line .entry[data-write="4"]')).to_be_visible()
    tab.ask("It was a dark and stormy night when?")
    expect(group).to_contain_text("3 read")
    expect(page.locator('#line .entry[data-write="4"]')).to_be_visible(), "it stays open"
    page.click("[aria-label='Forget all of novel.txt']")
    expect(page.locator("#forget-body .texts li")).to_have_count(10)


def test_many_writes_share_columns(tab: Tab) -> None:
    memory = tab.server.memories["many"] = FakeMemory()
    for i in range(700):
        memory.write(f"page {i} of a long novel about sailing", "novel.txt")
    memory.writes[3]["text"] = "The spare key is in the blue teapot"
    page = tab.open("many")
    expect(page.locator("#line-sum")).to_contain_text("100 of 700 writes")
    tab.ask("Where is the spare key in the teapot?")
    assert page.locator("#strip .place").count() < 100
    lit = page.locator("#strip rect.lit:not(.faint)").first.bounding_box()
    first = page.locator("#strip .place").first.bounding_box()
    assert lit is not None and first is not None and abs(lit["x"] - first["x"]) < 2, "the oldest column"
    expect(page.locator('#line .entry[data-write="3"]')).to_contain_text(f"{696 * 8:,} tokens ago")


def test_the_distance_curve_has_the_answers_and_no_other_figures(tab: Tab) -> None:
    page = tab.open()
    expect(page.locator("#curve")).to_contain_text("No answer has read a past write yet.")
    expect(page.locator("#measured")).to_have_text("No curve over distance has been measured for this model.")
    tab.ask("Where is the spare key?")
    expect(page.locator("#curve .dot")).to_have_count(3)
    expect(page.locator("#curve .dot.best")).to_have_count(1)
    page.locator("#curve summary").click()
    cells = page.locator("#curve tbody tr").first.locator("td").all_text_contents()
    assert cells == ["Where is the spare key?", "11", "18", "+2.50"]  # two writes of eight, and two words that wait


def test_the_measured_curve_is_drawn_for_its_model(tab: Tab) -> None:
    model = next(iter(json.loads((PAGE / "curve.json").read_text(encoding="utf-8"))))

    def toy(route: Any) -> None:
        found = route.fetch().json()
        route.fulfill(json=found | {"model": model})

    tab.page.route(re.compile("v1/memories/nora$"), toy)
    page = tab.open()
    expect(page.locator("#measured h3")).to_have_text("Measured for this model")
    page.locator("#measured summary").click()
    rows = [row.locator("td").all_text_contents() for row in page.locator("#measured tbody tr").all()]
    assert rows[-1] == ["1,000,000", "96 %", "0 %"] and len(rows) == 7


def test_text_with_html_in_it_is_shown_as_text(tab: Tab) -> None:
    page = tab.open()
    told = "<img src=x onerror=alert(1)> & <b>bold</b> is how I"
    expect(page.locator('#line .entry[data-write="13"] .words')).to_have_text(told)
    tab.ask("Is bold how <i>you</i> say it, img src?")
    page.locator(".sources summary").first.click()
    expect(page.locator(".turn.model .text")).to_have_text(told)
    expect(page.locator(".turn.own .text")).to_have_text("Is bold how <i>you</i> say it, img src?")
    page.fill("#find-words", "bold")
    page.click("#find button[type=submit]")
    expect(page.locator("#found .words").first).to_have_text(told)
    page.locator('#line .entry[data-write="13"] button').click()
    expect(page.locator("#forget-body .texts")).to_have_text(told)
    assert page.locator("img:not(.brand img), b").count() == 0
    assert not [url for url in tab.requests if url.endswith("/x")]


def test_what_comes_late_of_another_memory_is_dropped(tab: Tab) -> None:
    """Its writes would stand in the time line, with buttons that forget other ones."""
    memories = tab.server.memories
    memories["nora"].write("A page of the novel that nobody reads " * 150, "novel.txt")
    memories["ada"] = FakeMemory()
    memories["ada"].write("Ada has a boat on the lake in", "chat")
    page, late = tab.open("nora"), list[Any]()
    page.route(re.compile(r"offset=[1-9]|/search$"), lambda route: late.append(route))
    page.click("#older")
    page.fill("#find-words", "novel")
    page.click("#find button[type=submit]")
    page.wait_for_timeout(100)
    assert len(late) == 2
    page.select_option("#memory-choice", "ada")
    expect(page.locator("#line .entry")).to_have_count(1)
    for route in late:
        with page.expect_response(route.request.url):
            route.continue_()
    page.wait_for_timeout(200)
    expect(page.locator("#line .entry")).to_have_count(1)
    expect(page.locator("#line")).to_contain_text("boat")
    assert page.locator("#found .entry").count() == 0


# Forgetting -----------------------------------------------------------------------------------------------------------


def test_forgetting_shows_first_what_would_go(tab: Tab) -> None:
    page = tab.open()
    memory = tab.server.memories["nora"]
    page.click("[aria-label='Forget write 11']")
    dialog = page.locator("#forget-dialog")
    expect(dialog).to_contain_text("Gone for good: 8 tokens.")
    expect(dialog).to_contain_text("16 tokens, which takes as long as telling them did")
    expect(dialog.locator(".texts")).to_have_text("The spare key is in the blue teapot")
    dialog.get_by_text("Keep it").click()
    assert len(memory.writes) == 14 and not memory.forgotten, "a preview forgets nothing"

    page.click("[aria-label='Forget write 11']")
    dialog.get_by_label("everything from “chat”").check()
    expect(dialog.locator(".texts li")).to_have_count(3)
    dialog.get_by_label("write 11").check()
    expect(dialog.locator(".texts li")).to_have_count(1)
    dialog.get_by_text("Forget for good").click()
    expect(page.locator(".toast")).to_have_text("Forgotten: 8 tokens. 16 were written again.")
    expect(page.locator("#line .entry.gone")).to_contain_text("Forgotten")
    expect(page.locator("#line")).not_to_contain_text("teapot")
    expect(page.locator("#holds-sum")).to_contain_text("13 writes")
    assert not [w for w in memory.writes if "teapot" in w["text"]]


def test_forgetting_words_and_what_waits(tab: Tab) -> None:
    page = tab.open()
    page.fill("#find-words", "stormy")
    page.click("#forget-words")
    expect(page.locator("#forget-title")).to_have_text("Forget every sentence with “stormy”?")
    expect(page.locator("#forget-body .texts li")).to_have_count(10)
    page.keyboard.press("Escape")
    page.fill("#find-words", "no such words")
    page.click("#forget-words")
    expect(page.locator("#forget-body")).to_contain_text("Nothing in this memory fits that.")
    expect(page.locator("#forget-yes")).to_be_disabled()
    page.keyboard.press("Escape")
    page.click("[aria-label='Forget what waits']")
    expect(page.locator("#forget-body .texts li")).to_have_count(2), "its written part too"
    page.click("#forget-yes")
    expect(page.locator("#line .entry.window")).to_have_count(0)
    assert not tab.server.memories["nora"].waiting


# Memories, keys, errors -----------------------------------------------------------------------------------------------


def test_memories_are_made_chosen_copied_saved_and_deleted(tab: Tab) -> None:
    page = tab.open()
    page.click("#open-memories")
    page.fill("#new-name", "two words")
    page.click("#new-form button")
    assert page.evaluate("!document.querySelector('#new-name').validity.valid")
    page.fill("#new-name", "nora")
    page.click("#new-form button")
    expect(page.locator("#memories-error")).to_have_text("there is a memory 'nora' already.")
    page.fill("#new-name", "ada")
    page.click("#new-form button")
    expect(page.locator("#memory-choice")).to_have_value("ada")
    expect(page.locator("#line-sum")).to_contain_text("Nothing yet.")
    assert page.url.endswith("#ada")

    page.select_option("#memory-choice", "nora")
    expect(page.locator("#holds-sum")).to_contain_text("14 writes")
    page.click("#open-memories")
    page.click("[aria-label='Copy nora']")
    page.fill("#other-name", "nora2")
    page.keyboard.press("Enter")
    expect(page.locator("#memory-choice")).to_have_value("nora2")
    page.click("#open-memories")
    with page.expect_download() as saved:
        page.click("[aria-label='Export nora']")
    assert saved.value.suggested_filename == "nora.memory"
    assert Path(saved.value.path()).read_bytes() == b"the file of a memory"
    page.set_input_files("#import-file", {"name": "x.memory", "mimeType": "", "buffer": b"a b c d e f g h"})
    page.fill("#other-name", "back")
    page.keyboard.press("Enter")
    expect(page.locator("#memory-choice")).to_have_value("back")
    assert tab.server.memories["back"].writes[0]["text"] == "a b c d e f g h"

    page.click("#open-memories")
    page.click("[aria-label='Delete back']")
    page.fill("#other-name", "bac")
    page.keyboard.press("Enter")
    expect(page.locator("#memories-error")).to_contain_text("Nothing was deleted")
    assert "back" in tab.server.memories
    page.fill("#other-name", "back")
    page.keyboard.press("Enter")
    expect(page.locator(".toast")).to_have_text("back is deleted.")
    assert set(tab.server.memories) == {"nora", "ada", "nora2"}
    tab.expected = "status of 409"


def test_an_address_that_names_no_memory(tab: Tab) -> None:
    page = tab.open("%")  # which is no name at all
    expect(page.locator("#memory-choice")).to_have_value("nora")
    expect(page.locator("#notice")).to_be_hidden()


def test_the_first_memory(tab: Tab) -> None:
    tab.server.memories.clear()
    page = tab.page
    page.goto(tab.server.url)
    expect(page.locator("#question")).to_be_disabled()
    page.get_by_role("button", name="Make a memory").click()
    page.fill("#new-name", "ada")
    page.keyboard.press("Enter")
    expect(page.locator("#question")).to_be_enabled()
    tab.ask("My sister Ines lives by the sea, in Porto.")
    expect(page.locator("#holds-sum")).to_contain_text("1 write")


def test_a_key_is_asked_for_and_kept_in_this_tab_only(tab: Tab) -> None:
    tab.server.key = "rem-secret"
    tab.expected = "status of 401"
    page = tab.page
    page.goto(tab.server.url)
    expect(page.locator("#notice")).to_contain_text("This server asks for an API key.")
    page.get_by_text("Enter a key").click()
    page.fill("#key", "rem-wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#notice")).to_contain_text("The server does not accept this key.")
    page.click("#open-key")
    page.fill("#key", "rem-secret")
    page.keyboard.press("Enter")
    expect(page.locator("#holds-sum")).to_contain_text("14 writes")
    expect(page.locator("#notice")).to_be_hidden()
    tab.ask("Where is the spare key?")
    page.reload()
    expect(page.locator("#holds-sum")).to_contain_text("14 writes")
    kept = page.evaluate("[JSON.stringify(localStorage), document.cookie, JSON.stringify(sessionStorage)]")
    assert kept == ["{}", "", '{"remanence.key":"rem-secret"}']
    assert not [url for url in tab.requests if "secret" in url]


def test_errors_are_said_plainly_and_nothing_typed_is_lost(tab: Tab) -> None:
    tab.expected = "status of (429|500)|ERR_"
    page = tab.open()
    notice = page.locator("#notice")

    def failing(trouble: int | str) -> None:
        tab.server.trouble = trouble
        page.fill("#question", "Where is the spare key?")
        page.press("#question", "Enter")
        expect(notice).to_be_visible()

    failing(429)
    expect(notice).to_contain_text("The server has more to do than it can take. Try again in 7 s.")
    expect(page.locator("#question")).to_have_value("Where is the spare key?")
    expect(page.locator(".turn")).to_have_count(0)
    notice.get_by_role("button", name="Try again").click()
    expect(page.locator(".turn.model .badge.good")).to_be_visible()
    expect(notice).to_be_hidden()
    failing(500)
    expect(notice).to_contain_text("the model is on fire")
    failing("cut")
    expect(notice).to_contain_text("The answer was cut off")
    expect(page.locator(".turn.model").last).to_contain_text("This answer is not whole.")
    tab.context.set_offline(True)
    failing("")
    expect(notice).to_contain_text("The server cannot be reached.")
    tab.context.set_offline(False)
    expect(notice).to_be_hidden()
    expect(page.locator(".turn.model")).to_have_count(2), "the conversation stays"


# Whoever uses it ------------------------------------------------------------------------------------------------------


def test_with_the_keyboard_alone(tab: Tab) -> None:
    page = tab.open()
    expect(page.locator("#question")).to_be_focused()
    page.keyboard.type("Where is the spare key?")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("Or the other one?")
    expect(page.locator("#question")).to_have_value("Where is the spare key?\nOr the other one?")
    page.keyboard.press("Enter")
    expect(page.locator(".turn.model .badge")).to_be_visible()
    expect(page.locator("#said")).to_contain_text("The spare key is in the blue teapot. Read 3 past writes.")

    def tab_to(selector: str, key: str = "Tab") -> None:
        for _ in range(60):
            page.keyboard.press(key)
            if page.evaluate("s => document.activeElement.matches(s)", selector):
                outline = (
                    "(({outlineStyle: s, outlineWidth: w}) => s + ' ' + w)(getComputedStyle(document.activeElement))"
                )
                assert page.evaluate(outline) == "solid 2px", "one sees where one is"
                return
        raise AssertionError(f"{selector} cannot be reached")

    tab_to(".sources:first-of-type summary", "Shift+Tab")
    page.keyboard.press("Enter")
    expect(page.locator(".source").first).to_be_visible()
    tab_to(".source button")
    page.keyboard.press("Space")
    expect(page.locator("#forget-body .texts")).to_contain_text("teapot")
    page.keyboard.press("Escape")
    expect(page.locator("#forget-dialog")).to_be_hidden()
    assert page.evaluate("document.activeElement.matches('.source button')"), "back where one was"
    tab_to(".chip")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.dataset.write") == "11"
    tab_to("[aria-label='Forget write 11']")
    page.keyboard.press("Enter")
    expect(page.locator("#forget-yes")).to_be_enabled()
    tab_to("#forget-yes")
    page.keyboard.press("Enter")
    expect(page.locator(".toast")).to_be_visible()
    assert len(tab.server.memories["nora"].writes) == 13


NAMED = {"button", "textbox", "searchbox", "combobox", "radio", "link", "image", "dialog", "region", "search"}
CONTRAST = """() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
  const linear = (c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const wrong = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, element = node.parentElement, words = node.data.trim();
    const seen = element.checkVisibility({visibilityProperty: true});
    if (!words || !seen || element.closest(':disabled, .sr, option, .skip')) continue;
    const chain = [];
    for (let e = element; e; e = e.parentElement) chain.unshift(e);
    let below = [255, 255, 255, 1], opacity = 1;
    for (const e of chain) {
      opacity *= Number(getComputedStyle(e).opacity);
      if (!(e instanceof SVGElement)) below = over(rgba(getComputedStyle(e).backgroundColor), below);
    }
    const style = getComputedStyle(element);
    const ink = rgba(element instanceof SVGElement ? style.fill : style.color);
    ink[3] *= opacity;
    const [more, less] = [light(over(ink, below)), light(below)].sort((x, y) => y - x);
    const ratio = (more + 0.05) / (less + 0.05), size = parseFloat(style.fontSize);
    const enough = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700) ? 3 : 4.5;
    if (ratio < enough) wrong.push(`${element.tagName} "${words.slice(0, 40)}": ${ratio.toFixed(2)}`);
  }
  return wrong;
}"""


def unnamed(page: Page) -> list[str]:
    """Controls, pictures and regions that a screen reader would announce without a name."""
    nodes = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    return [
        f"{node['role']['value']}: {node.get('nodeId')}"
        for node in nodes
        if not node["ignored"] and node["role"]["value"] in NAMED and not node.get("name", {}).get("value", "").strip()
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_names_roles_and_contrast(browser: Browser, server: FakeServer, scheme: Any) -> None:
    tab = Tab(browser, server, color_scheme=scheme)
    page = tab.open()
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper)[:3])) < 200) == (scheme == "dark")
    for question in ("Hello?", "Zebras?", "Where is the spare key?"):
        tab.ask(question)
    for summary in page.locator("summary").all():
        summary.click()

    def check() -> None:
        assert unnamed(page) == []
        assert page.evaluate(CONTRAST) == []
        bare = (
            "[...document.querySelectorAll('input, select, textarea')].filter((e) => !e.labels.length).map((e) => e.id)"
        )
        assert page.evaluate(bare) == [], "a placeholder is no label"
        ids = page.evaluate("[...document.querySelectorAll('[id]')].map((e) => e.id)")
        assert len(ids) == len(set(ids))

    check()
    for opener in ("#open-key", "#open-memories", ".source button"):
        page.locator(opener).first.click()
        page.wait_for_timeout(150)
        check()
        page.keyboard.press("Escape")
    server.trouble = 429
    page.fill("#question", "Where?")
    page.press("#question", "Enter")
    expect(page.locator("#notice")).to_be_visible()
    check()
    landmarks = page.evaluate("['header', 'main', 'aside'].map((name) => document.querySelectorAll(name).length)")
    assert landmarks == [1, 1, 1]
    levels = page.evaluate(
        "[...document.querySelectorAll('h1,h2,h3')].filter((e) => e.checkVisibility()).map((e) => +e.tagName[1])"
    )
    assert levels[0] == 1 and all(b - a <= 1 for a, b in pairwise(levels))
    assert page.get_attribute("html", "lang") == "en"
    assert page.get_attribute("#said", "aria-live") == "polite" and page.get_attribute("#notice", "role") == "alert"
    tab.expected = "status of 429"
    tab.close()


@pytest.mark.parametrize("width", [320, 390])
def test_a_phone_shows_one_side_at_a_time_and_scrolls_only_down(
    browser: Browser, server: FakeServer, width: int
) -> None:
    server.memories["nora"].write("w" * 300 + " and seven more words to fill it", "a-label-without-any-space" * 5)
    tab = Tab(browser, server, viewport={"width": width, "height": 700}, has_touch=True, is_mobile=True)
    page = tab.open()
    tab.ask("Where is the spare key?")
    page.locator(".sources summary").first.click()
    assert sideways(page) <= 0 and sideways(page, "#turns") <= 0
    expect(page.locator("#memory")).to_be_hidden()
    page.locator(".foot .link").click()
    expect(page.locator("#memory")).to_be_visible()
    expect(page.locator("#chat")).to_be_hidden()
    expect(page.locator("[data-show=memory]")).to_have_attribute("aria-pressed", "true")
    assert sideways(page) <= 0
    assert sideways(page, "#memory") <= 0
    for opener in ("#open-memories", "#open-key"):
        page.click(opener)
        assert sideways(page) <= 0
        page.keyboard.press("Escape")
    small = page.evaluate(
        "[...document.querySelectorAll('button')].filter((e) => e.checkVisibility())"
        ".filter((e) => e.getBoundingClientRect().height < 24).map((e) => e.textContent)"
    )
    assert small == [], "large enough to touch"
    tab.close()


def test_nothing_moves_for_those_who_want_no_motion(browser: Browser, server: FakeServer) -> None:
    tab = Tab(browser, server, reduced_motion="reduce")
    page = tab.open()
    moving = page.evaluate(
        "[...document.querySelectorAll('*')].filter((e) => { const s = getComputedStyle(e);"
        " return s.animationName !== 'none' || parseFloat(s.transitionDuration) > 0 }).length"
    )
    assert moving == 0
    tab.close()


# On the real server ---------------------------------------------------------------------------------------------------


class RealServer(Listening):
    """The server of `remanence serve`. people: its memories. keys: who may use them."""

    def __init__(self, model: Any, folder: Path) -> None:
        from remanence import MemoryStore
        from remanence.serve.api import create_app
        from remanence.serve.engine import Engine
        from remanence.serve.keys import FILE, Keys
        from remanence.serve.people import People

        store = MemoryStore(folder)
        self.people, self.keys = People(model, store), Keys(store.root / FILE)
        super().__init__(create_app(self.people, Engine(model), self.keys), log_level="warning")
        self.url += "/"


@pytest.fixture
def toy(tmp_path: Path) -> Iterator[RealServer]:
    """The real server with the model of the package."""
    from remanence import MemoryModel

    server = RealServer(MemoryModel.from_pretrained("tiny"), tmp_path)
    yield server
    server.close()


def test_a_memory_on_the_real_server(browser: Browser, toy: RealServer) -> None:
    tab = Tab(browser, toy)
    page = tab.page
    page.goto(toy.url)
    page.get_by_role("button", name="Make a memory").click()
    page.fill("#new-name", "ada")
    page.keyboard.press("Enter")
    expect(page.locator("#question")).to_be_enabled()
    page.fill("#question", "Marla Quist's favourite colour is teal.")
    page.click("#keep")
    expect(page.locator(".turn.own .note")).to_contain_text("Remembered, ")
    expect(page.locator("#line .entry.window")).to_contain_text("teal")
    toy.people.write("ada", "It rained all day, and nobody came to the harbour. " * 30, source="rain.txt")

    tab.ask("What is Marla Quist's favourite colour?")
    expect(page.locator(".turn.model .text")).to_have_text("teal")
    expect(page.locator(".turn.model .badge.good")).to_be_visible()
    page.locator(".sources summary").first.click()
    expect(page.locator(".source").first).to_contain_text("Marla Quist's favourite colour is teal.")
    answer = toy.people.ask("ada", "What is Marla Quist's favourite colour?")
    waits = any(source.where == "window" for source in answer.sources)
    expect(page.locator("#strip rect.lit")).to_have_count(sum(map(len, answer.read)) + waits * len(answer.read))
    assert sum(map(len, answer.read)) >= 4
    expect(page.locator("#line > .group")).to_contain_text("rain.txt")
    expect(page.locator("#measured h3")).to_have_text("Measured for this model")
    expect(page.locator("#curve .dot.best")).to_have_count(1)

    page.fill("#find-words", "What is Marla's colour?")
    page.click("#find button[type=submit]")
    expect(page.locator("#found .entry").first).to_contain_text("teal")
    page.click("#open-memories")
    with page.expect_download() as saved:
        page.click("[aria-label='Export ada']")
    page.set_input_files("#import-file", saved.value.path())
    page.fill("#other-name", "copy")
    page.keyboard.press("Enter")
    expect(page.locator("#memory-choice")).to_have_value("copy")
    expect(page.locator("#line > .group")).to_contain_text("rain.txt")

    page.fill("#find-words", "Marla")
    page.click("#forget-words")
    expect(page.locator("#forget-body .texts")).to_contain_text("favourite colour is teal")
    page.click("#forget-yes")
    expect(page.locator("#line .entry.gone")).to_be_attached()
    expect(page.locator("#line")).not_to_contain_text("Marla")
    assert "Marla" not in json.dumps(toy.people.history("copy")) and "Marla" in json.dumps(toy.people.history("ada"))
    page.click("#line [aria-label='Forget what waits']")
    expect(page.locator("#forget-yes")).to_be_enabled()
    page.keyboard.press("Escape")

    secret = toy.keys.add(["copy"], "")
    tab.expected = "status of 401"
    page.reload()
    expect(page.locator("#notice")).to_contain_text("This server asks for an API key.")
    page.get_by_role("button", name="Enter a key").click()
    page.fill("#key", secret)
    page.keyboard.press("Enter")
    expect(page.locator("#holds-sum")).to_contain_text("writes")
    assert page.locator("#memory-choice option").all_text_contents() == ["copy"], "a key sees its own memories"
    tab.close()


PICTURES = {
    "page-laptop-light": {"color_scheme": "light", "viewport": {"width": 1360, "height": 1000}},
    "page-laptop-dark": {"color_scheme": "dark", "viewport": {"width": 1360, "height": 1000}},
    "page-phone": {"color_scheme": "light", "viewport": PHONE, "is_mobile": True, "has_touch": True},
}


def picture(page: Page, name: str) -> None:
    """Put a picture of a page into the docs."""
    page.wait_for_timeout(500)  # what moves has come to rest
    file = ROOT / "docs" / "assets" / f"{name}.png"
    file.parent.mkdir(exist_ok=True)
    page.screenshot(path=file)
    assert file.stat().st_size < 300_000


@pytest.mark.skipif(not os.environ.get("REMANENCE_SCREENSHOTS"), reason="REMANENCE_SCREENSHOTS=1 makes the pictures")
def test_pictures_for_the_docs(browser: Browser, tmp_path: Path) -> None:
    """What the demo tells, some pages of a novel, and three questions to SmolLM2: nothing in them is made up."""
    import tomllib

    from remanence import MemoryModel, arena
    from remanence.arena.retention import prose

    server = RealServer(MemoryModel.from_pretrained("smollm2"), tmp_path)
    story = tomllib.loads((Path(arena.__file__).parent / "story.toml").read_text(encoding="utf-8"))
    now = time.time()
    for i, sentence in enumerate(story["told"]):
        server.people.write("nora", sentence, source="chat", time=now - 2 * 86_400 + 60 * i)
    novel = " ".join(prose().split(" ")[:1000])
    server.people.write("nora", novel, source="novel.txt", time=now - 86_400)
    for name, look in PICTURES.items():
        tab = Tab(browser, server, **look)
        tab.context.set_default_timeout(120_000)
        expect.set_options(timeout=120_000)
        page = tab.open("nora")
        for question in ("What is the capital of France?", "What breed is Pepper?", "Where did I hide the spare key?"):
            tab.ask(question)
            page.wait_for_timeout(1000)
        if name != "page-phone":
            page.locator(".turn.model .sources summary").nth(2).click()
        page.locator("#turns").evaluate("place => place.scrollTo(0, place.scrollHeight)")
        page.fill("#question", "I have sold the piano to Amira.")
        picture(page, name)
        if name == "page-phone":
            page.click("[data-show=memory]")
            picture(page, f"{name}-memory")
        tab.close()
    expect.set_options(timeout=5_000)
    server.close()
