"""Answers as reasoning models write them, and whether each is right, with the reason.

Each row is judged by hand. They are of the kinds that occur in MATH-500, AIME, GPQA, MMMU and
MathVista, and of those that reward hacking produces.
"""

from __future__ import annotations

from typing import NamedTuple

from answers.judging import Question


class Row(NamedTuple):
    """An answer.

    Attributes:
        question: with the right answer.
        text: what the model wrote.
        is_right: the verdict.
        why: the reason of the verdict.
        opened: whether the prompt had opened the thinking.
    """

    question: Question
    text: str
    is_right: bool
    why: str
    opened: bool = False


def mathematics(gold: str) -> Question:
    """A question whose answer is an expression."""
    return Question("mathematics", gold)


def words(gold: str) -> Question:
    """A question whose answer is a word or words."""
    return Question("text", gold)


def number(gold: str, precision: int | None = None, unit: str = "") -> Question:
    """A question whose answer is a number."""
    return Question("number", gold, precision=precision, unit=unit)


def items(gold: str) -> Question:
    """A question whose answer is a list."""
    return Question("list", gold)


B_OF_FOUR = Question("choice", "B", ("10 cm", "12 cm", "14 cm", "16 cm"))
C_OF_FOUR = Question("choice", "C", ("a circle", "a square", "a triangle", "a hexagon"))
A_OF_TWO = Question("choice", "A", ("Yes", "No"))
B_UNKNOWN = Question("choice", "B")
D_OF_MATHS = Question("choice", "D", ("$\\frac{1}{2}$", "$\\frac{1}{3}$", "$\\frac{1}{4}$", "$0$"))
RIGHT = True
WRONG = False

EXTRACTION = [
    Row(mathematics("4"), "<think>\n2+2\n</think>\n\n\\boxed{4}", RIGHT, "the plain form"),
    Row(mathematics("4"), "2+2\n</think>\n\nAnswer: \\boxed{4}", RIGHT, "the prompt opened", True),
    Row(mathematics("4"), "\\boxed{4}", RIGHT, "no thinking at all"),
    Row(mathematics("4"), "I think it is \\boxed{4}", WRONG, "the thinking never ends", True),
    Row(mathematics("4"), "<think>so \\boxed{4}", WRONG, "its own thinking never ends"),
    Row(
        mathematics("4"), "<think>\\boxed{4}</think>\n\nDone.", WRONG, "the box is in the thinking"
    ),
    Row(mathematics("4"), "\\boxed{4}</think>\n\nIt is 5.", WRONG, "as before", True),
    Row(mathematics("4"), "<think>a</think>\\boxed{5}</think>\\boxed{4}", RIGHT, "closed twice"),
    Row(mathematics("5"), "<think>a</think>\\boxed{5}</think>\\boxed{4}", WRONG, "closed twice"),
    Row(mathematics("4"), "<think></think>\\boxed{4}", RIGHT, "an empty thinking"),
    Row(
        mathematics("4"), "a</think>\\boxed{4}<think>hm", WRONG, "opened again and not closed", True
    ),
    Row(mathematics("4"), "a</think>\\boxed{5}<think>no</think>\\boxed{4}", RIGHT, "again", True),
    Row(mathematics("4"), "a</think>", WRONG, "nothing follows", True),
    Row(mathematics("4"), "", WRONG, "nothing at all"),
    Row(mathematics("4"), "\\boxed{3}, no: \\boxed{4}", RIGHT, "the last box counts"),
    Row(mathematics("3"), "\\boxed{3}, no: \\boxed{4}", WRONG, "the last box counts"),
    Row(mathematics("4"), "\\boxed{4} \\boxed{}", RIGHT, "an empty box is none"),
    Row(mathematics("4"), "\\boxed{}", WRONG, "an empty box alone"),
    Row(mathematics("4"), "\\boxed{4", WRONG, "cut off within the box"),
    Row(mathematics("4"), "\\boxed{\\boxed{4}}", RIGHT, "a box in a box"),
    Row(mathematics("4"), "\\fbox{4}", RIGHT, "another command"),
    Row(mathematics("4"), "\\boxed 4", RIGHT, "no braces"),
    Row(mathematics("4"), "\\boxed{ 4 }.", RIGHT, "spaces, and a full stop"),
    Row(mathematics("4"), "$\\boxed{4}$", RIGHT, "within dollar signs"),
    Row(mathematics("4"), "\\[\n\\boxed{4}\n\\]", RIGHT, "within display mathematics"),
    Row(mathematics("4"), "**Answer:** 4", RIGHT, "no box, but a statement"),
    Row(mathematics("4"), "The answer is 4.", RIGHT, "no box, but a statement"),
    Row(mathematics("4"), "The final answer is: $4$", RIGHT, "no box, but a statement"),
    Row(mathematics("4"), "4", RIGHT, "nothing but the answer"),
    Row(mathematics("4"), "There are 4 cases, or 5.", WRONG, "a sentence with several numbers"),
    Row(mathematics("4"), "I cannot tell.", WRONG, "no answer"),
    Row(mathematics("\\frac{1}{2}"), "\\boxed{\\frac{1}{2}}", RIGHT, "nested braces"),
    Row(
        mathematics("\\sqrt{\\frac{1}{2}}"), "\\boxed{\\sqrt{\\frac{1}{2}}}", RIGHT, "deeply nested"
    ),
    Row(mathematics("\\{1,2\\}"), "\\boxed{\\{1,2\\}}", RIGHT, "escaped braces are no braces"),
    Row(mathematics("\\{1,2\\}"), "\\boxed{\\left\\{1,2\\right\\}}", RIGHT, "sized braces"),
    Row(mathematics("7"), "\\boxed{7}\n\n(see \\boxed for the form)", RIGHT, "a mention is no box"),
    Row(mathematics("7"), "x\\boxedfoo{8} \\boxed{7}", RIGHT, "another command's name"),
]

