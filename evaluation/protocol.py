"""The report's protocol: how it asks, and what it states (technical report of R1V, section 3)."""

from __future__ import annotations

from serving.sampling import Sampling

# 65,536 tokens, five answers to each question without a seed, and the model card's settings.
SAMPLING = Sampling(65_536, temperature=0.6, top_p=0.95, repetition_penalty=1.05, answers=5)

_GUESS = (
    "If you are uncertain or the problem is too complex, make a reasoned guess based on the "
    "information provided. Avoid repeating steps indefinitely—provide your best guess even if "
    "unsure. Think step by step logically, considering all relevant information before answering."
)
CHOICE = (
    "Answer the preceding multiple choice question. The last line of your response should follow "
    "this format: 'Answer: \\boxed{$LETTER}' (without quotes), where LETTER is one of the options. "
    + _GUESS
)
OPEN = (
    "Answer the preceding question. The last line of your response should follow this format: "
    "'Answer: \\boxed{$FINAL_ANSWER}' (without quotes), where FINAL_ANSWER is your conclusion "
    "based on the reasoning provided. " + _GUESS
)


def instruction(kind: str) -> str:
    """What follows a question whose answer is of this kind."""
    return CHOICE if kind == "choice" else OPEN


def lettered(options: tuple[str, ...]) -> str:
    """The options of a choice, a line each: "A. 12 cm"."""
    lines = [f"{chr(ord('A') + place)}. {option}" for place, option in enumerate(options)]
    return "\n".join(lines)
