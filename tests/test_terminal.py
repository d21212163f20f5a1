"""`make chat` without a question: a conversation, in a real pseudo-terminal and piece by piece."""

import json
import shlex
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest

from examples import line_editing, terminal
from examples.dialogue import Dialogue, parts_of
from remote_code import conversation
from tests import checkpoints
from training import rows

terminals = pytest.importorskip("tests.terminals", reason="no pseudo-terminals on this system")

CHAT = [sys.executable, str(checkpoints.ROOT / "examples" / "chat.py")]
IMAGES = checkpoints.ROOT / "examples" / "images"
GREEDY = {"max_new_tokens": 256, "do_sample": False}
# The same conversation with so much time between two tokens that a Ctrl-C falls between them
SLOW = """
import time, torch
from transformers import AutoModel, AutoTokenizer
from examples.dialogue import Dialogue
from examples.terminal import Terminal

def slowly(ids, scores):
    time.sleep(0.1)
    return scores

model = AutoModel.from_pretrained("nano", torch_dtype=torch.float32, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("nano", trust_remote_code=True)
options = {"max_new_tokens": 40, "do_sample": False, "logits_processor": [slowly]}
Terminal(Dialogue(model.eval(), tokenizer, options)).run()
"""


@pytest.fixture
def dialogue(nano_model, nano_tokenizer):
    return Dialogue(nano_model, nano_tokenizer, GREEDY)


# -- in a pseudo-terminal --------------------------------------------------------------------------


def test_a_conversation_of_two_turns_with_an_image_each(tmp_path, nano_standard, nano_processor):
    """What was saved is what another way to the model answers to the same messages."""
    shutil.copy(IMAGES / "calculation_3.png", tmp_path / "my picture.png")
    with terminals.Program(CHAT, tmp_path) as program:
        example = program.read_until("\n> ")
        assert "\\boxed{0}" in example and "single questions" in example
        thinking, _, answer = example.partition("Final answer:")
        assert "\x1b[2m" in thinking and "\x1b[" not in answer
        program.type(f"/image {shlex.quote(str(IMAGES / 'calculation_1.png'))}\n")
        # A key that comes before the prompt is read by the terminal's own rules, not readline's.
        program.read_until("(with the next question: ")
        program.read_until("\n> ")
        program.type("What is the result of the calculation in the image?\n")
        assert "\\boxed{0}" in program.read_until("\n> ")
        program.type('/image "my picture.png"\n')
        program.read_until("(with the next question: my picture.png)\n> ")
        # nano was taught single questions; to this one as a second turn it gives a whole answer
        program.type("What is the result of the calculation in the image?\n")
        assert "Final answer:" in program.read_until("\n> ")
        program.type("/save saved.json\n")
        program.read_until("(saved to saved.json)\n> ")
        program.type(terminals.CTRL_D)
        assert program.end() == 0, program.text
    record = json.loads((tmp_path / "saved.json").read_text(encoding="utf-8"))
    assert record["images"] == [
        str(IMAGES / "calculation_1.png"),
        str(tmp_path / "my picture.png"),
    ]
    roles = [message["role"] for message in record["messages"]]
    assert roles == ["user", "assistant"] * 2 and record["incomplete_answers"] == []
    sample = rows.parse_row(record)  # as training reads it
    assert [question.count("<image>") for question, _ in sample.turns] == [1, 1]
    for place in (1, 3):
        inputs = nano_processor.apply_chat_template(
            record["messages"][:place], add_generation_prompt=True, tokenize=True,
            return_dict=True, return_tensors="pt",
        )  # fmt: skip
        ids = nano_standard.generate(**inputs, **GREEDY)[0, inputs["input_ids"].shape[1] :]
        answer = nano_processor.decode(ids, skip_special_tokens=True)
        assert answer.strip() == record["messages"][place]["content"]


def test_ctrl_c_stops_an_answer_that_is_kept_and_the_next_one_comes(tmp_path):
    saved = tmp_path / "saved.json"
    command = [sys.executable, "-c", SLOW]
    with terminals.Program(command, checkpoints.ROOT, NO_COLOR="1") as program:
        program.read_until("> ")  # the first line, unless torch warns
        program.type("What is 12 + 34?\n")
        program.read_until("I read")
        program.type(terminals.CTRL_C)
        program.read_until("(stopped; the answer is kept as far as it is written)\n> ")
        program.type("/think off\n")
        program.read_until("(the model does not think)\n> ")
        program.type("What is 7 + 1?\n")
        program.read_until("Answer:")
        program.read_until("\n> ")
        program.type(f"/save {saved}\n")
        program.read_until(f"(saved to {saved})\n> ")
        assert program.interrupt() == 0, program.text
    record = json.loads(saved.read_text(encoding="utf-8"))
    first, second = (message["content"] for message in record["messages"][1::2])
    assert first.startswith("I read") and "boxed" not in first
    assert second.startswith("\n</think>") and len(second) > len("\n</think>\n\n")
    assert record["incomplete_answers"][0] == 1