MATHEMATICS = [
    Row(mathematics("\\frac{1}{2}"), "\\boxed{0.5}", RIGHT, "a decimal"),
    Row(mathematics("\\frac{1}{2}"), "\\boxed{\\dfrac{1}{2}}", RIGHT, "another size"),
    Row(mathematics("\\frac{1}{2}"), "\\boxed{\\frac12}", RIGHT, "without braces"),
    Row(mathematics("\\frac{1}{2}"), "\\boxed{1/2}", RIGHT, "a slash"),
    Row(mathematics("\\frac{1}{2}"), "\\boxed{\\frac{2}{4}}", RIGHT, "not in lowest terms"),
    Row(mathematics("\\frac{1}{2}"), "\\boxed{\\frac{2}{1}}", WRONG, "upside down"),
    Row(mathematics("-\\frac{1}{2}"), "\\boxed{\\frac{-1}{2}}", RIGHT, "the sign's place"),
    Row(mathematics("-\\frac{1}{2}"), "\\boxed{\\frac{1}{2}}", WRONG, "the sign"),
    Row(mathematics("\\frac{1}{3}"), "\\boxed{0.333}", WRONG, "rounded, where it is exact"),
    Row(mathematics("1\\frac{1}{2}"), "\\boxed{\\frac{3}{2}}", RIGHT, "a mixed number"),
    Row(mathematics("-3"), "\\boxed{−3}", RIGHT, "Unicode's minus"),
    Row(mathematics("1234"), "\\boxed{1,234}", RIGHT, "a thousands separator"),
    Row(mathematics("1234"), "\\boxed{1{,}234}", RIGHT, "LaTeX's thousands separator"),
    Row(mathematics("2520"), "\\boxed{2,\\!520}", RIGHT, "one with a negative space"),
    Row(mathematics("1234"), "\\boxed{1.234}", WRONG, "a point is no thousands separator"),
    Row(mathematics("12"), "\\boxed{12\\text{ cm}}", RIGHT, "a unit besides"),
    Row(mathematics("12\\text{ cm}"), "\\boxed{12}", RIGHT, "without the unit"),
    Row(mathematics("12"), "\\boxed{12 \\text{ square units}}", RIGHT, "units"),
    Row(
        mathematics("\\frac{3}{4}"), "\\boxed{3/4 \\text{ cups}}", RIGHT, "a unit behind a fraction"
    ),
    Row(mathematics("5"), "\\boxed{\\$5}", RIGHT, "a currency"),
    Row(mathematics("5.5"), "\\boxed{\\$5.50}", RIGHT, "cents"),
    Row(mathematics("50"), "\\boxed{50\\%}", RIGHT, "a percent sign where percent was asked"),
    Row(mathematics("0.5"), "\\boxed{50\\%}", RIGHT, "a percent"),
    Row(mathematics("50\\%"), "\\boxed{50}", RIGHT, "without the percent sign"),
    Row(mathematics("50\\%"), "\\boxed{60\\%}", WRONG, "another percent"),
    Row(mathematics("90"), "\\boxed{90^\\circ}", RIGHT, "degrees"),
    Row(mathematics("90^\\circ"), "\\boxed{90}", RIGHT, "degrees left out"),
    Row(mathematics("60^\\circ"), "\\boxed{60 \\text{ degrees}}", RIGHT, "degrees in words"),
    Row(mathematics("60^\\circ"), "\\boxed{\\frac{\\pi}{4}}", WRONG, "another angle"),
    Row(mathematics("12"), "\\boxed{\\text{twelve}}", RIGHT, "a number in words"),
    Row(mathematics("21"), "\\boxed{\\text{twenty-one}}", RIGHT, "a number in two words"),
    Row(mathematics("105"), "The answer is one hundred and five.", RIGHT, "in many words"),
    Row(mathematics("12"), "\\boxed{\\text{eleven}}", WRONG, "another number in words"),
    Row(mathematics("1024"), "\\boxed{2^{10}}", RIGHT, "a power"),
    Row(mathematics("1500"), "\\boxed{1.5\\times 10^3}", RIGHT, "scientific notation"),
    Row(mathematics("1500"), "\\boxed{1.5e3}", RIGHT, "as a calculator has it"),
    Row(mathematics("2\\sqrt{3}"), "\\boxed{\\sqrt{12}}", RIGHT, "the same root"),
    Row(mathematics("2\\sqrt{3}"), "\\boxed{3\\sqrt{2}}", WRONG, "another root"),
    Row(mathematics("6\\sqrt{2}"), "\\boxed{8.485}", WRONG, "rounded, where it is exact"),
    Row(mathematics("x^2+2x+1"), "\\boxed{(x+1)^2}", RIGHT, "factored"),
    Row(mathematics("x^2+2x+1"), "\\boxed{x^2+1+2x}", RIGHT, "another order"),
    Row(mathematics("x^2+2x+1"), "\\boxed{x^2+2x}", WRONG, "a term is missing"),
    Row(mathematics("5"), "\\boxed{x=5}", RIGHT, "an equation for a value"),
    Row(mathematics("x=5"), "\\boxed{5}", RIGHT, "a value for an equation"),
    Row(mathematics("y=2x+1"), "\\boxed{y=1+2x}", RIGHT, "the same equation"),
    Row(mathematics("y=2x+1"), "\\boxed{y=2x-1}", WRONG, "another equation"),
    Row(mathematics("[0,1)"), "\\boxed{[0,1)}", RIGHT, "an interval"),
    Row(mathematics("(0,1)"), "\\boxed{[0,1)}", WRONG, "open or closed"),
    Row(mathematics("(-\\infty,3)"), "\\boxed{x<3}", RIGHT, "an inequality for an interval"),
    Row(mathematics("[1,2]"), "\\boxed{x \\in [1,2]}", RIGHT, "membership"),
    Row(mathematics("(-2,1)\\cup(3,4)"), "\\boxed{(3,4)\\cup(-2,1)}", RIGHT, "a union"),
    Row(mathematics("\\{1,2\\}"), "\\boxed{\\{2,1\\}}", RIGHT, "a set has no order"),
    Row(mathematics("1,2"), "\\boxed{2, 1}", RIGHT, "roots have no order"),
    Row(mathematics("1,2"), "\\boxed{1}", WRONG, "a root is missing"),
    Row(mathematics("1,2"), "\\boxed{1 \\text{ and } 2}", RIGHT, "joined by a word"),
    Row(mathematics("3\\pm 2"), "\\boxed{1, 5}", RIGHT, "plus or minus"),
    Row(mathematics("(1,2)"), "\\boxed{(2,1)}", WRONG, "a point has an order"),
    Row(mathematics("(1,2)"), "\\boxed{(1, 2)}", RIGHT, "a space in a point"),
    Row(mathematics("(3,\\frac{\\pi}{2})"), "\\boxed{(3, \\pi/2)}", RIGHT, "polar coordinates"),
    Row(
        mathematics("\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}"),
        "\\boxed{\\begin{bmatrix}1&2\\\\3&4\\end{bmatrix}}",
        RIGHT,
        "other brackets around a matrix",
    ),
    Row(
        mathematics("\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}"),
        "\\boxed{\\begin{pmatrix}1&3\\\\2&4\\end{pmatrix}}",
        WRONG,
        "transposed",
    ),
    Row(mathematics("10!"), "\\boxed{3628800}", RIGHT, "a factorial"),
    Row(mathematics("\\text{east}"), "\\boxed{\\text{East}}", RIGHT, "a word"),
    Row(
        mathematics("\\text{east}"), "\\boxed{\\text{seat}}", WRONG, "the same letters, no product"
    ),
    Row(mathematics("\\text{Evelyn}"), "\\boxed{Evelyn}", RIGHT, "a name"),
    Row(mathematics("\\frac{a}{b}"), "\\boxed{a/b}", RIGHT, "letters"),
    Row(mathematics("2:3"), "\\boxed{4:6}", RIGHT, "a ratio"),
    Row(mathematics("3"), "\\boxed{\\frac{}", WRONG, "broken LaTeX"),
    Row(mathematics("3"), "\\boxed{\\frac{1}{0}}", WRONG, "a division by zero"),
    Row(mathematics("3"), "\\boxed{10^{10^{10^{10}}}}", WRONG, "a number that hangs a parser"),
    Row(mathematics("3"), "\\boxed{" + "((" * 60 + "3" + "))" * 59 + "}", WRONG, "unbalanced"),
    Row(mathematics("3"), "\\boxed{3 or 4}", WRONG, "two answers to be safe"),
    Row(mathematics("3"), "\\boxed{1, 2, 3, 4, 5}", WRONG, "many answers to be safe"),
    Row(mathematics("073"), "\\boxed{73}", RIGHT, "AIME's leading zero"),
    Row(mathematics("73"), "\\boxed{073}", RIGHT, "AIME's leading zero"),
    Row(mathematics("204"), "\\boxed{204 \\text{ minutes}}", RIGHT, "AIME, with a unit"),
    Row(mathematics("204"), "\\boxed{m+n=204}", RIGHT, "AIME's sum"),
]

