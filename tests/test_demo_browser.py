"""The page of `make demo` in a real browser, which may load nothing from anywhere else.

apt-get install chromium
"""

# ruff: noqa: E402  (what may be missing is looked for before the rest is imported)

import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the page needs requirements-demo.txt")
sync_api = pytest.importorskip("playwright.sync_api", reason="there is no Playwright")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="there is no axe-core")

from playwright.sync_api import expect

from benchmarks import browser
from demo import server
from demo.local import LocalModel
from demo.pictures import Limits
from remote_code.conversation import THINK_END
from tests import checkpoints
from tests.demo_backends import Scripted, Switch

pytestmark = pytest.mark.skipif(
    browser.executable() is None, reason="there is no Chromium (Debian: apt-get install chromium)"
)

# A machine that does other work as well is slow, which is not what is tested here.
expect.set_options(timeout=30_000)  # milliseconds

IMAGES = checkpoints.ROOT / "examples" / "images"
COUNTING = IMAGES / "counting_1.png"
CALCULATION = IMAGES / "calculation_1.png"
WIDE = {"width": 1200, "height": 900}
# The last message is the model's, and the next question can be sent.
IS_ANSWERED = """() => {
    const messages = document.querySelectorAll("#conversation [data-testid]");
    const whose = [...messages].map(message => message.dataset.testid);
    const last = whose.filter(id => id === "user" || id === "bot").pop();
    return last === "bot" && !document.querySelector("#question .stop-button")
        && document.querySelector("#question .submit-button");
}"""
END_OF_ANIMATIONS = """async part => {
    const frame = () => new Promise(requestAnimationFrame);
    await frame();
    await frame();
    const moves = part.getAnimations({subtree: true});
    await Promise.allSettled(moves.map(move => move.finished));
    await frame();
}"""
NARROW = {"width": 360, "height": 740}  # CSS pixels of a small phone


@pytest.fixture(scope="module")
def nano(nano_model, nano_tokenizer):
    return LocalModel(nano_model, nano_tokenizer, nano_model.generation_config, "nano")


@pytest.fixture(scope="module")
def endless(tiny_path):
    """Random weights, which never write the token that ends an answer."""
    return LocalModel.load(str(tiny_path))


@pytest.fixture(scope="module")
def served(nano):
    limits = Limits(bytes_of_picture=2_000_000, pixels_of_picture=2_900_000)
    with server.running(Switch(nano), limits=limits) as page:
        yield page


@pytest.fixture(scope="module")
def chromium():
    with sync_api.sync_playwright() as playwright:
        opened = browser.launch(playwright)
        yield opened
        opened.close()


class Visitor:
    """An open page, and what it asked other hosts for."""

    def __init__(self, chromium, served, viewport=None):
        self.outside = []
        self.errors = []
        self.context = chromium.new_context(viewport=viewport or WIDE)
        self.page = self.context.new_page()
        own = (served.address, "data:", "blob:")
        self.page.on(
            "request",
            lambda request: (
                None if request.url.startswith(own) else self.outside.append(request.url)
            ),
        )
        self.page.on("pageerror", lambda error: self.errors.append(error.stack or str(error)))
        browser.open_page(self.page, served.address)
        self.conversation = self.page.locator("#conversation")

    def send(self, question, *pictures):
        """Send a question with pictures."""
        browser.ask(self.page, question, pictures)
        self.page.keyboard.press("Enter")

    def ask(self, question, *pictures):
        """Send a question that was not asked before, which is accepted."""
        self.send(question, *pictures)
        expect(self.conversation.get_by_text(question)).to_be_visible(timeout=15_000)

    def answer(self):
        """The last answer, once it is complete."""
        self.page.wait_for_function(IS_ANSWERED, timeout=30_000)
        return self.conversation.get_by_test_id("bot").last

    def end_of_animations(self):
        """Wait until nothing of the conversation moves, nor what an event has just begun."""
        self.conversation.evaluate(END_OF_ANIMATIONS)

    def button(self, name):
        return self.page.get_by_role("button", name=name, exact=True)


