"""The files of `serving.offline`: questions in, answers out, one JSON object a line.

A line in:

    {"id": "7", "question": "What is this?", "images": ["a.jpg"],
     "system": "Be brief.", "history": [["Hi", "Hello."]]}

All keys but `question` may be missing. Paths are relative to the file. Without an id, the number of
the line is its id.

A line out has "id", "question" and "number" (which of the answers to the question it is, from 0),
and either "error", or "thinking", "answer", "text", "tokens", "finish_reason" ("stop", or "length"
where a limit cut the answer), the two limits "max_new_tokens" and "context", and "sampling", the
settings that the answer was drawn with.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import durable
from remote_code import conversation
from serving.sampling import GREEDY

KNOWN_KEYS = {"id", "question", "images", "system", "history"}

Entry = dict[str, Any]  # a line of the answers
Key = tuple[str, int]  # id of a question, and which of its answers
Line = TypeVar("Line", str, bytes)


class OwnSettings(TypedDict, total=False):
    """What a program may set for one question, in place of the setting of the run.

    A file of questions cannot: its answers are compared by the settings of the run.
    """

    repetition_penalty: float


class Question(OwnSettings):
    """A line of the questions, complete and checked; its images are absolute paths.

    `number` says which of the answers to the question is asked for, from 0.
    """

    id: str
    number: int
    question: str
    images: list[str]
    system: str | None
    history: list


class LineError(ValueError):
    """A line of a file that cannot be used; the message says which and why."""


# -- questions -------------------------------------------------------------------------------------


def read_questions(path: str | Path) -> list[Question]:
    """The questions of a JSONL file, checked.

    Raises:
        LineError: a line that is not JSON, has no question, an unknown key, a history or system
            message of another form, a repeated id, or names a missing image.
    """
    path = Path(path)
    questions: list[Question] = []
    known_ids: set[str] = set()
    for number, line in _numbered_lines(path.read_text(encoding="utf-8").split("\n")):
        where = f"{path}, line {number}"
        question = _question_of_line(line, number, where)
        if question["id"] in known_ids:
            raise LineError(f"{where}: the id {question['id']!r} is there twice.")
        known_ids.add(question["id"])
        question["images"] = _existing_images(question["images"], path.parent, where)
        questions.append(question)
    return questions


def repeated(questions: Sequence[Question], answers: int) -> list[Question]:
    """Each question as often as it is to be answered, numbered from 0."""
    return [{**question, "number": number} for question in questions for number in range(answers)]


def _numbered_lines(lines: Iterable[Line]) -> list[tuple[int, Line]]:
    """Those lines of a file that are not blank, with their numbers from 1.

    Lines end at newlines alone: `splitlines()` would also cut at U+2028, which JSON may contain.
    """
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _question_of_line(line: str, number: int, where: str) -> Question:
    """A question with defaults for what it leaves out; its images are as the line has them."""
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise LineError(f"{where}: not JSON ({error}).") from error
    if not isinstance(entry, dict) or not isinstance(entry.get("question"), str):
        raise LineError(f'{where}: expected an object with a "question".')
    unknown = set(entry) - KNOWN_KEYS
    if unknown:
        raise LineError(
            f"{where}: unknown {sorted(unknown)}; expected some of {sorted(KNOWN_KEYS)}."
        )
    return {
        "id": str(entry.get("id", number)),
        "number": 0,
        "question": entry["question"],
        "images": _image_list(entry.get("images"), where),
        "history": _checked_history(entry.get("history"), where),
        "system": _checked_system_message(entry.get("system"), where),
    }


def _image_list(images: Any, where: str) -> list[str]:
    """The paths of a question, which may be a single text, or null for none."""
    if isinstance(images, str):
        return [images]
    images = images or []
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise LineError(f'{where}: "images" is {json.dumps(images)}; expected a list of paths.')
    return images


def _checked_history(history: Any, where: str) -> list:
    history = history or []
    try:
        conversation.checked_turns(history)
    except ValueError as error:
        raise LineError(f"{where}: {error}") from error
    return history


def _checked_system_message(system: Any, where: str) -> str | None:
    if not isinstance(system, (str, type(None))):
        raise LineError(f'{where}: "system" is {json.dumps(system)}; expected a text.')
    return system


def _existing_images(images: Iterable[str], folder: Path, where: str) -> list[str]:
    """Absolute paths of images, which are given relative to a folder."""
    paths = [(folder / image).resolve() for image in images]
    for path in paths:
        if not path.is_file():
            raise LineError(f"{where}: no such image file: {path}.")
    return [str(path) for path in paths]


# -- answers ---------------------------------------------------------------------------------------


def answer_entry(
    question: Question,
    text: str,
    tokens: int,
    finish_reason: str | None,
    thinking_opened: bool = True,
) -> Entry:
    """A line of the answers, without the limits of the run.

    Args:
        question: that was asked.
        text: of the answer, with its thinking.
        tokens: number of generated tokens.
        finish_reason: "stop", or "length" where a limit cut the answer.
        thinking_opened: whether the model thinks before it answers.
    """
    thinking, answer = conversation.split_thinking(text, thinking_opened)
    return {
        "id": question["id"],
        "number": question["number"],
        "question": question["question"],
        "thinking": thinking,
        "answer": answer,
        "text": text,
        "tokens": tokens,
        "finish_reason": finish_reason,
    }


def error_entry(question: Question, error: Exception | str) -> Entry:
    """A line of the answers for a question that could not be answered."""
    return {
        "id": question["id"],
        "number": question["number"],
        "question": question["question"],
        "error": str(error),
    }


def key_of(entry: Mapping[str, Any]) -> Key:
    """What tells a question or a line of the answers from others; lines of old have no number."""
    return entry["id"], entry.get("number", 0)


def json_line(entry: Entry) -> str:
    """An entry as a line of the file, with its newline."""
    return json.dumps(entry, ensure_ascii=False) + "\n"


def is_done(entry: Entry, max_new_tokens: int, context: int | None) -> bool:
    """Whether a question need not be asked again.

    That is so where there is an answer, unless it was cut by a limit that is higher now.

    Args:
        entry: what an earlier run wrote.
        max_new_tokens: tokens that an answer may have now.
        context: tokens that prompt and answer may have now, or None if that is not known.
    """
    if "error" in entry:
        return False
    if entry.get("finish_reason") != "length" or entry["tokens"] >= max_new_tokens:
        return True
    was_cut_by_context = entry["tokens"] < entry.get("max_new_tokens", entry["tokens"])
    earlier_context = entry.get("context") or 0
    return was_cut_by_context and earlier_context >= (context or 0)


def read_answers(
    path: str | Path, questions: Sequence[Question], sampling: Mapping[str, Any] = GREEDY
) -> dict[Key, Entry]:
    """What earlier runs have written, by id and number; an empty dict where there is no file.

    Of each question and number it is the last answer, or the last error where there is no answer.
    The file is rewritten with these lines only: half a line at its end goes, and so do errors and
    cut answers that an answer has replaced.

    Args:
        sampling: the settings of this run (`Sampling.recorded`).

    Raises:
        LineError: a line that is no answer, the answer to another question, or one that was drawn
            with other settings; the file stays as it is.
    """
    path = Path(path)
    if not path.exists():
        return {}
    asked = {question["id"]: question["question"] for question in questions}
    entries: dict[Key, Entry] = {}
    for entry in _read_entries(path, asked, sampling):
        earlier = entries.get(key_of(entry))
        if "error" not in entry or earlier is None or "error" in earlier:
            entries[key_of(entry)] = entry
    durable.write_text(path, "".join(json_line(entry) for entry in entries.values()))
    return entries


def _read_entries(path: Path, asked: dict[str, str], sampling: Mapping[str, Any]) -> list[Entry]:
    """The entries of a file of answers, checked; half a line at its end is left out.

    Args:
        path: of the file.
        asked: text of each question, by id.
        sampling: the settings of this run.
    """
    entries = []
    for number, line in _numbered_lines(durable.whole_lines(path)):
        where = f"{path}, line {number}"
        try:
            entry = json.loads(line)
        except ValueError as error:  # no JSON, or no UTF-8
            raise LineError(f"{where}: not JSON ({error}); is this a file of answers?") from error
        _check_entry(entry, asked, where)
        drawn_with = entry.get("sampling", GREEDY)
        if "error" not in entry and drawn_with != sampling:
            raise LineError(
                f"{where}: was drawn with {drawn_with}, and now the settings are {dict(sampling)}. "
                "Give the settings of the first run, or write to another file."
            )
        entries.append(entry)
    return entries


def _check_entry(entry: Any, asked: dict[str, str], where: str) -> None:
    """Check that a line is an answer, and that its question is still the one with its id."""
    if not isinstance(entry, dict) or not {"id", "question"} <= set(entry):
        raise LineError(f"{where}: no answer of an earlier run. Write to another file.")
    question = asked.get(entry["id"], entry["question"])
    if question != entry["question"]:
        raise LineError(
            f"{where}: answers {entry['question']!r}, but the question with the id "
            f"{entry['id']!r} is {question!r} now. Give the questions ids that stay, or write to "
            "another file."
        )