CHOICES = [
    Row(B_OF_FOUR, "\\boxed{B}", RIGHT, "the letter"),
    Row(B_OF_FOUR, "\\boxed{\\text{B}}", RIGHT, "as text"),
    Row(B_OF_FOUR, "\\boxed{\\textbf{(B)}}", RIGHT, "bold, in parentheses"),
    Row(B_OF_FOUR, "\\boxed{\\mathrm{B}}", RIGHT, "upright"),
    Row(B_OF_FOUR, "\\boxed{(B)}", RIGHT, "in parentheses"),
    Row(B_OF_FOUR, "\\boxed{B.}", RIGHT, "with a full stop"),
    Row(B_OF_FOUR, "\\boxed{B. 12 cm}", RIGHT, "with its text"),
    Row(B_OF_FOUR, "\\boxed{\\text{B) 12 cm}}", RIGHT, "with its text"),
    Row(B_OF_FOUR, "\\boxed{B: 12 cm}", RIGHT, "with its text"),
    Row(B_OF_FOUR, "\\boxed{12\\text{ cm}}", RIGHT, "its text alone"),
    Row(B_OF_FOUR, "\\boxed{14 cm}", WRONG, "the text of another option"),
    Row(B_OF_FOUR, "\\boxed{B. 14 cm}", WRONG, "letter and text contradict each other"),
    Row(B_OF_FOUR, "\\boxed{C}", WRONG, "another letter"),
    Row(B_OF_FOUR, "\\boxed{A, B}", WRONG, "two letters"),
    Row(B_OF_FOUR, "\\boxed{AB}", WRONG, "two letters"),
    Row(B_OF_FOUR, "\\boxed{A or B}", WRONG, "two letters"),
    Row(B_OF_FOUR, "\\boxed{B or A}", WRONG, "two letters"),
    Row(B_OF_FOUR, "\\boxed{E}", WRONG, "no option has this letter"),
    Row(B_OF_FOUR, "\\boxed B", RIGHT, "no braces"),
    Row(B_OF_FOUR, "\\fbox{B}", RIGHT, "another command"),
    Row(B_OF_FOUR, "Answer: B", RIGHT, "a statement"),
    Row(B_OF_FOUR, "Answer: \\boxed{B}", RIGHT, "the report's prompt"),
    Row(B_OF_FOUR, "Answer: $B$", RIGHT, "the letter as mathematics"),
    Row(B_OF_FOUR, "**Answer: (B)**", RIGHT, "bold"),
    Row(B_OF_FOUR, "The answer is (B).", RIGHT, "a statement"),
    Row(B_OF_FOUR, "The correct answer is **B**.", RIGHT, "a statement"),
    Row(B_OF_FOUR, "The answer is B because it is longest.", RIGHT, "a statement with a reason"),
    Row(B_OF_FOUR, "The answer is option B.", RIGHT, "a statement"),
    Row(B_OF_FOUR, "The answer is A or B.", WRONG, "a statement that names two"),
    Row(B_OF_FOUR, "The answer is either B or C", WRONG, "a statement that names two"),
    Row(B_OF_FOUR, "B", RIGHT, "nothing but the letter"),
    Row(B_OF_FOUR, "(B)", RIGHT, "nothing but the letter"),
    Row(B_OF_FOUR, "B. 12 cm", RIGHT, "nothing but the option"),
    Row(B_OF_FOUR, "(B) 12 cm", RIGHT, "nothing but the option"),
    Row(B_OF_FOUR, "12 cm", RIGHT, "nothing but its text"),
    Row(B_OF_FOUR, "A is too short.\nSo it is B.", RIGHT, "the last sentence decides"),
    Row(B_OF_FOUR, "Both A and B fit.", WRONG, "a sentence that names several"),
    Row(B_OF_FOUR, "A, B, C and D were considered.", WRONG, "a sentence that names all"),
    Row(B_OF_FOUR, "It cannot be told.", WRONG, "names none"),
    Row(B_OF_FOUR, "b", WRONG, "a small letter is a variable's name"),
    Row(B_OF_FOUR, "<think>B, surely \\boxed{B}", WRONG, "the thinking never ends"),
    Row(B_OF_FOUR, "<think>\\boxed{A}</think>\n\\boxed{B}", RIGHT, "the draft does not count"),
    Row(B_OF_FOUR, "\\boxed{A}\n\\boxed{B}", RIGHT, "the last box counts"),
    Row(C_OF_FOUR, "A triangle", RIGHT, "the text, which begins with a word of one letter"),
    Row(C_OF_FOUR, "A triangle has three sides, so C.", RIGHT, "an article is no letter"),
    Row(C_OF_FOUR, "\\boxed{A triangle}", RIGHT, "the text in the box"),
    Row(C_OF_FOUR, "\\boxed{triangle}", RIGHT, "the text without its article"),
    Row(C_OF_FOUR, "I think that it is C.", RIGHT, "a pronoun is no letter"),
    Row(C_OF_FOUR, "\\boxed{a square}", WRONG, "another text"),
    Row(A_OF_TWO, "\\boxed{A}", RIGHT, "the letter A"),
    Row(A_OF_TWO, "\\boxed{Yes}", RIGHT, "the text"),
    Row(A_OF_TWO, "\\boxed{\\text{No}}", WRONG, "the other text"),
    Row(A_OF_TWO, "Answer: A", RIGHT, "the letter A is no article here"),
    Row(B_UNKNOWN, "\\boxed{B}", RIGHT, "options that are unknown"),
    Row(B_UNKNOWN, "\\boxed{J}", WRONG, "up to ten options"),
    Row(B_UNKNOWN, "\\boxed{(B) the second}", RIGHT, "a text that is unknown"),
    Row(D_OF_MATHS, "\\boxed{D}", RIGHT, "options of mathematics"),
    Row(D_OF_MATHS, "\\boxed{0}", RIGHT, "the text of such an option"),
    Row(D_OF_MATHS, "\\boxed{\\frac{1}{3}}", WRONG, "the text of another"),
]