def test_errors_are_a_sentence_and_the_conversation_goes_on(tmp_path):
    (tmp_path / "damaged.png").write_bytes((IMAGES / "counting_1.png").read_bytes()[:300])
    with terminals.Program([*CHAT, "--max-new-tokens", "2"], tmp_path, NO_COLOR="1") as program:
        example = program.read_until("\n> ")
        assert "(cut: " in example and "\x1b[2m" not in example
        for line, words in (
            ("/image none.png", "error: none.png: no such image file."),
            ("/image damaged.png", "error: damaged.png: the image is damaged"),
            ("/save no/folder.json", "error: /save no/folder.json: nothing has been asked yet."),
        ):
            program.type(f"{line}\n")
            answered = program.read_until("\n> ")
            assert words in answered and "Traceback" not in answered
        program.type("/im\tdam\t\n")  # completed twice
        program.read_until("/image damaged.png ")
        assert "the image is damaged" in program.read_until("\n> ")
        program.type("/quit\n")
        assert program.end() == 0, program.text


def test_without_a_terminal_for_input_one_question_is_asked(tmp_path):
    command = [*CHAT, "--max-new-tokens", "2"]
    with terminals.Program(command, tmp_path, stdin=subprocess.DEVNULL) as program:
        assert program.end() == 0
        assert "\n> " not in program.text and "A conversation" not in program.text
        assert program.text.count("Thinking:") == 1


# -- what is said to a line ------------------------------------------------------------------------


@pytest.mark.parametrize("line, words", [
    ("/nonsense", "/nonsense is no command"),
    ("/image 'a b.png", "No closing quotation"),
    ("/image {text}", "not an image"),
    ("/image {folder}", "a directory"),
    ("/image https://localhost/a.png", "localhost"),  # its addresses are not public
    ("/image {good} none.png", "none.png: no such image file"),  # and the good one is not added
    ("/think perhaps", "expected on or off"),
    ("/new now", "stands alone"),
    ("/save", "takes one file"),
    ("/save a.json b.json", "takes one file"),
    ("/save {folder}/no/a.json", "no such folder"),
    ("/save {text}", "exists: save under another name"),
    ("{long}", "the model's context 4096"),
])  # fmt: skip
def test_a_mistake_is_one_line_and_changes_nothing(dialogue, tmp_path, capsys, line, words):
    text = tmp_path / "words.png"
    text.write_bytes(b"words")
    dialogue.turns.append(SimpleNamespace(question="2 + 2?", answer="4", images=(), is_whole=True))
    before = dialogue.record()
    line = line.format(text=text, folder=tmp_path, good=IMAGES / "pair_1a.png", long="word " * 5000)
    terminal.Terminal(dialogue, dims=False).obey(line)
    said = capsys.readouterr().out
    errors = [part for part in said.splitlines() if part.startswith("error: ")]
    assert len(errors) == 1 and words in errors[0], said
    assert dialogue.record() == before and dialogue.waiting == () and dialogue.thinks
    assert text.read_bytes() == b"words"


def test_images_that_do_not_fit_can_be_taken_back(dialogue, capsys, monkeypatch):
    monkeypatch.setattr(dialogue.model.config.llm_config, "max_position_embeddings", 100)
    talk = terminal.Terminal(dialogue, dims=False)
    image = str(IMAGES / "counting_1.png")  # 112 tokens
    talk.obey(f"/image {image}")
    talk.obey("How many shapes are in the image?")
    assert "context 100" in capsys.readouterr().out
    assert dialogue.turns == [] and dialogue.waiting == (image,)
    talk.obey("/image")
    talk.obey("What is 12 + 34?")
    assert "\\boxed{46}" in capsys.readouterr().out and dialogue.turns[0].images == ()


