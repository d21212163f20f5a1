"""Scores a checkpoint on your own questions, and shows the wrong answers with their pictures.

    python -m training.score --model runs/mine/model --data test.jsonl
    python -m training.score --model nano --data test.jsonl --out runs/score
    python -m training.score --model nano --data test.jsonl --by family

The data have the form of those to train on (training/rows.py). Each last question is asked with
greedy decoding; right is an answer that says the same as that of the data: in its box, or in words
where the data's has none (answers/judging.py). Where the data's answer has no thinking, neither has
the model's, unless `--think` is given. Prints the share of right answers with its interval of 95 %;
with `--by FIELD` also of each group of samples whose lines have the same value in that field.
Writes `answers.jsonl`, a line for each sample, `wrong.html`, a page that needs no network, and
`score.json`, the shares, into `--out`, which is `score` beside the model's directory unless given.
"""

from __future__ import annotations

import argparse
import base64
import html
import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

import durable
from answers.judging import Judge, Verdict
from evaluation.statistics import wilson
from preprocessor.image_loading import open_image
from training.asking import Reply, ask
from training.command_line import argument_parser, exit_code
from training.recipe import DTYPES
from training.rows import local_path, parse_row
from training.sample_encoder import SampleEncoder
from training.sources import ConversationFile

SCORE_FILE = "score.json"
SHOWN_SIDE = 320  # pixels of a picture on the page, at most
STYLE = """
body { font: 15px/1.5 sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
article { border-top: 1px solid #bbb; padding: 1rem 0; }
img { max-height: 320px; margin-right: 1rem; }
pre { white-space: pre-wrap; background: #f4f4f4; padding: .5rem; }
"""


class Scored(NamedTuple):
    """A sample that was asked: its place in the data, its last question, reply and verdict."""

    number: int
    where: str
    question: str
    reply: Reply
    verdict: Verdict


class Share(NamedTuple):
    """How many answers of those that were asked for are right."""

    right: int
    asked: int

    @property
    def interval(self) -> tuple[float, float]:
        """The interval of 95 % of the share, in percent."""
        low, high = wilson(self.right, self.asked)
        return 100 * low, 100 * high

    @property
    def text(self) -> str:
        """The share in words, with its interval."""
        percent = 100 * self.right / self.asked
        low, high = self.interval
        return (
            f"{self.right} of {self.asked} right: {percent:.1f} % "
            f"({low:.1f} to {high:.1f}, with 95 % confidence)"
        )

    def as_json(self) -> dict[str, Any]:
        """The share as score.json has it, its interval in percent."""
        low, high = self.interval
        return {
            "right": self.right,
            "asked": self.asked,
            "interval": [round(low, 1), round(high, 1)],
        }


def share_of(answered: Sequence[Scored]) -> Share:
    """The share of right answers among some."""
    return Share(sum(one.verdict.is_right for one in answered), len(answered))


def groups_of(source: ConversationFile, field: str) -> list[str]:
    """The group of each sample: what its line has in a field, as text.

    Raises:
        ValueError: a line without the field.
    """
    groups = []
    for number in range(len(source)):
        row = source.row(number)
        if row.get(field) is None:
            fields = ", ".join(sorted(row))
            raise ValueError(
                f"{source.where(number)} has no field {field!r} to tell its group by; it has "
                f"{fields}."
            )
        groups.append(str(row[field]))
    return groups


def shares_of_groups(found: Sequence[Scored], groups: Sequence[str]) -> dict[str, Share]:
    """The share of each group of which a sample was asked, by the group's name.

    Args:
        found: what was asked.
        groups: of all samples of the data, as `groups_of` gives them.
    """
    members: dict[str, list[Scored]] = {}
    for scored in found:
        members.setdefault(groups[scored.number], []).append(scored)
    return {group: share_of(members[group]) for group in sorted(members)}


def score(
    model: Any, processor: Any, source: ConversationFile, new_tokens: int
) -> Iterator[Scored]:
    """Ask a model each sample of a file, in order; samples that cannot be read are left out.

    Args:
        model: a `SkyworkChatForConditionalGeneration`.
        processor: of the model.
        source: the samples.
        new_tokens: longest answer, in tokens.
    """
    with Judge() as judge:
        for number in range(len(source)):
            sample = source.encode_line(number)
            if sample is None:
                continue
            question = parse_row(source.row(number)).turns[-1][0]
            reply = ask(model, processor.tokenizer, sample, new_tokens)
            yield Scored(number, source.where(number), question, reply, reply.judged(judge))


def as_line(scored: Scored) -> str:
    """A scored sample as a line of answers.jsonl."""
    content = {
        "where": scored.where,
        "question": scored.question,
        "expected": scored.reply.right,
        "found": scored.verdict.answer,
        "right": scored.verdict.is_right,
        "why": scored.verdict.reason,
        "written": scored.reply.written,
    }
    return json.dumps(content, ensure_ascii=False) + "\n"


