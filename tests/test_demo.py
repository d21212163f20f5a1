"""The page of `make demo` without a browser: messages, bounds, models, tiles, and its gate."""

# ruff: noqa: E402  (what may be missing is looked for before the rest is imported)

import asyncio
import base64
import http.client
import json
import os
import threading
import types
import urllib.parse

import numpy as np
import pytest
from PIL import Image

gradio = pytest.importorskip("gradio", reason="the page needs requirements-demo.txt")

from demo import __main__ as command
from demo import conversation, handlers, looked, pictures, safety, seen, server
from demo.backend import AnswerFailed
from demo.conversation import ANSWERING, DONE, FAILED, STOPPED, THINKING, WAITING, Counts, Turn
from demo.endpoint import Endpoint
from demo.local import LocalModel
from demo.pictures import Limits
from demo.seen import Tiling
from demo.settings import Settings
from explain.looking import where_it_looked
from remote_code.conversation import THINK_END
from tests import checkpoints
from tests.demo_backends import Scripted, StreamingEndpoint

IMAGES = checkpoints.ROOT / "examples" / "images"
COUNTING = str(IMAGES / "counting_1.png")
CALCULATION = str(IMAGES / "calculation_1.png")
GREEDY = Settings(temperature=0.0, max_new_tokens=200)
REQUEST = types.SimpleNamespace(session_hash="a visitor")


@pytest.fixture(scope="module")
def local(nano_model, nano_tokenizer):
    return LocalModel(nano_model, nano_tokenizer, nano_model.generation_config, "nano")


@pytest.fixture(scope="module")
def endless(tiny_path):
    """Random weights, which never write the token that ends an answer."""
    return LocalModel.load(str(tiny_path))


def read(reply):
    """All of a reply."""
    for _ in reply:
        pass
    return reply.written


# -- what is shown ---------------------------------------------------------------------------------


@pytest.mark.parametrize("text, marked, reason", [
    (r"\boxed{7}", r"\(\boxed{7}\)", "models box answers without any mark"),
    (r"so \boxed{\frac{1}{2}} it is", r"so \(\boxed{\frac{1}{2}}\) it is", "braces in braces"),
    (r"\boxed{\{1\}}", r"\(\boxed{\{1\}}\)", "escaped braces do not count"),
    (r"\boxed{\frac{1", r"\boxed{\frac{1", "a box that is not written to its end"),
    (r"$\boxed{7}$", r"\(\boxed{7}\)", "marked once, not twice"),
    (r"$$\boxed{7}$$", r"$$\boxed{7}$$", "marked already"),
    (r"\[\boxed{7}\]", r"\[\boxed{7}\]", "marked already"),
    (r"\(\boxed{7}\)", r"\(\boxed{7}\)", "marked already"),
    (r"`\boxed{7}` and $x$", r"`\boxed{7}` and \(x\)", "code stays as it is"),
    ("```\n$x$ \\boxed{7}", "```\n$x$ \\boxed{7}", "code whose end is not written yet"),
    ("$5 and $6", "$5 and $6", "money"),
    ("from $5-$6 on", "from $5-$6 on", "money"),
    (r"\$5 and $y$", r"\$5 and \(y\)", "an escaped dollar"),
    ("$x$, $y$", r"\(x\), \(y\)", "several formulas"),
    ("", "", "nothing"),
])  # fmt: skip
def test_formulas_are_marked_as_the_page_renders_them(text, marked, reason):
    assert conversation.with_marked_math(text) == marked, reason


ASKED = Turn("How many?", (COUNTING,), GREEDY)
TURNS = {
    "waiting": (ASKED, ["user"]),
    "thinking, no text yet": (ASKED.changed(status=THINKING), ["user", "Thinking"]),
    "thinking": (ASKED.changed(status=THINKING, thinking="Hm"), ["user", "Thinking"]),
    "without thinking": (ASKED.changed(status=ANSWERING, answer="2"), ["user", "answer"]),
    "done": (ASKED.changed(status=DONE, thinking="Hm", answer="2"), ["user", "Thought", "answer"]),
    "stopped early": (ASKED.changed(status=STOPPED), ["user", "answer"]),
    "failed": (ASKED.changed(status=FAILED, failure="No room."), ["user", "answer"]),
}


def kinds(messages):
    """The kind of each message: of whom, or the title of a thinking."""
    found = []
    for message in messages:
        title = message.get("metadata", {}).get("title")
        found.append(title or {"user": "user", "assistant": "answer"}[message["role"]])
    return found


@pytest.mark.parametrize("name", TURNS)
def test_messages_of_a_turn(name):
    turn, expected = TURNS[name]
    assert kinds(conversation.messages_of([turn])) == expected


