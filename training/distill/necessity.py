"""Whether a question needs its image, by a judge: the second half of S_v (report, 2.3).

    S_v = (clarity + necessity / 10) / 2, from 0 to 1

Clarity is that of the least clear image (clarity.py). The judge also says whether the answer
changes without the image, and which kind of relevance it has.
"""

from __future__ import annotations

from typing import Any

from training.distill.judge import HIGHEST, SCORE, TEXT, TRUTH, Form, JsonJudge
from training.distill.prompt_files import Prompt
from training.distill.records import Sample

RELEVANCES = ("essential", "supporting", "illustrative", "unrelated")
FORM = Form(
    "necessity",
    {
        "reason": TEXT,
        "changes_without_image": TRUTH,
        "relevance": {"type": "string", "enum": list(RELEVANCES)},
        "necessity": SCORE,
    },
)


def by_judge(sample: Sample, judge: JsonJudge, prompt: Prompt) -> dict[str, Any]:
    """What the judge says of a sample.

    Raises:
        SetAside: it says nothing that can be used.
    """
    judged = judge.ask(prompt, FORM, sample.images, {"question": sample.question})
    return {**judged.values, "by": "judge", "judge": judged.record}


def score(clarity: float, necessity: float) -> float:
    """S_v, from 0 to 1.

    Args:
        clarity: from 0 to 1.
        necessity: from 0 to 10.
    """
    return (clarity + necessity / HIGHEST) / 2