def wrong_page(wrong: Sequence[Scored], source: ConversationFile, heading: str) -> str:
    """A page of HTML with the wrong answers, and the pictures in it."""
    articles = []
    for scored in wrong:
        pictures = "".join(_pictures(source, scored.number))
        question = html.escape(scored.question)
        expected = html.escape(str(scored.reply.right))
        why = html.escape(scored.verdict.reason)
        where = html.escape(scored.where)
        written = html.escape(scored.reply.written)
        articles.append(
            f"<article>{pictures}<p>{question}<br>right: <b>{expected}</b>; {why}; {where}</p>"
            f"<pre>{written}</pre></article>"
        )
    title = html.escape(heading)
    return (
        f'<!doctype html><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
        f"<h1>{title}</h1>{''.join(articles)}"
    )


def _pictures(source: ConversationFile, number: int) -> Iterator[str]:
    """The pictures of a sample as HTML, made small."""
    root = source.root(number)
    for image in parse_row(source.row(number)).images:
        picture = open_image(local_path(image, root) or image)
        picture.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
        file = io.BytesIO()
        picture.save(file, "PNG")
        data = base64.b64encode(file.getvalue()).decode("ascii")
        yield f'<img alt="" src="data:image/png;base64,{data}">'


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit code: 0, or 1 after an error that is printed in one line.
    """
    parser = argument_parser("training.score", __doc__)
    parser.add_argument("--model", required=True, help="a directory, or a Hub id")
    parser.add_argument("--data", required=True, nargs="+", help="JSONL files")
    parser.add_argument("--image-root", help="directory of relative image paths")
    parser.add_argument("--out", type=Path, help="directory of what is written")
    parser.add_argument(
        "--by", metavar="FIELD", help="a field of the data's lines; each of its values is counted"
    )
    parser.add_argument("--max-new-tokens", type=int, default=512, help="longest answer")
    parser.add_argument(
        "--think",
        action="store_true",
        help="let the model think also where the data's answer has no thinking",
    )
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    options = parser.parse_args(arguments)
    return exit_code(lambda: _score_and_write(options))


def _score_and_write(options: argparse.Namespace) -> None:
    """Do what the command line asks."""
    if options.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens {options.max_new_tokens}: expected at least 1.")
    config: Any = AutoConfig.from_pretrained(options.model, trust_remote_code=True)
    processor: Any = AutoProcessor.from_pretrained(options.model, trust_remote_code=True)
    context = config.llm_config.max_position_embeddings
    encoder = SampleEncoder(
        config,
        processor.tokenizer,
        processor.image_processor,
        context,
        loss_on_skipped_thinking=options.think,  # the prompt leaves the thinking open
    )
    source = ConversationFile(options.data, encoder, options.image_root)
    groups = groups_of(source, options.by) if options.by else []
    model: Any = AutoModelForImageTextToText.from_pretrained(
        options.model, dtype=getattr(torch, options.dtype), trust_remote_code=True
    ).eval()
    found = []
    right = 0
    with tqdm(total=len(source), unit="questions") as bar:
        for scored in score(model, processor, source, options.max_new_tokens):
            found.append(scored)
            right += scored.verdict.is_right
            bar.set_postfix_str(f"{right} right")
            bar.update()
    if not found:
        raise ValueError("none of the samples can be asked: all are too long.")
    beside = Path(options.model).parent if Path(options.model).is_dir() else Path()
    out = options.out or beside / "score"
    shares = shares_of_groups(found, groups) if options.by else {}
    _write(found, source, out)
    _write_shares(options, found, shares, out)
    _print(found, source, shares)
    print(f"{out / 'answers.jsonl'}, {out / 'wrong.html'}, {out / SCORE_FILE}")


def _write(found: Sequence[Scored], source: ConversationFile, out: Path) -> None:
    """Write the answers, and the page of the wrong ones."""
    wrong = [one for one in found if not one.verdict.is_right]
    out.mkdir(parents=True, exist_ok=True)
    durable.write_text(out / "answers.jsonl", "".join(map(as_line, found)))
    durable.write_text(out / "wrong.html", wrong_page(wrong, source, f"{len(wrong)} wrong answers"))


def _write_shares(
    options: argparse.Namespace, found: Sequence[Scored], shares: dict[str, Share], out: Path
) -> None:
    """Write the shares, with what they are of."""
    content = {
        "model": options.model,
        "data": options.data,
        "all": share_of(found).as_json(),
        "by": options.by,
        "groups": {group: share.as_json() for group, share in shares.items()},
    }
    durable.write_json(out / SCORE_FILE, content)


def _print(found: Sequence[Scored], source: ConversationFile, shares: dict[str, Share]) -> None:
    """Print the shares, and how many samples were not asked."""
    print(share_of(found).text)
    width = max(map(len, shares), default=0)
    for group, share in shares.items():
        print(f"  {group.ljust(width)}  {share.text}")
    if len(found) < len(source):
        print(f"{len(source) - len(found)} were not asked: too long, or broken.")


if __name__ == "__main__":
    sys.exit(main())
