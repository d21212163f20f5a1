"""Wrong chains are revised toward the right answer, and the result is checked again (report, 2.3).

The judge revises the shortest chain that the model wrote; what is still wrong it revises once more.
With `revise: data` the data's own chain takes the place of a wrong one, where it is right by rule.
A chain that gives away that it was revised is not taken.
"""

from __future__ import annotations

import re
from typing import Any

from remote_code import conversation
from training.distill.check import Chain, Checker
from training.distill.judge import TEXT, Form, JsonJudge
from training.distill.prompt_files import Prompt
from training.distill.records import Sample, SetAside

FORM = Form("revision", {"thinking": TEXT, "answer": TEXT})
# A model that answers a question knows of no reference
GIVES_AWAY = re.compile(
    r"\breference (?:answer|solution)\b|\brevis(?:ed|ion) (?:reasoning|chain|answer)\b"
    r"|\bthe (?:model's|original|given) reasoning\b",
    re.IGNORECASE,
)


class Reviser:
    """Revises chains with a judge.

    Args:
        judge: that revises.
        prompt: that it gets.
        checker: of what it writes.
        attempts: at a chain.
    """

    def __init__(self, judge: JsonJudge, prompt: Prompt, checker: Checker, attempts: int) -> None:
        self.judge = judge
        self.prompt = prompt
        self.checker = checker
        self.attempts = attempts

    def revise(self, sample: Sample, wrong: Chain) -> dict[str, Any]:
        """A right chain in place of a wrong one, as a line of the stage.

        Raises:
            SetAside: no attempt is right, or the judge says nothing that can be used.
        """
        chain = wrong
        records, problem = [], ""
        for _ in range(self.attempts):
            values = {
                "question": sample.question,
                "solution": sample.right.gold,
                "chain": chain.text,
            }
            judged = self.judge.ask(self.prompt, FORM, sample.images, values)
            records.append(judged.record)
            chain = Chain(judged.values["thinking"].strip(), judged.values["answer"].strip())
            problem = flaw(chain)
            if problem:
                continue
            verdict = self.checker.verdict(sample, chain.answer)
            if verdict.judge is not None:
                records.append(verdict.judge)
            if verdict.is_right:
                return {**chain._asdict(), "by": "judge", "judge": total(records)}
            problem = f"is wrong: {verdict.reason}"
        raise SetAside(f"{self.attempts} revisions, and the last {problem}")


def flaw(chain: Chain) -> str:
    """Why a revised chain could not be the model's own, right or wrong; "" where it could."""
    for mark in (conversation.THINK_START, conversation.THINK_END):
        if mark in chain.thinking or mark in chain.answer:
            return f"has {mark} in it"
    gives_away = GIVES_AWAY.search(f"{chain.thinking}\n{chain.answer}")
    if gives_away is not None:
        return f"gives away that it was revised ({gives_away[0]!r})"
    return ""


def from_data(sample: Sample, checker: Checker) -> dict[str, Any]:
    """The data's own chain, as a line of the stage.

    Raises:
        SetAside: there is none, or it is not right.
    """
    thinking, answer = conversation.split_thinking(sample.answer)
    if not answer:
        raise SetAside("no try is right, and the data have no chain with an answer")
    problem = flaw(Chain(thinking, answer))
    if problem:
        raise SetAside(f"no try is right, and the data's own chain {problem}")
    verdict = checker.verdict(sample, answer)
    if not verdict.is_right:
        raise SetAside(f"no try is right, and the data's own chain is wrong: {verdict.reason}")
    return {"thinking": thinking, "answer": answer, "by": "data"}


def total(records: list[dict[str, Any]]) -> dict[str, Any]:
    """The records of several requests as one."""
    summed = dict(records[0])
    for record in records[1:]:
        for name in ("requests", "read", "written"):
            summed[name] += record[name]
    return summed
