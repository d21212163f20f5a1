"""How closely a question ties vision and text together: S_I (report, 2.3).

A judge is given the report's linguistic cues and gives a number from 0 to 10; S_I is a tenth of it.
With `integration: rules` the cues are found in the question's words (cues.py), and the output says
so.
"""

from __future__ import annotations

from typing import Any

from training.distill import cues
from training.distill.judge import HIGHEST, SCORE, TEXT, Form, JsonJudge
from training.distill.prompt_files import Prompt
from training.distill.records import Sample

# Those that the prompt names
CUES = (
    "why or how",
    "presupposition",
    "spatial relation",
    "domain term",
    "what or where",
    "definite article",
    "plain object",
)
FORM = Form(
    "integration",
    {
        "reason": TEXT,
        "cues": {"type": "array", "items": {"type": "string", "enum": list(CUES)}},
        "integration": SCORE,
    },
)


def by_judge(sample: Sample, judge: JsonJudge, prompt: Prompt) -> dict[str, Any]:
    """What the judge says of a sample.

    Raises:
        SetAside: it says nothing that can be used.
    """
    judged = judge.ask(prompt, FORM, sample.images, {"question": sample.question})
    return {**judged.values, "by": "judge", "judge": judged.record}


def by_rules(sample: Sample) -> dict[str, Any]:
    """What the cues of the last question say, on the judge's scale."""
    found = cues.found(sample.asked["question"])
    return {
        "cues": [*found.high, *found.low],
        "integration": HIGHEST * found.score,
        "by": "rules",
    }


def score(integration: float) -> float:
    """S_I, from 0 to 1, of a number from 0 to 10."""
    return integration / HIGHEST