def test_every_message_leads_to_its_turn():
    turns = [turn for turn, _ in TURNS.values()]
    owners = []
    for number, (_, expected) in enumerate(TURNS.values()):
        owners += [number] * len(expected)
    places = range(len(conversation.messages_of(turns)))
    assert [conversation.turn_of_message(turns, place) for place in places] == owners
    for outside in (-1, len(owners)):
        with pytest.raises(ValueError, match="reload"):
            conversation.turn_of_message(turns, outside)


def test_a_folded_thinking_has_its_duration_and_tokens():
    turn = ASKED.changed(
        status=DONE, thinking="Hm", answer="2", thinking_seconds=1.5, counts=Counts(9, 1234, 2)
    )
    [_, thinking, _] = conversation.messages_of([turn])
    expected = {"title": "Thought", "status": "done", "duration": 1.5, "log": "1,234 tokens"}
    assert thinking["metadata"] == expected


def test_the_file_of_a_conversation_has_everything():
    turn = ASKED.changed(status=DONE, raw="Hm</think>2", thinking="Hm", answer="2", seconds=2.0)
    written = json.loads(conversation.as_json([turn, Turn("And <b>?")], "nano"))
    question, answer, second, _ = written["messages"]
    url = question["content"][0]["image_url"]["url"]
    content = base64.b64decode(url.removeprefix("data:image/png;base64,"))
    assert content == (IMAGES / "counting_1.png").read_bytes()
    assert (question["content"][1]["text"], answer["content"]) == ("How many?", "2")
    assert second["content"] == [{"type": "text", "text": "And <b>?"}]
    assert written["turns"][0]["thinking"] == "Hm" and written["turns"][0]["seconds"] == 2.0
    assert written["turns"][0]["settings"]["max_new_tokens"] == 200
    assert str(IMAGES) not in json.dumps(written)


# -- bounds ----------------------------------------------------------------------------------------

LIMITS = Limits(
    bytes_of_picture=20_000,
    pixels_of_picture=1_000_000,
    pictures_of_question=2,
    pictures_of_conversation=3,
    characters_of_question=50,
)