@pytest.fixture
def visitor(chromium, served, nano):
    """A visitor of nano, who has loaded nothing from elsewhere and met no error in a script."""
    served.handlers.backend.model = nano
    opened = Visitor(chromium, served)
    yield opened
    opened.context.close()
    assert opened.outside == [] and opened.errors == []


def scripted(served, pieces):
    """Let the page ask a model that writes what it is told to."""
    switch = served.handlers.backend
    switch.model = Scripted(switch.tiling, pieces)
    return switch.model


def generations():
    return [thread for thread in threading.enumerate() if thread.name == "chat_stream"]


def wait_until(is_so, seconds=15):
    """Wait for something outside the browser."""
    end = time.monotonic() + seconds
    while not is_so() and time.monotonic() < end:
        time.sleep(0.05)
    assert is_so()


def test_a_picture_is_shown_and_asked_about(visitor):
    visitor.ask("How many shapes are in the image?", COUNTING)
    answer = visitor.answer()
    expect(answer.locator(".katex")).to_have_text(re.compile("boxed|9|\\d"))
    question = visitor.conversation.get_by_test_id("user")
    expect(question.first).to_be_visible()
    shown = visitor.conversation.locator("[data-testid=user] img")
    expect(shown).to_have_count(1)
    assert shown.evaluate("image => image.naturalWidth") > 0
    expect(visitor.conversation).to_contain_text("How many shapes are in the image?")
    assert visitor.page.input_value("#question textarea") == ""


def test_the_second_turn_has_a_second_picture(visitor, nano_model, nano_tokenizer):
    """The answer is that of `chat()` about both."""
    options = {"max_new_tokens": 300, "do_sample": False}
    first, second = "How many shapes are in the image?", "And in this one?"
    _, history = nano_model.chat(nano_tokenizer, str(COUNTING), first, options, return_history=True)
    expected = nano_model.chat(
        nano_tokenizer, [str(COUNTING), str(CALCULATION)], second, options, history=history
    )
    visitor.ask(first, COUNTING)
    visitor.answer()
    visitor.ask(second, CALCULATION)
    expect(visitor.conversation.locator("[data-testid=user] img")).to_have_count(2)
    visitor.answer()
    with visitor.page.expect_download() as download:
        visitor.button("Download as JSON").click()
    written = json.loads(download.value.path().read_text(encoding="utf-8"))
    # nano was taught single questions: a second turn's thinking may have no end
    end = THINK_END if THINK_END in expected else ""
    raw = f"{written['turns'][1]['thinking']}{end}{written['messages'][3]['content']}"
    assert "".join(raw.split()) == "".join(expected.split())
    assert [len(message["content"]) for message in written["messages"][::2]] == [2, 2]


def test_text_is_streamed_and_the_thinking_folded(visitor, served):
    seen = [threading.Event(), threading.Event()]
    pieces = ["First I look. ", seen[0], "Then I count.", seen[1], THINK_END, "Two", " shapes."]
    scripted(served, pieces)
    visitor.ask("How many?")
    conversation = visitor.conversation
    expect(conversation.get_by_text("First I look.")).to_be_visible()
    assert "Then I count." not in conversation.inner_text()
    seen[0].set()
    expect(conversation.get_by_text("Then I count.")).to_be_visible()
    seen[1].set()
    visitor.answer()
    expect(conversation.get_by_text("Two shapes.")).to_be_visible()
    expect(conversation.get_by_text("Then I count.")).not_to_be_visible()
    line = conversation.locator(".title")
    expect(line).to_contain_text(re.compile(r"Thought\s*7 tokens\s*\(\d+\.\d+s\)"))


@pytest.mark.parametrize("key", ["Enter", "Space"])
def test_a_key_shows_the_thinking_and_folds_it(visitor, served, key):
    scripted(served, ["First I look.", THINK_END, "Two shapes."])
    visitor.ask("How many?")
    visitor.answer()
    thinking = visitor.conversation.get_by_text("First I look.")
    visitor.end_of_animations()
    expect(thinking).not_to_be_visible()
    visitor.conversation.get_by_label("Show or fold the thinking").focus()
    for is_shown in (True, False):
        visitor.page.keyboard.press(key)
        visitor.end_of_animations()  # what is being folded can still be seen
        expect(thinking).to_be_visible(visible=is_shown)


