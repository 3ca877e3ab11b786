"""Prompts and scoring of the TabMWP task; lmms-eval loads this file by its path."""

import re
from fractions import Fraction
from string import ascii_uppercase

NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?(?:\s*/\s*\d+)?|[-+]?\.\d+")


def doc_to_visual(doc):
    return [doc["image"].convert("RGB")]


def doc_to_text(doc, lmms_eval_specific_kwargs):
    """The wording of the training pool: lettered choices, or the unit in brackets."""
    if doc["choices"]:
        options = "\n".join(f"{ascii_uppercase[i]}. {c}" for i, c in enumerate(doc["choices"]))
        return f"{doc['question']}\n{options}\n{lmms_eval_specific_kwargs['choice_prompt']}"
    unit = f" (Unit: {doc['unit']})" if doc["unit"] else ""
    return f"{doc['question']}{unit}\n{lmms_eval_specific_kwargs['short_prompt']}"


def doc_to_target(doc):
    """The letter of the right choice, or the answer."""
    if doc["choices"]:
        return ascii_uppercase[list(doc["choices"]).index(doc["answer"])]
    return doc["answer"]


def process_results(doc, results):
    answer = results[0].strip()
    if doc["choices"]:
        right = chosen(answer, doc["choices"]) == doc["answer"]
    else:
        right = same(answer, doc["answer"], doc["unit"])
    return {"exact_match": float(right)}


def chosen(answer, choices):
    """The choice an answer names, by its text or by a letter at its start; None where it names none."""
    texts = {plain(c): c for c in choices}
    if plain(answer) in texts:
        return texts[plain(answer)]
    letter = re.match(r"\(?([A-Za-z])(?:[.):]|$)", answer)
    if letter is None:
        return None
    position = ascii_uppercase.index(letter[1].upper())
    return choices[position] if position < len(choices) else None


def same(answer, target, unit):
    """Equal as numbers where the target is one (commas, currency and the unit do not count), else as text."""
    wanted = number(target)
    if wanted is None:
        return plain(answer) == plain(target)
    text = answer.replace("$", "").strip().rstrip(".")
    if unit and text.lower().endswith(unit.lower()):
        text = text[: -len(unit)].strip()
    return number(text) == wanted


def number(text):
    """The number a whole text is, exactly; None where it is something else."""
    text = text.strip()
    if not NUMBER.fullmatch(text):
        return None
    numerator, _, denominator = text.replace(",", "").partition("/")
    if not denominator:
        return Fraction(numerator)
    return Fraction(numerator) / int(denominator) if int(denominator) else None


def plain(text):
    """Lower case, single spaces, no dot at the end."""
    return " ".join(text.lower().split()).rstrip(".")
