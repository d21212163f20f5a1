"""How an answer of a run is judged: by rule, by a judge model, or by both.

The judge model sees the question, the right answer and the final answer: no thinking, which would
talk it into believing.
"""

from __future__ import annotations

from typing import NamedTuple

from answers import extraction
from answers.judging import Judge, Verdict
from answers.mathematics import ClosedAtExit
from evaluation.items import Item
from serving.client import Client, Reply, user_message
from serving.reply_cache import ReplyCache
from serving.sampling import Sampling

STRATEGIES = ("rule", "judge-wrong", "both")
# "opened": the prompt opens the thinking, as the templates of Skywork-R1V do, so that an answer
# without an end of the thinking was never given. "absent": the model does not think, or the server
# takes the thinking away without returning it.
THINKING = ("opened", "absent")
PROMPT = """\
You are given a question, its reference answer, and the final answer that somebody gave. Decide \
whether the final answer says the same as the reference answer. Do not solve the question. \
Differences in notation, rounding as the question allows it, or wording do not matter; another \
value, another option, or several different answers are wrong.

Question:
{question}

Reference answer: {gold}

Final answer: {answer}

Write one line that starts with "Verdict:" and says RIGHT or WRONG."""


class Judged(NamedTuple):
    """What an answer counts, and why.

    Attributes:
        is_right: what it counts.
        answer: what was taken for the answer, or None.
        reason: in words.
        rule: whether it is right by rule.
        judge: whether the judge model calls it right, or None where it was not asked.
    """

    is_right: bool
    answer: str | None
    reason: str
    rule: bool
    judge: bool | None


class JudgeUnavailable(RuntimeError):
    """The judge model gave no verdict."""


class JudgeModel:
    """A model that is asked whether an answer is right.

    Args:
        client: of the model.
        cache: of its replies, so that nothing is asked twice.
        sampling: how it answers; by default greedily.
    """

    def __init__(self, client: Client, cache: ReplyCache, sampling: Sampling | None = None) -> None:
        self.client = client
        self.cache = cache
        self.sampling = sampling or Sampling(max_new_tokens=8192)

    def is_right(self, question: str, gold: str, answer: str) -> bool:
        """The verdict on an answer.

        Raises:
            JudgeUnavailable: its reply has no verdict.
            RequestFailed: it cannot be asked.
        """
        message = user_message(PROMPT.format(question=question, gold=gold, answer=answer))
        reply = self.cache.ask(self.client, [message], self.sampling, accept=_has_verdict)
        verdict = verdict_of(reply.text)
        if verdict is None:
            raise JudgeUnavailable(f"the judge gave no verdict: {reply.text[-200:]!r}")
        return verdict


def _has_verdict(reply: Reply) -> bool:
    return verdict_of(reply.text) is not None


def verdict_of(text: str) -> bool | None:
    """The verdict in a judge's reply: its last line that starts with "Verdict:"."""
    said = extraction.after_thinking(text) or ""
    for line in reversed(said.splitlines()):
        head, colon, rest = line.strip("*# ").partition(":")
        if colon and head.strip("* ").lower() == "verdict":
            words = rest.strip("*. ").upper()
            return {"RIGHT": True, "WRONG": False}.get(words)
    return None


class Judging(ClosedAtExit):
    """Judges the answers of a run, from any number of threads; a context.

    Args:
        strategy: one of STRATEGIES. "rule" asks no model; "judge-wrong" asks where the rule says
            wrong, and what the judge calls right counts; "both" asks about every answer and counts
            the rule's, for the agreement of the two.
        thinking: one of THINKING.
        judge: the judge model, for all strategies but "rule".

    Raises:
        ValueError: a name is unknown, or there is no judge model.
    """

    def __init__(
        self, strategy: str = "rule", thinking: str = "opened", judge: JudgeModel | None = None
    ) -> None:
        if strategy not in STRATEGIES:
            raise ValueError(f"strategy {strategy!r}: expected one of {STRATEGIES}.")
        if thinking not in THINKING:
            raise ValueError(f"thinking {thinking!r}: expected one of {THINKING}.")
        if strategy != "rule" and judge is None:
            raise ValueError(f"strategy {strategy!r} needs a judge model (--judge-url).")
        self.strategy = strategy
        self.thinking = thinking
        self.judge_model = judge
        self._rule = Judge()

    def close(self) -> None:
        """End the processes that compare expressions."""
        self._rule.close()

    def judge(self, item: Item, text: str, has_reasoning: bool) -> Judged:
        """Judge an answer.

        Args:
            item: the question.
            text: of the answer, with the thinking where the server has left it there.
            has_reasoning: whether the server returned the thinking apart.

        Raises:
            JudgeUnavailable, RequestFailed: the judge model gave no verdict.
        """
        opened = self.thinking == "opened" and not has_reasoning
        rule = self._by_rule(item, text, opened)
        judged = Judged(rule.is_right, rule.answer, rule.reason, rule.is_right, None)
        if self.judge_model is None or self.strategy == "rule":
            return judged
        if self.strategy == "judge-wrong" and rule.is_right:
            return judged
        final = extraction.find(text, opened).answer
        if final is None:
            return judged._replace(judge=False)  # there is nothing that a judge could read
        by_judge = self.judge_model.is_right(item.text, " or ".join(item.golds), final)
        judged = judged._replace(judge=by_judge)
        if self.strategy == "judge-wrong" and by_judge:
            return judged._replace(is_right=True, reason=f"by the judge; by rule {rule.reason}")
        return judged

    def _by_rule(self, item: Item, text: str, opened: bool) -> Verdict:
        """The verdict on the right answer that it is, or on the first one where it is none."""
        verdicts = [self._rule.judge(question, text, opened) for question in item.questions()]
        for verdict in verdicts:
            if verdict.is_right:
                return verdict
        return verdicts[0]