FORMULAS = (  # a text, and the letters of its formula
    ("So \\boxed{\\frac{1}{2}}.", "12"),
    ("So $x^2$ it is.", "x2"),
    ("So \\(x^3\\) it is.", "x3"),
    ("So\n\\[x^4\\]\nit is.", "x4"),
    ("So $$x^5$$ it is.", "x5"),
)


def test_formulas_are_rendered(visitor, served):
    for number, (text, letters) in enumerate(FORMULAS, 1):
        scripted(served, [THINK_END, text])
        visitor.ask(f"Formula {number}?")
        rendered = visitor.answer().locator(".katex .katex-html")
        expect(rendered).to_have_count(1)
        assert sorted(re.sub(r"\W", "", rendered.inner_text())) == sorted(letters), text
    scripted(served, [THINK_END, "It costs $5 or $6."])
    visitor.ask("How much money?")
    answer = visitor.answer()
    expect(answer).to_contain_text("It costs $5 or $6.")
    expect(answer.locator(".katex")).to_have_count(0)


def test_an_answer_cannot_load_anything_from_elsewhere(visitor, served, elsewhere):
    """Nor send anything: a picture's address can carry what was said."""
    address, requests = elsewhere
    text = (
        f"![a]({address}/a.png) <img src='{address}/b.png'> <script src='{address}/c.js'></script>"
        f"<video src='{address}/d.mp4'></video> <style>@import '{address}/e.css';</style> done"
    )
    scripted(served, [THINK_END, text])
    visitor.ask("Show it")
    expect(visitor.answer()).to_contain_text("done")
    visitor.page.wait_for_timeout(500)
    assert requests == []
    visitor.outside.clear()  # Chromium tells Playwright of what the content policy stops, too


@pytest.fixture
def elsewhere():
    """(address, paths that were asked for) of another server."""
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            self.send_error(404)

    other = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=other.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{other.server_address[1]}", requests
    other.shutdown()
    other.server_close()


def test_stop_ends_the_generation(visitor, served, endless):
    served.handlers.backend.model = endless
    visitor.ask("Go on.")
    wait_until(generations)
    visitor.page.locator("#question .stop-button").click()
    wait_until(lambda: not generations())
    expect(visitor.conversation).to_contain_text("Stopped.")
    expect(visitor.page.locator("#question .submit-button")).to_be_visible()
    assert served.handlers.runs.number == 0


def test_closing_the_tab_ends_the_generation(chromium, served, endless):
    served.handlers.backend.model = endless
    visitor = Visitor(chromium, served)
    visitor.ask("Go on.")
    wait_until(generations)
    visitor.context.close()
    wait_until(lambda: not generations())
    wait_until(lambda: served.handlers.runs.number == 0)


def test_visitors_are_answered_one_after_another(chromium, served, visitor):
    go_on = threading.Event()
    model = scripted(served, ["Let me see. ", go_on, THINK_END, "Done."])
    other = Visitor(chromium, served)
    visitor.ask("First?")
    expect(visitor.conversation).to_contain_text("Let me see.")
    other.ask("Second?")
    other.page.wait_for_timeout(500)
    assert len(model.asked) == 1
    go_on.set()
    expect(visitor.answer()).to_contain_text("Done.")
    expect(other.answer()).to_contain_text("Done.")
    assert len(model.asked) == 2 and "Second?" not in visitor.conversation.inner_text()
    other.context.close()


def test_what_is_typed_during_an_answer_is_kept(visitor, served):
    go_on = threading.Event()
    scripted(served, ["Let me see. ", go_on, THINK_END, "Done."])
    visitor.ask("First?")
    expect(visitor.conversation).to_contain_text("Let me see.")
    visitor.page.fill("#question textarea", "the next question")
    go_on.set()
    visitor.answer()
    assert visitor.page.input_value("#question textarea") == "the next question"