@pytest.fixture(scope="module")
def uploads(tmp_path_factory):
    """Files as visitors upload them."""
    folder = tmp_path_factory.mktemp("uploads")
    Image.new("1", (1500, 1000)).save(folder / "large.png")
    Image.new("RGB", (60, 40), "red").save(folder / "small.png")
    noise = np.random.default_rng(0).integers(0, 256, (120, 120, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "heavy.png")
    (folder / "text.png").write_text("no picture")
    (folder / "empty.png").write_bytes(b"")
    (folder / "script.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'></svg>")
    whole = (folder / "heavy.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    return folder


@pytest.mark.parametrize("text, names, num_earlier, sentence, reason", [
    ("Hello?", [], 0, None, "a question about text"),
    ("", ["small.png"], 0, None, "a picture alone"),
    ("  ", [], 0, "nothing to ask", "spaces are no question"),
    ("x" * 51, [], 0, "51 characters", "too long"),
    ("?", ["small.png"] * 3, 0, "3 pictures", "too many at once"),
    ("?", ["small.png"] * 2, 2, "4 pictures", "too many together"),
    ("?", ["large.png"], 0, "1500 × 1000 pixels", "too many pixels in few bytes"),
    ("?", ["heavy.png"], 0, "MiB", "too many bytes in few pixels"),
    ("?", ["text.png"], 0, "no picture that can be read", "a text with a picture's name"),
    ("?", ["empty.png"], 0, "no picture that can be read", "an empty file"),
    ("?", ["script.svg"], 0, "no picture that can be read", "no format of pixels"),
])  # fmt: skip
def test_questions_are_bounded(uploads, text, names, num_earlier, sentence, reason):
    paths = [str(uploads / name) for name in names]
    if sentence is None:
        pictures.check_question(text, paths, num_earlier, LIMITS)
        return
    with pytest.raises(ValueError, match=sentence) as caught:
        pictures.check_question(text, paths, num_earlier, LIMITS)
    assert str(uploads) not in str(caught.value), reason


def test_a_damaged_picture_is_named_without_its_folder(uploads):
    with pytest.raises(ValueError, match=r"^cut\.png: the image is damaged") as caught:
        pictures.open_picture(str(uploads / "cut.png"))
    assert str(uploads) not in str(caught.value)


@pytest.mark.parametrize("name, values", {
    "thinking_budget": (-1, 10**6, None, "many"),
    "temperature": (-0.1, 2.1, None, True),
    "top_p": (0.0, 1.1),
    "repetition_penalty": (0.9, 2.1),
    "max_new_tokens": (0, 10**6, None),
}.items())  # fmt: skip
def test_settings_are_bounded(name, values):
    for value in values:
        with pytest.raises(ValueError, match="give a number from"):
            Settings(**{name: value})
    with pytest.raises(ValueError, match="shorten it"):
        Settings(system_message="x" * 30_000)


# -- tiles -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("width, height", [(112, 112), (500, 100), (100, 500), (640, 480), (9, 9)])
def test_the_tiles_that_are_shown_are_those_that_the_model_gets(nano_processor, width, height):
    """The oracle is the processor, which cuts a picture of that size."""
    tiling = Tiling(nano_processor.image_processor, nano_processor.num_image_token, "nano")
    cut = tiling.cut(width, height)
    picture = Image.new("RGB", (width, height))
    features = nano_processor.image_processor(images=picture, return_tensors="pt")
    assert cut.tiles == int(features["num_patches"][0])
    assert cut.tokens == cut.tiles * 16


def test_tiles_are_drawn_at_their_edges(nano_processor):
    tiling = Tiling(nano_processor.image_processor, nano_processor.num_image_token, "nano")
    picture = Image.new("RGB", (336, 224), "blue")
    assert tiling.cut(*picture.size)[:2] == (3, 2)
    drawn = seen.draw_tiles(picture, tiling)
    assert drawn.size == picture.size and picture.getpixel((0, 0)) == (0, 0, 255)
    for x, y in [(112, 50), (224, 50), (50, 112), (300, 112), (0, 50), (335, 50)]:
        assert drawn.getpixel((x, y)) == seen.TILE_COLOUR
    assert drawn.getpixel((56 - 10, 50 - 5)) == (0, 0, 255)


def test_what_the_model_saw_tells_of_grid_tokens_and_context(nano_processor, uploads):
    tiling = Tiling(nano_processor.image_processor, nano_processor.num_image_token, "<nano>")
    path = str(uploads / "small.png")
    turn = Turn("?", (path,), status=DONE, answer="2", counts=Counts(500, 300, 200))
    page = seen.page_of([turn], tiling, 4000)
    for part in (
        "small.png",
        "60 × 40 pixels",
        "of 112 × 112 pixels",
        "1,000 of the 4,000",
        "25.0%",
    ):
        assert part in page
    assert "&lt;nano&gt;" in page and str(uploads) not in page
    assert "no picture" in seen.page_of([], tiling, 4000)


# -- where it looked -------------------------------------------------------------------------------


def test_maps_are_asked_of_the_turns_up_to_the_last_answer(uploads):
    asked = []

    def maps_of(turns):
        asked.append(turns)
        return [np.ones((4, 6)) / 24 for _ in conversation.images_of(turns)]

    path = str(uploads / "small.png")
    turns = (
        Turn("First?", (path,), status=DONE, raw="1"),
        Turn("Damaged?", (path,), status=FAILED),
        Turn("Second?", (path,), status=STOPPED, raw="2"),
        Turn("Third?", (path,), status=WAITING),
    )
    page = looked.page_of(turns, maps_of)
    assert [turn.text for turn in asked[0]] == ["First?", "Second?"]
    assert page.count("<img") == 2 and str(uploads) not in page
    for without in ([], [Turn("?")], [Turn("?", status=DONE, raw="no picture")]):
        with pytest.raises(ValueError, match="no answer about a picture"):
            looked.page_of(without, maps_of)


def test_a_local_model_says_where_it_looked(local, nano_tokenizer):
    """The page's maps are those of `where_it_looked` for the same conversation."""
    settings = Settings(max_new_tokens=200, temperature=0.0)
    turns = (Turn("How many shapes are in the image?", (COUNTING,), settings),)
    reply = local.ask(turns, settings)
    for _ in reply:
        pass
    turns = (turns[0].changed(status=DONE, raw=reply.written.raw),)
    [ours] = local.where_it_looked(turns)
    [expected] = where_it_looked(local.model, nano_tokenizer, COUNTING, turns[0].text, turns[0].raw)
    np.testing.assert_allclose(ours, expected, atol=1e-6)


# -- a model in this process -----------------------------------------------------------------------


def test_a_local_model_answers_as_chat_does(local, nano_model, nano_tokenizer):
    """Two turns, a picture in each: text, history and tokens are those of `chat()`."""
    options = {"max_new_tokens": 200, "do_sample": False}
    answer, history = nano_model.chat(
        nano_tokenizer, COUNTING, "How many shapes?", options, return_history=True
    )
    first = Turn("How many shapes?", (COUNTING,), GREEDY)
    reply = local.ask([first], GREEDY)
    assert read(reply).raw == answer
    done = first.changed(status=DONE, raw=reply.written.raw)
    assert local.history_of([done]) == history

    both = [COUNTING, CALCULATION]
    second, _ = nano_model.chat(
        nano_tokenizer, both, "Calculate.", options, history=history, return_history=True
    )
    reply = local.ask([done, Turn("Calculate.", (CALCULATION,), GREEDY)], GREEDY)
    assert read(reply).raw == second and not reply.is_stopped


def test_the_prompt_is_counted_as_the_processor_tokenizes_it(local, nano_processor):
    content = [
        {"type": "image", "path": COUNTING},
        {"type": "text", "text": "How many shapes are in the image?"},
    ]
    inputs = nano_processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
    )
    turn = Turn("How many shapes are in the image?", (COUNTING,), GREEDY)
    assert local.count_prompt([turn], GREEDY) == len(inputs["input_ids"][0])


@pytest.mark.parametrize("settings, is_thinking_expected", [
    (Settings(temperature=0.0), True),
    (Settings(temperature=0.0, thinks=False), False),
])  # fmt: skip
def test_a_local_model_thinks_where_it_is_asked_to(local, settings, is_thinking_expected):
    written = read(local.ask([Turn("How many shapes?", (COUNTING,), settings)], settings))
    assert bool(written.thinking) == is_thinking_expected
    assert "\\boxed" in written.answer and not written.is_thinking


def test_a_thinking_budget_closes_the_thinking(local):
    settings = Settings(temperature=0.0, thinking_budget=4)
    reply = local.ask([Turn("How many shapes?", (COUNTING,), settings)], settings)
    written = read(reply)
    assert 0 < reply.counts().thinking <= 5 and THINK_END in written.raw


@pytest.mark.parametrize("turn, history, reason", [
    (Turn("a", status=STOPPED, raw="Hm"), "Hm\n</think>\n\n", "a thinking that never ended"),
    (Turn("a", status=STOPPED), "\n</think>\n\n", "stopped before the first token"),
    (Turn("a", settings=Settings(thinks=False), status=DONE, raw="2"), "\n</think>\n\n2", "none"),
    (Turn("a", status=DONE, raw="Hm</think>2"), "Hm</think>2", "as it was written"),
])  # fmt: skip
def test_earlier_answers_close_their_thinking(local, turn, history, reason):
    assert local.history_of([turn]) == [("a", history)], reason


def threads_of_generations():
    return [thread for thread in threading.enumerate() if thread.name == "chat_stream"]


def test_stopping_ends_the_generation(endless):
    settings = Settings(temperature=0.0, max_new_tokens=8000)
    reply = endless.ask([Turn("Go on.", settings=settings)], settings)
    steps = iter(reply)
    next(steps)
    assert threads_of_generations()
    reply.stop()
    assert not threads_of_generations() and reply.is_stopped
    length = len(list(steps))  # what had been written is still there
    assert reply.written.raw and length < 8000 and reply.counts().prompt


def test_a_new_question_ends_an_answer_that_nobody_reads(endless):
    settings = Settings(temperature=0.0, max_new_tokens=8000)
    abandoned = endless.ask([Turn("Go on.", settings=settings)], settings)
    next(iter(abandoned))
    reply = endless.ask([Turn("Go on.", settings=settings)], settings)
    assert abandoned.is_stopped and len(threads_of_generations()) == 1
    reply.stop()


def test_errors_of_a_local_model_are_sentences(local, uploads):
    cut = Turn("?", (str(uploads / "cut.png"),), GREEDY)
    with pytest.raises(AnswerFailed, match=r"^cut\.png: the image is damaged"):
        local.ask([cut], GREEDY)
    long = Turn("word " * 6000, settings=GREEDY)
    with pytest.raises(AnswerFailed, match="context"):
        read(local.ask([long], GREEDY))


# -- a served model --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiling(nano_processor):
    return Tiling(nano_processor.image_processor, nano_processor.num_image_token, "nano")


@pytest.mark.parametrize("deltas, thinking, answer, reason", [
    ([{"reasoning": "Hm"}, {"reasoning": " so"}, {"content": "2"}], "Hm so", "2", "vLLM"),
    ([{"reasoning_content": "Hm"}, {"content": "2"}], "Hm", "2", "vLLM before 0.11"),
    ([{"content": "<think>Hm"}, {"content": "</think>2"}], "Hm", "2", "opened by the model"),
    ([{"content": "Hm</thi"}, {"content": "nk>2"}], "Hm", "2", "opened by the prompt"),
    ([{"role": "assistant", "content": ""}, {"content": "2"}], "", "2", "no thinking"),
])  # fmt: skip
def test_thinking_and_answer_of_an_endpoint(tiling, deltas, thinking, answer, reason):
    with StreamingEndpoint(deltas).serving() as url:
        reply = Endpoint(url, "", tiling).ask([Turn("?")], Settings())
        written = read(reply)
    assert (written.thinking, written.answer, written.is_thinking) == (thinking, answer, False)
    counts = reply.counts()
    assert counts.prompt == 50 and (counts.thinking or 0) + counts.answer == 20, reason


def test_a_thinking_goes_on_until_the_answer_begins(tiling):
    served = StreamingEndpoint([{"reasoning": "Hm"}, {"content": "2"}])
    with served.serving() as url:
        reply = Endpoint(url, "", tiling).ask([Turn("?")], Settings())
        states = [reply.written.is_thinking for _ in reply]
    assert states[0] and not states[-1]


def test_what_an_endpoint_is_asked(tiling):
    settings = Settings(
        thinks=False, temperature=0.5, top_p=0.9, repetition_penalty=1.1, max_new_tokens=77,
        system_message="Be brief.",
    )  # fmt: skip
    turns = [
        Turn("First?", (COUNTING,), status=DONE, raw="Hm</think>1", thinking="Hm", answer="1"),
        Turn("Lost?", status=FAILED, failure="No."),
        Turn("Second?", (CALCULATION, COUNTING)),
    ]
    served = StreamingEndpoint([{"content": "2"}])
    with served.serving() as url:
        endpoint = Endpoint(url, "", tiling)
        read(endpoint.ask(turns, settings))
        read(endpoint.ask(turns, Settings(thinking_budget=99)))
    first, second = served.bodies
    assert endpoint.name == "served" and endpoint.context == 4096
    assert [message["role"] for message in first["messages"]] == [
        "system", "user", "assistant", "user",
    ]  # fmt: skip
    *parts, text = first["messages"][-1]["content"]
    contents = [base64.b64decode(part["image_url"]["url"].split(",")[1]) for part in parts]
    files = ("calculation_1.png", "counting_1.png")
    assert contents == [(IMAGES / name).read_bytes() for name in files]
    assert text["text"] == "Second?" and first["messages"][2]["content"] == "1"
    expected = {
        "temperature": 0.5,
        "top_p": 0.9,
        "repetition_penalty": 1.1,
        "max_tokens": 77,
        "chat_template_kwargs": {"enable_thinking": False},
        "stream": True,
    }
    assert expected.items() <= first.items() and "thinking_token_budget" not in first
    assert second["thinking_token_budget"] == 99 and "chat_template_kwargs" not in second


def test_stopping_closes_the_connection(tiling):
    served = StreamingEndpoint([{"content": "x "}] * 2000, seconds=0.01)
    with served.serving() as url:
        reply = Endpoint(url, "", tiling).ask([Turn("?")], Settings())
        steps = iter(reply)
        next(steps)
        reply.stop()
        assert list(steps) == [] and reply.is_stopped
        assert served.was_left.wait(10), "the server goes on"
    assert served.sent < 2000 and reply.counts().prompt is None


@pytest.mark.parametrize("served, sentence", [
    (StreamingEndpoint([], status=400), "maximum context length is 4096 tokens"),
    (StreamingEndpoint([], status=401), "401"),
])  # fmt: skip
def test_errors_of_an_endpoint_are_sentences(tiling, served, sentence):
    with served.serving() as url:
        endpoint = Endpoint(url, "", tiling)
        with pytest.raises(AnswerFailed, match=sentence):
            read(endpoint.ask([Turn("?")], Settings()))


def test_a_picture_that_was_deleted_is_named_without_its_folder(tiling, local):
    turn = Turn("?", ("/some/folder/gone.png",))
    with StreamingEndpoint([]).serving() as url:
        for backend in (Endpoint(url, "", tiling), local):
            with pytest.raises(AnswerFailed, match=r"^gone\.png"):
                backend.ask([turn], GREEDY)


def test_an_endpoint_is_checked_before_the_page_opens(tiling):
    no_other = pytest.raises(ValueError, match="serves no model 'another'")
    with StreamingEndpoint([]).serving() as url, no_other:
        Endpoint(url, "another", tiling)
    with pytest.raises(ValueError, match="is the server running"):
        Endpoint(url, "", tiling)


# -- the events of the page ------------------------------------------------------------------------


def controls_of(settings=GREEDY):
    """The values of the page's controls."""
    return list(vars(settings).values())


def ask(page, turns, text, files=()):
    """The turns after a question, and all that was shown of its answer."""
    asked = {"text": text, "files": list(files)}
    turns, _, _, _ = page.accept(asked, turns, *controls_of())
    shown = list(page.answer(turns, REQUEST))
    return shown[-1][0], [messages for _, messages, _ in shown]


def test_an_answer_is_streamed_and_its_thinking_folded(tiling):
    page = handlers.Handlers(Scripted(tiling, ["Let me", " see", THINK_END, "Yes."], 0.1), LIMITS)
    turns, shown = ask(page, (), "Is it?")
    assert kinds(shown[0]) == ["user", "Thinking"] and shown[0][1]["content"] == "Let me"
    assert kinds(shown[-1]) == ["user", "Thought", "answer"] and len(shown) >= 4
    [turn] = turns
    assert (turn.status, turn.thinking, turn.answer) == (DONE, "Let me see", "Yes.")
    assert 0.2 < turn.thinking_seconds < turn.seconds and turn.counts == Counts(100, 7, 3)
    assert page.runs.number == 0


def test_a_failure_keeps_what_was_written(tiling, uploads):
    pieces = ["Hm", THINK_END, "Half", OSError("the wire broke")]
    page = handlers.Handlers(Scripted(tiling, pieces), LIMITS)
    [turn], shown = ask(page, (), "Is it?")
    assert (turn.status, turn.answer, turn.failure) == (FAILED, "Half", "the wire broke")
    assert "the wire broke" in shown[-1][-1]["content"]


def test_a_refused_question_stays_in_the_box(tiling, uploads):
    page = handlers.Handlers(Scripted(tiling), LIMITS)
    asked = {"text": "?", "files": [str(uploads / "large.png")]}
    refusals = {
        "large.png has 1500 × 1000 pixels": page.accept(asked, (), *controls_of()),
        "Temperature is 9": page.accept({"text": "?"}, (), True, 0, 9, 1, 1, 100, ""),
    }
    for sentence, (*unchanged, notice) in refusals.items():
        assert sentence in notice and unchanged == [gradio.skip()] * 3
        assert len({id(output) for output in unchanged}) == 3  # Gradio takes each of them apart
        assert str(uploads) not in notice
    [(turns, messages, box)] = page.answer((), REQUEST)
    assert turns == messages == gradio.skip() and "value" not in box


def test_asking_again_drops_what_followed(tiling):
    backend = Scripted(tiling)
    page = handlers.Handlers(backend, LIMITS)
    turns, _ = ask(page, (), "First?", [COUNTING])
    turns, _ = ask(page, turns, "Second?")
    again, _, _, _ = page.ask_again(turns, REQUEST, 2, *controls_of(Settings(max_new_tokens=9)))
    assert [turn.text for turn in again] == ["First?"] and again[0].images == (COUNTING,)
    assert again[0].settings.max_new_tokens == 9 and again[0].answer == ""
    assert "no message 6" in page.ask_again(turns, REQUEST, 6, *controls_of())[-1]


def test_the_last_question_goes_back_into_an_empty_box(tiling):
    page = handlers.Handlers(Scripted(tiling), LIMITS)
    turns, _ = ask(page, (), "First?", [COUNTING])
    left, messages, box, _ = page.edit({"text": "", "files": []}, turns, REQUEST)
    assert left == () and messages == []
    assert box["value"] == {"text": "First?", "files": [COUNTING]}
    assert "not empty" in page.edit({"text": "unsent", "files": []}, turns, REQUEST)[-1]
    assert "no question" in page.edit({"text": "", "files": []}, (), REQUEST)[-1]


def test_a_question_that_waits_for_others_can_be_taken_back(tiling):
    backend = Scripted(tiling)
    page = handlers.Handlers(backend, LIMITS)
    turns, *_ = page.accept({"text": "Is it?"}, (), *controls_of())
    turns, _, _ = page.stop(turns, REQUEST)
    assert turns[-1].status == STOPPED
    list(page.answer(turns, REQUEST))
    assert backend.asked == []


def test_a_visitor_who_leaves_ends_the_answer(tiling):
    backend = Scripted(tiling, ["word "] * 1000, seconds=0.01)
    page = handlers.Handlers(backend, LIMITS)
    turns, *_ = page.accept({"text": "Is it?"}, (), *controls_of())
    shown = page.answer(turns, REQUEST)
    next(shown)
    page.leave(types.SimpleNamespace(session_hash="another visitor"))
    assert not backend.replies[0].is_stopped
    page.leave(REQUEST)
    assert backend.replies[0].is_stopped


# -- the gate --------------------------------------------------------------------------------------

OWN = "127.0.0.1:7860"


@pytest.mark.parametrize("headers, is_refused, reason", [
    ({"host": OWN}, False, "a browser's first request"),
    ({"host": OWN, "origin": f"http://{OWN}"}, False, "the page itself"),
    ({"host": "localhost:7860", "origin": "http://localhost:7860"}, False, "another own name"),
    ({"host": "[::1]:7860"}, False, "another own name"),
    ({"host": "localhost:9000", "origin": "http://localhost:9000"}, False, "through a tunnel"),
    ({}, True, "no name"),
    ({"host": "example.org"}, True, "a foreign name for this address (DNS rebinding)"),
    ({"host": "127.0.0.1.example.org:7860"}, True, "a foreign name that begins like an own one"),
    ({"host": OWN, "origin": "http://example.org"}, True, "another site's script"),
    ({"host": OWN, "origin": "null"}, True, "a file or a sandbox"),
    ({"host": OWN, "origin": "http://127.0.0.1:8888"}, True, "another server of this machine"),
    ({"host": OWN, "origin": f"https://{OWN}"}, True, "another scheme"),
    ({"host": OWN, "sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, True,
     "another site shows a picture of the page"),
    ({"host": OWN, "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, False,
     "a link to the page"),
])  # fmt: skip
def test_who_is_answered(headers, is_refused, reason):
    found = safety.refusal(safety.Headers(headers), "/", "GET")
    assert (found is not None) == is_refused, reason


@pytest.fixture(scope="module")
def served(tiling):
    limits = Limits(bytes_of_picture=50_000, pictures_of_question=2)
    with server.running(Scripted(tiling), limits=limits) as page:
        yield page


def send(served, method, path, body=None, **headers):
    """(status, headers, text) of a request to the page."""
    host = urllib.parse.urlparse(served.address).netloc
    client = http.client.HTTPConnection(host, timeout=30)
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    client.request(method, path, body, {"Host": host, **headers})
    response = client.getresponse()
    text = response.read().decode(errors="replace")
    client.close()
    return response.status, {name.lower(): value for name, value in response.getheaders()}, text


def upload(served, name, content):
    """(status, text) of an upload, as browsers send one."""
    body = (
        b'--mark\r\nContent-Disposition: form-data; name="files"; filename="%b"\r\n'
        b"Content-Type: image/png\r\n\r\n%b\r\n--mark--\r\n" % (name.encode(), content)
    )
    kind = {"Content-Type": "multipart/form-data; boundary=mark"}
    status, _, text = send(served, "POST", "/gradio_api/upload", body, **kind)
    return status, text


def test_the_page_answers_on_loopback_to_its_own_names(served):
    status, headers, text = send(served, "GET", "/")
    assert status == 200 and "gradio" in text
    assert "default-src 'self'" in headers["content-security-policy"]
    assert served.address.startswith("http://127.0.0.1:")
    for headers in ({"Host": "example.org"}, {"Origin": "http://example.org"}):
        for method, path in [("GET", "/"), ("POST", "/gradio_api/queue/join")]:
            status, _, text = send(served, method, path, **headers)
            assert status == 403 and text.endswith(("port.", "use this one."))


def test_pages_in_other_tabs_share_nothing_with_another_site(served):
    """A preflight request of another site is refused, too."""
    headers = {"Origin": "http://example.org", "Access-Control-Request-Method": "POST"}
    status, answered, _ = send(served, "OPTIONS", "/gradio_api/queue/join", **headers)
    assert status == 403 and "access-control-allow-origin" not in answered


@pytest.mark.parametrize("path", [
    "/gradio_api/file=/etc/passwd",
    "/file=/etc/passwd",
    "/gradio_api/file=README.md",
    f"/gradio_api/file={checkpoints.ROOT}/README.md",
    f"/gradio_api/file={checkpoints.ROOT}/demo/page.py",
    "/gradio_api/file=../../../../etc/passwd",
    "/gradio_api/file={folder}/../../etc/passwd",
    "/gradio_api/file=%2Fetc%2Fpasswd",
    "/gradio_api/file=//etc/passwd",
    "/static/../../../etc/passwd",
    "/assets/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
    "/theme.css/../../etc/passwd",
    "/gradio_api/file=http://127.0.0.1:1/secret",
    "/gradio_api/proxy=http://127.0.0.1:1/secret",
])  # fmt: skip
def test_no_file_of_the_machine_is_served(served, path):
    status, _, text = send(served, "GET", path.replace("{folder}", str(served.folder)))
    assert status >= 400, text
    for content in ("root:", "Skywork-R1V-38B", "Gradio 6"):
        assert content not in text


def test_uploads_are_served_and_bounded(served):
    picture = (IMAGES / "counting_1.png").read_bytes()
    status, text = upload(served, "a.png", picture)
    assert status == 200
    [path] = json.loads(text)
    assert path.startswith(str(served.folder))
    assert send(served, "GET", f"/gradio_api/file={path}")[0] == 200
    assert upload(served, "b.png", b"x" * 60_000)[0] == 413  # Gradio's own bound, for a file
    status, text = upload(served, "c.png", b"x" * 200_000)
    assert status == 413 and "too large" in text


@pytest.mark.parametrize("num_chunks, status, reason", [
    (2, 200, "as large as may be"), (5, 413, "larger, which shows only as it comes"),
])  # fmt: skip
def test_a_body_without_a_length_is_bounded(tmp_path, num_chunks, status, reason):
    """An application behind the gate gets no more, and what it says of that is not sent."""
    chunks = [b"x" * 50] * num_chunks
    got = []
    sent = []

    async def application(scope, receive, send):
        try:
            for _ in chunks:
                got.append((await receive())["body"])
            answer = 200
        except safety.TooLargeError:
            answer = 500
        await send({"type": "http.response.start", "status": answer, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def receive():
        return {"type": "http.request", "body": chunks[0], "more_body": True}

    async def send(message):
        sent.append(message)

    gate = safety.Gate(application, tmp_path, 100, 10**9)
    headers = [(b"host", b"127.0.0.1")]
    scope = {"type": "http", "method": "POST", "path": "/gradio_api/upload", "headers": headers}
    asyncio.run(gate(scope, receive, send))
    assert [message["status"] for message in sent if "status" in message] == [status], reason
    assert sum(map(len, got)) <= 100


def test_the_folder_of_uploads_is_bounded(served, monkeypatch):
    monkeypatch.setattr(safety, "size_of_folder", lambda folder: 3 * 2**30)
    status, text = upload(served, "a.png", b"x")
    assert status == 507 and "no room" in text


def config_of(served):
    """What the page tells a browser of its components and events."""
    return json.loads(send(served, "GET", "/config")[2])


def call(served, kind, event, data, event_data=None):
    """(status, text) of an event of the only component of a kind, as a script would send it."""
    config = config_of(served)
    [component] = [
        part for part in config["components"] if part["type"] == kind and part["props"]["visible"]
    ]
    [dependency] = [
        dependency
        for dependency in config["dependencies"]
        if [component["id"], event] in [list(target) for target in dependency["targets"]]
    ]
    body = {
        "data": data,
        "event_data": event_data,
        "fn_index": dependency["id"],
        "trigger_id": component["id"],
        "session_hash": "someone",
    }
    headers = {"Content-Type": "application/json"}
    status, _, text = send(served, "POST", "/gradio_api/run/predict", json.dumps(body), **headers)
    return status, text


def file_data(path):
    return {"path": str(path), "meta": {"_type": "gradio.FileData"}}


def test_a_question_cannot_name_a_file_of_the_machine(served, uploads):
    """The picture of a question has to be an upload: another path never reaches the model."""
    _, text = upload(served, "a.png", (IMAGES / "counting_1.png").read_bytes())
    [uploaded] = json.loads(text)
    around = served.folder / os.path.relpath(uploads / "small.png", served.folder)
    statuses = []
    for path in (uploaded, uploads / "small.png", IMAGES / "counting_3.png", "/etc/passwd", around):
        data = [{"text": "?", "files": [file_data(path)]}, None, *controls_of()]
        status, text = call(served, "multimodaltextbox", "submit", data)
        assert "root:" not in text
        statuses.append(status)
    assert statuses == [200, 500, 500, 500, 500]


def test_an_example_cannot_name_a_file_of_the_machine(served):
    """Which example is all that is read of the event."""
    chosen = {"index": 1, "value": {"text": "something else"}}
    status, text = call(served, "chatbot", "example_select", [], chosen)
    assert status == 200 and "How many shapes" in text and "counting_1.png" in text
    chosen["value"]["files"] = [file_data(checkpoints.ROOT / "LICENSE")]
    status, text = call(served, "chatbot", "example_select", [], chosen)
    assert status == 500 and "MIT" not in text


def test_the_page_has_a_button_for_heat_maps_of_a_model_in_this_process_alone(served):
    """That of another backend, as `served` has, cannot be looked into."""
    labels = [part["props"].get("value") for part in config_of(served)["components"]]
    assert "What the model saw" in labels and "Where it looked" not in labels


# -- the command -----------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments, sentence", [
    (["--model", "/no/such/checkpoint"], "/no/such/checkpoint: no such directory"),
    (["--port", "99999"], "port 99999 cannot be listened on"),
    (["--api-url", "http://127.0.0.1:9/v1"], "is the server running"),
    (["--api-url", "127.0.0.1"], "is the server running"),
])  # fmt: skip
def test_what_cannot_be_opened_is_said_before_anything_is_loaded(monkeypatch, arguments, sentence):
    monkeypatch.setattr("sys.argv", ["demo", "--port", "0", *arguments])
    with pytest.raises((OSError, ValueError), match=sentence):
        command.main()


def test_a_port_that_is_taken_is_named():
    with server.listen(0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"port {port} cannot be listened on"):
            server.listen(port)
