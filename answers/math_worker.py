"""Compares mathematical expressions in a process of its own, a line of JSON for each question.

    python -m answers.math_worker

Reads `{"gold": …, "answer": …}` from its input and writes `{"right": …, "reason": …}`. Symbolic
mathematics can take for ever, also in compiled code that no exception interrupts, and there it can
only be ended together with its process. `answers.mathematics` starts this one, and ends it.
"""

from __future__ import annotations

import json
import logging
import re
import signal
import sys

try:
    import resource
except ImportError:  # Windows
    resource = None

from math_verify import parse, verify
from math_verify.parser import ExprExtractionConfig, LatexExtractionConfig

RELATION = re.compile(r"[<>≤≥]|\\(?:lt|gt|le|ge|leq|geq)\b")
MAX_MEMORY = 4 << 30  # bytes; 999999999! would take all that there is
TARGETS = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())


def compare(gold: str, answer: str) -> dict[str, object]:
    """Whether two expressions are the same, by math-verify, which takes its own errors for "no".

    Time is limited from outside: math-verify's own limits do not reach compiled code.
    """
    golds = parse(f"\\boxed{{{gold}}}", TARGETS, parsing_timeout=None)  # type: ignore[arg-type]
    answers = parse(f"\\boxed{{{answer}}}", TARGETS, parsing_timeout=None)  # type: ignore[arg-type]
    if not answers:
        return {"right": False, "reason": "is no mathematical expression"}
    # With it "x < 3" is an interval, but an interval is also that of other ends.
    has_relation = RELATION.search(gold + answer) is not None
    if verify(golds, answers, allow_set_relation_comp=has_relation, timeout_seconds=None):
        return {"right": True, "reason": "the same expression"}
    return {"right": False, "reason": "another expression"}


def main() -> None:
    """Say that the imports are done, and answer until the input ends."""
    logging.disable(logging.ERROR)
    limit = float(sys.argv[1])
    if resource is not None:
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        # The system ends this process if whoever started it has died and cannot.
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 2 * limit)
        verdict = compare(question["gold"], question["answer"])
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(verdict), flush=True)


if __name__ == "__main__":
    main()