NUMBERS = [
    Row(number("7"), "\\boxed{7}", RIGHT, "an integer"),
    Row(number("7"), "\\boxed{7.0}", RIGHT, "an integer with a point"),
    Row(number("7"), "\\boxed{8}", WRONG, "another one"),
    Row(number("7"), "\\boxed{seven}", RIGHT, "in words"),
    Row(number("7"), "\\boxed{about 7}", RIGHT, "a hedge"),
    Row(number("1.2", precision=1), "\\boxed{1.2}", RIGHT, "as precise as asked"),
    Row(number("1.2", precision=1), "\\boxed{1.23}", RIGHT, "more precise"),
    Row(number("1.2", precision=1), "\\boxed{1.249}", RIGHT, "it rounds to the answer"),
    Row(number("1.2", precision=1), "\\boxed{1.26}", WRONG, "it rounds to another"),
    Row(number("1.23", precision=2), "\\boxed{1.2}", WRONG, "less precise than asked"),
    Row(number("1.2"), "\\boxed{1.23}", WRONG, "no precision stated"),
    Row(number("12", unit="cm"), "\\boxed{12 \\text{ cm}}", RIGHT, "the unit"),
    Row(number("12", unit="cm"), "\\boxed{12}", RIGHT, "the unit left out"),
    Row(number("12", unit="cm"), "\\boxed{12 centimeters}", RIGHT, "the unit written out"),
    Row(number("12", unit="cm"), "\\boxed{12 m}", WRONG, "another unit"),
    Row(number("12", unit="cm^2"), "\\boxed{12 \\text{ square centimeters}}", RIGHT, "squared"),
    Row(number("12", unit="cm^2"), "\\boxed{12 \\text{ cm}}", WRONG, "not squared"),
    Row(number("60", unit="km/h"), "\\boxed{60 km/h}", RIGHT, "a ratio of units"),
    Row(number("1234"), "\\boxed{1,234}", RIGHT, "a thousands separator"),
    Row(number("5", unit="$"), "\\boxed{\\$5}", RIGHT, "a currency in front"),
    Row(number("0.5"), "\\boxed{\\frac{1}{2}}", RIGHT, "a fraction"),
    Row(number("-3"), "\\boxed{−3}", RIGHT, "Unicode's minus"),
    Row(number("3"), "\\boxed{three apples and 4 pears}", WRONG, "several numbers"),
    Row(number("1500"), "\\boxed{1.5 \\times 10^{3}}", RIGHT, "scientific notation"),
]