def test_edit_and_retry(visitor, served):
    model = scripted(served, [THINK_END, "Yes."])
    visitor.ask("Is it?", COUNTING)
    visitor.answer()
    visitor.conversation.get_by_label("Retry").click()
    wait_until(lambda: len(model.asked) == 2)
    visitor.answer()
    visitor.button("Edit the last question").click()
    expect(visitor.page.locator("#question textarea")).to_have_value("Is it?")
    expect(visitor.page.locator("#question .thumbnail-wrapper")).to_have_count(1)
    visitor.page.fill("#question textarea", "Is it not?")
    visitor.page.keyboard.press("Enter")
    wait_until(lambda: len(model.asked) == 3)
    visitor.answer()
    turns, _ = model.asked[-1]
    assert [turn.text for turn in turns] == ["Is it not?"] and len(turns[0].images) == 1


def test_settings_reach_the_model(visitor, served):
    model = scripted(served, [THINK_END, "Yes."])
    visitor.page.get_by_role("button", name="Settings").click()
    visitor.page.get_by_label("Think before answering").uncheck()
    visitor.page.get_by_label("Thinking budget").fill("64")
    visitor.page.get_by_label("System message").fill("Be brief.")
    visitor.page.get_by_label("number input for Temperature").fill("0.7")
    visitor.ask("Is it?")
    visitor.answer()
    _, settings = model.asked[0]
    assert (settings.thinks, settings.thinking_budget) == (False, 64)
    assert (settings.system_message, settings.temperature) == ("Be brief.", 0.7)


@pytest.mark.parametrize("kind, sentence", [
    ("pixels", "2000 × 1500 pixels"), ("text", "no picture that can be read"),
])  # fmt: skip
def test_an_error_is_a_sentence_and_loses_nothing(visitor, tmp_path, kind, sentence):
    path = tmp_path / "picture.png"
    if kind == "pixels":
        Image.new("1", (2000, 1500)).save(path)
    else:
        path.write_text("no picture")
    visitor.send("What is it?", path)
    expect(visitor.page.get_by_role("alert")).to_contain_text(sentence)
    assert str(tmp_path) not in visitor.page.content()
    assert visitor.page.input_value("#question textarea") == "What is it?"
    expect(visitor.page.locator("#question .thumbnail-wrapper")).to_have_count(1)
    visitor.page.get_by_label("Remove file").click()
    visitor.send("How many shapes are in the image?", COUNTING)
    expect(visitor.conversation).to_contain_text("How many shapes")
    visitor.answer()
    expect(visitor.page.get_by_role("alert")).to_have_count(0)


def test_a_file_that_is_too_large_is_refused(visitor, tmp_path):
    path = tmp_path / "large.png"
    path.write_bytes(b"x" * 2_400_000)
    visitor.page.set_input_files("#question input[type=file]", str(path))
    toast = visitor.page.get_by_test_id("toast-body")
    expect(toast).to_contain_text(re.compile("exceeds|large"))


def test_a_failure_of_the_model_is_a_sentence(visitor, served):
    scripted(served, ["Hm", THINK_END, "Half", OSError("the wire broke")])
    visitor.ask("Is it?")
    expect(visitor.conversation).to_contain_text("No answer: the wire broke")


def test_what_the_model_saw(visitor):
    visitor.ask("How many shapes are in the image?", COUNTING)
    visitor.answer()
    visitor.button("What the model saw").click()
    panel = visitor.page.locator("#panel")
    expect(panel.locator("figure img").first).to_be_visible()
    expect(panel).to_contain_text(re.compile(r"a grid of \d × \d tiles of 112 × 112 pixels"))
    expect(panel).to_contain_text("of the 4,096 tokens of the context")


def test_where_the_model_looked(visitor):
    """The panel shows a heat map of the picture; before an answer it says what is missing."""
    visitor.button("Where it looked").click()
    expect(visitor.page.get_by_role("alert")).to_contain_text("no answer about a picture")
    visitor.ask("How many shapes are in the image?", COUNTING)
    visitor.answer()
    visitor.button("Where it looked").click()
    panel = visitor.page.locator("#panel")
    expect(panel.get_by_alt_text("Picture 1 with its heat map")).to_be_visible(timeout=60_000)
    expect(panel).to_contain_text("counting_1.png")


