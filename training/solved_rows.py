"""Rows of conversations with the right answer to their last question.

A row has the form of those of SFT (training/rows.py), or ends with its question. The right answer
is its `solution`, or else the box of its last answer; `kind` and `options` say how it is compared
(answers/judging.py). GRPO, the iterations of SFT and distillation read them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from answers import extraction
from answers.judging import Question
from training.rows import (
    ROLES,
    USER,
    ChatSample,
    SampleError,
    json_lines,
    local_path,
    parse_line,
    parse_row,
)


class SolvedRow(NamedTuple):
    """A row with its right answer.

    Attributes:
        row: as the data have it.
        sample: what it holds; where the row ends with its question, the last answer is a stand-in.
        answer: the last one, or "" where the row has none.
        images: files.
        right: what answers are compared with.
    """

    row: dict[str, Any]
    sample: ChatSample
    answer: str
    images: list[Path]
    right: Question


def read_solved_rows(
    paths: Sequence[str], image_root: str | Path | None = None, with_answers: bool = False
) -> Iterator[tuple[bytes, SolvedRow]]:
    """The lines of JSONL files, each with its row.

    Args:
        paths: of the files.
        image_root: that image paths are relative to; by default each file's directory.
        with_answers: whether each row has to end with an answer, which is trained on.

    Raises:
        FileNotFoundError: a file or an image does not exist.
        SampleError: a row without a question or a right answer, or without the answer it has to end
            with.
    """
    for path in paths:
        if not Path(path).is_file():
            raise FileNotFoundError(f"data file {path} does not exist.")
        for line in json_lines([path]):
            where = f"{path}, line {line['number']}"
            try:
                row = solved_row(parse_line(line["line"]), image_root or Path(path).parent)
            except FileNotFoundError as error:
                raise FileNotFoundError(f"{where}: {error}") from error
            except ValueError as error:
                raise SampleError(f"{where}: {error}") from error
            if with_answers and not row.answer:
                raise SampleError(f"{where}: the row ends with its question; expected an answer")
            yield line["line"], row


def solved_row(row: Any, image_root: str | Path) -> SolvedRow:
    """A row with its right answer.

    Raises:
        FileNotFoundError: an image does not exist.
        ValueError: a row without a question or a right answer, or one of another kind.
    """
    sample, answer = _parse(row)
    solution = row.get("solution")
    if solution is None:
        solution = extraction.last_box(answer)
    if solution is None:
        raise SampleError('no right answer: expected "solution", or a last answer with a box')
    if not isinstance(solution, (str, int, float)) or isinstance(solution, bool) or solution == "":
        raise SampleError(f"solution {solution!r}: expected a text or a number")
    kind = row.get("kind") or "mathematics"
    right = Question(kind, str(solution), tuple(row.get("options") or ()))
    images = []
    for image in sample.images:
        path = local_path(image, image_root)
        if path is None:
            raise SampleError(f"image {str(image)[:60]!r}: expected image files only")
        if not path.is_file():
            raise FileNotFoundError(f"image {path} does not exist.")
        images.append(path)
    return SolvedRow(row, sample, answer, images, right)


def question_with_history(sample: ChatSample) -> str:
    """The last question of a conversation, below all that was said before it."""
    *earlier, (question, _) = sample.turns
    return "\n".join([text for turn in earlier for text in turn] + [question])


def question_fields(read: SolvedRow) -> dict[str, Any]:
    """The last question of a row as serving/question_file.py has it, without id and number."""
    *earlier, (question, _) = read.sample.turns
    return {
        "question": question,
        "images": [str(path.resolve()) for path in read.images],
        "system": read.sample.system or None,
        "history": [list(turn) for turn in earlier],
    }


def row_with_absolute_images(read: SolvedRow) -> dict[str, Any]:
    """A row that may be written into another folder."""
    row = {key: value for key, value in read.row.items() if key not in ("image", "images")}
    if read.images:
        row["images"] = [str(path.resolve()) for path in read.images]
    return row


def _parse(row: Any) -> tuple[ChatSample, str]:
    """(the sample, its last answer), where the answer may be missing."""
    for key in ("conversations", "messages"):
        messages = row.get(key) if isinstance(row, dict) else None
        if not messages or not isinstance(messages[-1], dict):
            continue
        role = messages[-1].get("role") or messages[-1].get("from")
        if ROLES.get(str(role)) == USER:
            unanswered = {"role": "assistant", "content": "none"}
            return parse_row({**row, key: [*messages, unanswered]}), ""
    sample = parse_row(row)
    return sample, sample.turns[-1][1]
