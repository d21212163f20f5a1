"""What a question is worth and asks for, by a judge: S_t (report, 2.3).

S_t = (quality + difficulty + reasoning) / 30, from 0 to 1
"""

from __future__ import annotations

from typing import Any

from training.distill.judge import HIGHEST, SCORE, TEXT, Form, JsonJudge
from training.distill.prompt_files import Prompt
from training.distill.records import Sample

NAMES = ("quality", "difficulty", "reasoning")
FORM = Form("quality", {"reason": TEXT, "quality": SCORE, "difficulty": SCORE, "reasoning": SCORE})


def by_judge(sample: Sample, judge: JsonJudge, prompt: Prompt) -> dict[str, Any]:
    """What the judge says of a sample; it sees the images, which decide how hard a question is.

    Raises:
        SetAside: it says nothing that can be used.
    """
    judged = judge.ask(prompt, FORM, sample.images, {"question": sample.question})
    return {**judged.values, "by": "judge", "judge": judged.record}


def score(quality: float, difficulty: float, reasoning: float) -> float:
    """S_t, from 0 to 1; each part is from 0 to 10."""
    return (quality + difficulty + reasoning) / (len(NAMES) * HIGHEST)