def test_an_example_fills_the_box(visitor):
    question = "Which image shows more shapes, the first or the second?"
    visitor.conversation.get_by_role("button", name=question).click()
    expect(visitor.page.locator("#question textarea")).to_have_value(question)
    expect(visitor.page.locator("#question .thumbnail-wrapper")).to_have_count(2)
    visitor.page.locator("#question .submit-button").click()
    expect(visitor.answer()).to_contain_text("second")


def test_a_picture_can_be_pasted_and_dropped(visitor):
    """The file arrives as a browser gives it to the page's own listeners."""
    script = """([kind, bytes]) => {
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], kind + ".png", {type: "image/png"}));
        const target = document.querySelector("#question textarea");
        const event = kind === "paste"
            ? new ClipboardEvent("paste", {clipboardData: data, bubbles: true, cancelable: true})
            : new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true});
        target.dispatchEvent(event);
    }"""
    for number, kind in enumerate(["paste", "drop"], 1):
        visitor.page.evaluate(script, [kind, list(COUNTING.read_bytes())])
        thumbnails = visitor.page.locator("#question .thumbnail-wrapper")
        expect(thumbnails).to_have_count(number)


def test_a_photo_of_the_camera_joins_the_question(visitor, served):
    model = scripted(served, [THINK_END, "Yes."])
    visitor.page.get_by_role("button", name="Camera").click()
    camera = visitor.page.locator("#camera")
    camera.get_by_text("Click to Access Webcam").click()
    visitor.page.wait_for_function("document.querySelector('#camera video')?.videoWidth > 0")
    camera.get_by_role("button", name="capture photo").click()
    expect(camera.locator("img")).to_be_visible(timeout=15_000)
    visitor.button("Add the photo to the question").click()
    expect(visitor.page.locator("#question .thumbnail-wrapper")).to_have_count(1)
    visitor.page.fill("#question textarea", "What is it?")
    visitor.page.locator("#question .submit-button").click()
    visitor.answer()
    [turn] = model.asked[0][0]
    assert len(turn.images) == 1


def width_of(page):
    """How far the page reaches, in CSS pixels."""
    return page.evaluate("document.documentElement.scrollWidth")


def test_a_phone_shows_all_of_the_width(chromium, served, nano):
    served.handlers.backend.model = nano
    visitor = Visitor(chromium, served, NARROW)
    assert width_of(visitor.page) <= NARROW["width"]
    visitor.ask("Which image has more shapes?", IMAGES / "pair_1a.png", IMAGES / "pair_1b.png")
    visitor.answer()
    visitor.button("What the model saw").click()
    expect(visitor.page.locator("#panel figure").first).to_be_visible()
    visitor.page.get_by_role("button", name="Settings").click()
    visitor.page.get_by_role("button", name="Camera").click()
    expect(visitor.page.get_by_label("System message")).to_be_visible()
    assert width_of(visitor.page) <= NARROW["width"] and visitor.outside == []
    visitor.context.close()


def findings(page):
    """What axe-core finds serious or critical on a page."""
    page.wait_for_timeout(300)
    found = axe.Axe().run(page).response["violations"]
    return [
        (violation["id"], [node["html"][:150] for node in violation["nodes"]])
        for violation in found
        if violation["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_keeps_anybody_from_using_the_page(visitor, scheme):
    visitor.page.emulate_media(color_scheme=scheme)
    visitor.page.reload()
    visitor.page.wait_for_selector("body[data-ready=true] #question textarea")
    assert findings(visitor.page) == []
    browser.ask(visitor.page, "Which image has more shapes?", [COUNTING, CALCULATION])
    assert findings(visitor.page) == []
    visitor.page.keyboard.press("Enter")
    visitor.answer()
    visitor.button("What the model saw").click()
    expect(visitor.page.locator("#panel figure").first).to_be_visible()
    visitor.page.get_by_role("button", name="Settings").click()
    visitor.page.get_by_role("button", name="Camera").click()
    assert findings(visitor.page) == []