OTHERS = [
    Row(items("[0, 2, 0]"), "\\boxed{[0, 2, 0]}", RIGHT, "a list"),
    Row(items("[0, 2, 0]"), "\\boxed{0, 2, 0}", RIGHT, "without brackets"),
    Row(items("[0, 2, 0]"), "\\boxed{(0,2,0)}", RIGHT, "other brackets"),
    Row(items("[0, 2, 0]"), "\\boxed{[2, 0, 0]}", WRONG, "another order"),
    Row(items("[0, 2, 0]"), "\\boxed{[0, 2]}", WRONG, "too short"),
    Row(items("[red, blue]"), "\\boxed{Red and blue}", RIGHT, "words joined by a word"),
    Row(items("['red', 'blue']"), "\\boxed{red, green}", WRONG, "another word"),
    Row(words("yes"), "\\boxed{Yes}", RIGHT, "case"),
    Row(words("yes"), "\\boxed{Yes.}", RIGHT, "a full stop"),
    Row(words("yes"), "\\boxed{\\text{yes}}", RIGHT, "as text"),
    Row(words("yes"), "\\boxed{no}", WRONG, "the opposite"),
    Row(words("yes"), "The answer is yes.", RIGHT, "a statement"),
    Row(words("yes"), "yes or no", WRONG, "both to be safe"),
    Row(words("The Cat"), "\\boxed{cat}", RIGHT, "an article"),
    Row(words("first"), "\\boxed{second}", WRONG, "another word"),
    Row(words("light blue"), "\\boxed{light-blue}", RIGHT, "a hyphen"),
    Row(words("light blue"), "\\boxed{blue}", WRONG, "half of it"),
    Row(words("2"), "\\boxed{two}", RIGHT, "a number in words"),
    Row(words("1.5"), "\\boxed{15}", WRONG, "the point counts"),
    Row(words("C"), "\\boxed{C}", RIGHT, "a letter"),
    Row(words("A"), "\\boxed{A}", RIGHT, "a letter that is an article, too"),
    Row(words("Answer"), "\\boxed{Answer}", RIGHT, "the word itself"),
]

TABLE = [*EXTRACTION, *MATHEMATICS, *CHOICES, *NUMBERS, *OTHERS]
