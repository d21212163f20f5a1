"""Reads numbers with units, as models write them.

>>> read("about 1,234.5 cm^2")
Quantity(value=1234.5, unit='cm2')
"""

from __future__ import annotations

import re
from typing import NamedTuple

from answers import extraction
from answers.text import DASHES

# fmt: off
SMALL_WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen",
)
TENS_WORDS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
# fmt: on
SMALL_NUMBERS = {word: number for number, word in enumerate(SMALL_WORDS)}
TENS = {word: 10 * number for number, word in enumerate(TENS_WORDS, start=2)}
SCALES = {"thousand": 1000, "million": 1_000_000, "billion": 1_000_000_000}

# What stands before a number without changing it, as "x =", "about" or a currency sign.
LEAD = re.compile(
    r"^(?:(?:[A-Za-z]\w?\s*)?(?:=|≈|\\approx|\\sim|~)\s*|(?:about|approximately|around|roughly)\s+)+",
    re.IGNORECASE,
)
CURRENCY = re.compile(r"^(?P<sign>[-+]?)\s*(?:\\?\$|€|£|¥)\s*")
PLAIN_NUMBER = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+"
NUMBER = re.compile(rf"(?P<number>[-+]?\s*(?:{PLAIN_NUMBER}))(?P<exponent>[eE][-+]?\d+)?")
POWER_OF_TEN = re.compile(r"^\s*(?:×|\\times|\*|x|\\cdot)\s*10\s*(?:\^|\*\*)\s*\{?\s*(-?\d+)\s*\}?")
FRACTION = re.compile(r"^(-?)\\[dt]?frac\s*\{\s*(-?\d+)\s*\}\s*\{\s*(\d+)\s*\}")
DIVISION = re.compile(rf"^\s*/\s*({PLAIN_NUMBER})(?![\w.])")

# Names of units to their signs; a name that is not here is compared as it stands.
UNITS = {
    "meter": "m", "metre": "m", "centimeter": "cm", "centimetre": "cm", "millimeter": "mm",
    "millimetre": "mm", "kilometer": "km", "kilometre": "km", "inch": "in", "inche": "in",
    "foot": "ft", "feet": "ft", "yard": "yd", "mile": "mi", "gram": "g", "kilogram": "kg",
    "liter": "l", "litre": "l", "milliliter": "ml", "millilitre": "ml", "second": "s", "sec": "s",
    "minute": "min", "hour": "h", "hr": "h", "degree": "°", "deg": "°", "percent": "%",
    "dollar": "$", "usd": "$", "newton": "n", "joule": "j", "watt": "w", "volt": "v",
}  # fmt: skip
UNIT_POWERS = (("square ", "2"), ("sq ", "2"), ("cubic ", "3"))


class Quantity(NamedTuple):
    """A number and its unit, which is empty where none is stated."""

    value: float
    unit: str


def number_of_words(text: str) -> int | None:
    """The number that words stand for, as 105 for "one hundred and five"; None for other words."""
    words = text.casefold().replace("-", " ").split()
    if not words or words == ["and"]:
        return None
    total = 0
    part = 0
    for word in words:
        if word in SMALL_NUMBERS:
            part += SMALL_NUMBERS[word]
        elif word in TENS:
            part += TENS[word]
        elif word == "hundred":
            part = max(part, 1) * 100
        elif word in SCALES:
            total += max(part, 1) * SCALES[word]
            part = 0
        elif word != "and":
            return None
    return total + part


def read(text: str) -> Quantity | None:
    """The number that a text is, with its unit; None for a text that is anything else."""
    text = extraction.plain(text).translate(DASHES).replace("{,}", ",")
    text = LEAD.sub("", text)
    words = number_of_words(text)
    if words is not None:
        return Quantity(words, "")
    currency = CURRENCY.match(text)
    unit = ""
    if currency is not None:
        text = currency["sign"] + text[currency.end() :]
        unit = "$"
    number = _read_number(text)
    if number is None:
        return None
    value, rest = number
    rest_unit = unit_of(rest)
    if rest_unit is None:
        return None
    return Quantity(value, rest_unit or unit)


def _read_number(text: str) -> tuple[float, str] | None:
    """The number at the beginning of a text, and what follows it."""
    fraction = FRACTION.match(text)
    if fraction is not None:
        sign, above, below = fraction.groups()
        if int(below) == 0:
            return None
        value = int(above) / int(below)
        return (-value if sign else value), text[fraction.end() :]
    match = NUMBER.match(text)
    if match is None:
        return None
    value = float(re.sub(r"[,\s]", "", match["number"]) + (match["exponent"] or ""))
    rest = text[match.end() :]
    power = POWER_OF_TEN.match(rest)
    if power is not None:
        return value * 10 ** int(power[1]), rest[power.end() :]
    division = DIVISION.match(rest)
    if division is not None:
        below = float(division[1].replace(",", ""))
        if below == 0:
            return None
        return value / below, rest[division.end() :]
    return value, rest


def unit_of(text: str) -> str | None:
    """A unit as it is compared: "square centimeters" and "cm^2" are both "cm2".

    Returns:
        None for a text that can be no unit, because it has other numbers or signs.
    """
    text = text.replace("\\circ", "°").replace("^", "").replace("{", "").replace("}", "")
    text = text.replace("\\%", "%").replace("²", "2").replace("³", "3").strip().casefold()
    text = text.strip(".").replace("\\$", "$")
    power = ""
    for name, exponent in UNIT_POWERS:
        if text.startswith(name):
            text = text[len(name) :]
            power = exponent
    if re.fullmatch(r"(?:[a-z°%$µμ]+[23]?)?(?:\s*/\s*[a-z]+[23]?|\s+[a-z]+)*", text) is None:
        return None
    if text in ("units", "unit"):
        return ""
    return _sign_of(text) + power


def _sign_of(unit: str) -> str:
    """The sign of a unit that may be written out, in the plural, or as a ratio."""
    if "/" in unit:
        return "/".join(_sign_of(part.strip()) for part in unit.split("/"))
    exponent = ""
    if unit and unit[-1] in "23":
        unit, exponent = unit[:-1], unit[-1]
    singular = unit[:-1] if len(unit) > 2 and unit.endswith("s") else unit
    return UNITS.get(unit, UNITS.get(singular, singular)) + exponent
