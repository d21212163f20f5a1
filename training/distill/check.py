"""Which chains are right, and which of them is kept: the shortest (report, 2.3).

A final answer is right by rule (answers/), or, with `check: judge-wrong`, where the rule calls it
wrong and the judge does not. The judge sees the final answer without the reasoning, which would
talk it into believing. A chain that a limit has cut is never right.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

from answers import extraction
from answers.judging import Judge
from answers.mathematics import ClosedAtExit
from remote_code import conversation
from training.distill.judge import TEXT, TRUTH, Form, JsonJudge
from training.distill.prompt_files import Prompt
from training.distill.records import Entry, Sample, SetAside, Unanswered

FORM = Form("verdict", {"reason": TEXT, "is_right": TRUTH})


class Chain(NamedTuple):
    """A chain of thought.

    Attributes:
        thinking: without marks; "" of a model that does not think.
        answer: behind it.
    """

    thinking: str
    answer: str

    @property
    def text(self) -> str:
        """The chain as an answer of training data."""
        if not self.thinking:
            return self.answer
        return f"{self.thinking}\n{conversation.THINK_END}\n\n{self.answer}"


class Verdict(NamedTuple):
    """Whether a chain is right.

    Attributes:
        is_right: whether it is; None where the judge could not be asked.
        answer: what was taken for the final answer.
        by: rule or judge.
        reason: in words.
        judge: prompt, number of requests and tokens, where the judge was asked for this one.
    """

    is_right: bool | None
    answer: str | None
    by: str
    reason: str
    judge: dict[str, Any] | None = None


class Checker(ClosedAtExit):
    """Says whether chains are right, from any number of threads; a context.

    Args:
        judge: asked where the rule says wrong; None asks nobody.
        prompt: that it gets.
        workers: answers that are compared by rule at a time; each takes a process.
    """

    def __init__(self, judge: JsonJudge | None, prompt: Prompt, workers: int = 1) -> None:
        self.judge = judge
        self.prompt = prompt
        self._rule = Judge()
        self._free = threading.BoundedSemaphore(workers)
        # What the judge has said of an answer to a sample: tries often agree
        self._said: dict[tuple[int, str], Verdict] = {}

    def close(self) -> None:
        """End the processes that compare expressions."""
        self._rule.close()

    def verdict(self, sample: Sample, answer: str) -> Verdict:
        """Whether an answer, without its thinking, is right.

        Raises:
            SetAside: the judge says nothing that can be used.
        """
        with self._free:
            rule = self._rule.judge(sample.right, answer)
        by_rule = Verdict(rule.is_right, rule.answer, "rule", rule.reason)
        final = extraction.find(answer).answer
        if rule.is_right or self.judge is None or final is None:
            return by_rule
        known = self._said.get((sample.number, final))
        if known is not None:
            return known
        values = {"question": sample.question, "solution": sample.right.gold, "answer": final}
        judged = self.judge.ask(self.prompt, FORM, [], values)
        said = judged.values
        verdict = Verdict(said["is_right"], final, "judge", said["reason"])
        self._said[sample.number, final] = verdict
        return verdict._replace(judge=judged.record)

    def check(self, sample: Sample, tries: Sequence[Entry]) -> dict[str, Any]:
        """The verdicts on all chains of a sample, and the try that is kept, or None.

        Raises:
            Unanswered: the model has written no chain.
            SetAside: none is right, and one could not be judged.
        """
        written = [entry for entry in tries if "error" not in entry]
        if not written:
            raise Unanswered(
                f"the model wrote no chain: {tries[0]['error'] if tries else 'no try'}"
            )
        right, lines, failures = [], [], []
        for entry in written:
            try:
                verdict = self._verdict_on_try(sample, entry)
            except SetAside as failure:
                failures.append(failure)
                verdict = Verdict(None, None, "judge", str(failure))
            lines.append({"try": entry["try"], **verdict._asdict()})
            if verdict.is_right:
                right.append(entry)
        if right:
            return {"kept": min(right, key=length_of)["try"], "verdicts": lines}
        if failures:
            raise failures[0]
        return {"kept": None, "verdicts": lines}

    def _verdict_on_try(self, sample: Sample, entry: Entry) -> Verdict:
        """The verdict on a chain that the model wrote."""
        if entry["finish_reason"] != "stop":
            return Verdict(False, None, "rule", f"was cut ({entry['finish_reason']})")
        for mark in (conversation.THINK_START, conversation.THINK_END):
            if mark in entry["thinking"] or mark in entry["answer"]:
                return Verdict(False, None, "rule", f"has a further {mark}")
        return self.verdict(sample, entry["answer"])


def length_of(entry: Entry) -> tuple[int, int]:
    """The length of a chain: its tokens; characters where the server does not count them."""
    return entry["tokens"], len(entry["thinking"]) + len(entry["answer"])


def shortest(tries: Sequence[Entry]) -> Entry:
    """The chain to revise: the shortest that was not cut, or the shortest of all."""
    whole = [entry for entry in tries if entry["finish_reason"] == "stop"]
    return min(whole or tries, key=length_of)