def test_new_forgets_and_save_replaces_only_its_own_file(dialogue, tmp_path, capsys):
    talk = terminal.Terminal(dialogue, dims=False)
    path = tmp_path / "saved.json"
    for number in (1, 2):
        talk.obey("What is 12 + 34?")
        talk.obey(f"/save {path}")
        assert len(json.loads(path.read_text())["messages"]) == 2 * number
    talk.obey("/new")
    assert dialogue.record()["messages"] == []
    talk.obey("What is 1 + 1?")
    capsys.readouterr()
    talk.obey(f"/save {path}")
    assert (
        "exists" in capsys.readouterr().out and len(json.loads(path.read_text())["messages"]) == 4
    )


def test_a_model_without_thinking_cannot_be_told_to_think(dialogue, capsys, monkeypatch):
    template = conversation.get_conv_template("qwen2.5")
    monkeypatch.setattr(dialogue.model, "conv_template", template)
    terminal.Terminal(dialogue, dims=False).obey("/think on")
    assert capsys.readouterr().out.startswith("error: this model answers without thinking")


# -- parts -----------------------------------------------------------------------------------------

DIM, END = "\x1b[2m", "\x1b[0m"


@pytest.mark.parametrize("thinks, dims, pieces, shown", [
    # the mark may come in pieces: not every vocabulary has it as a token
    (True, False, ["1.\n", "</th", "ink>", "\n2"], "Thinking:\n1.\n\nFinal answer:\n2\n"),
    (True, False, ["a </b", " </think"], "Thinking:\na </b </think\n"),  # not the mark after all
    (True, False, ["a</think>b</think>c"], "Thinking:\na\nFinal answer:b</think>c\n"),
    (False, False, ["a</think>b"], "Answer:\na</think>b\n"),
    (True, True, ["a</think>b"], f"{DIM}Thinking:\n{END}{DIM}a{END}\nFinal answer:b\n"),
    # no orders to the terminal: a title, a cleared screen, a bell
    (False, True, ["\x1b]0;x\x07a\x1b[2Jb\x9b31mc\td"], "Answer:\n]0;xa[2Jb31mc\td\n"),
])  # fmt: skip
def test_how_an_answer_is_shown(thinks, dims, pieces, shown, capsys):
    answer = terminal.ShownAnswer(thinks, dims)
    for piece in pieces:
        answer.write(piece)
    answer.end()
    assert capsys.readouterr().out == shown


@pytest.mark.parametrize("question, sources, parts", [
    ("<image>\nWhat?", ["/a.png"], [("path", "/a.png"), ("text", "What?")]),
    ("<image>\n<image>\nBoth?", ["/a.png", "https://b/c.png"],
     [("path", "/a.png"), ("url", "https://b/c.png"), ("text", "Both?")]),
    ("Is <image> like <image>?", ["/a.png", "/b.png"],
     [("text", "Is "), ("path", "/a.png"), ("text", " like "), ("path", "/b.png"), ("text", "?")]),
    ("The word <image>", [], [("text", "The word <image>")]),
])  # fmt: skip
def test_the_parts_of_a_question(question, sources, parts):
    found = []
    for part in parts_of(question, sources):
        kind = part.pop("type")
        [(name, value)] = part.items()
        assert kind == ("text" if name == "text" else "image")
        found.append((name, value))
    assert found == parts


@pytest.mark.parametrize("typed, completed", [
    ("/i", ["/image "]),
    ("", []),  # the tab key on an empty line offers nothing
    ("A question a", []),
    ("/new a", []),
    ("/image a", ["/image a.png ", "/image a\\ b.png ", "/image album/"]),
    ("/image a\\ ", ["/image a\\ b.png "]),
    ('/image "a ', ['/image "a b.png" ']),
    ("/image it", ["/image it\\'s.png "]),
    ("/image 'it", ["/image 'it'\\''s.png' "]),
    ("/image a.png al", ["/image a.png album/"]),
    ("/image album/", ["/image album/x.png "]),
    ("/image .h", ["/image .hidden "]),
    ("/image none/", []),
])  # fmt: skip
def test_completed_lines(typed, completed, tmp_path, monkeypatch):
    """Each is what the shell's rules, by which the line is read, make an existing path of."""
    (tmp_path / "album").mkdir()
    for name in ("a.png", "a b.png", "it's.png", ".hidden", "album/x.png"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    found = line_editing.completions(typed, ("/image", "/new"), ("/image",))
    assert sorted(found) == sorted(completed)
    for line in found:
        for word in shlex.split(line)[1:]:
            assert (tmp_path / word).exists()
