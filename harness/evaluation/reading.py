"""What a task logs for one item, read into one form; the official benchmarks each log in their own."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

CIRCULAR_STEP: Final = 1_000_000
"""MMBench numbers the rotations of question `q` as `q + k * 10**6`."""

Sample = Mapping[str, Any]
"""One logged item of lmms-eval, its document under `doc`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One scored item: its score in [0, 1], what it is scored together with, and the part it is averaged in."""

    score: float
    group: str = ""
    """Items that the metric looks at together (a pair, the rotations of a question); empty: each by itself."""
    stratum: str = ""
    parsed: bool = True
    """False where no answer could be read from the text, so that the score is a guess or a zero."""


def logged(sample: Sample, path: str) -> Any:
    """The value at `key` or `key.subkey` of a sample."""
    value: Any = sample
    for part in path.split("."):
        value = value[part]
    return value


def _details(sample: Sample, path: str) -> Mapping[str, Any]:
    head = sample[path.partition(".")[0]]
    return head if isinstance(head, Mapping) else {}


def read_score(sample: Sample, path: str) -> Item:
    """A number or truth value, or a dict that holds it as `score`; beside it, `parsed` (BLINK: `pred_parsed`)."""
    value, details = logged(sample, path), _details(sample, path)
    score = value["score"] if isinstance(value, Mapping) else value
    return Item(score=float(score), parsed=bool(details.get("parsed", details.get("pred_parsed", True))))


def read_circular(sample: Sample, path: str) -> Item:
    """`{score, group}`."""
    return replace(read_score(sample, path), group=str(_details(sample, path)["group"]))


def read_pair(sample: Sample, path: str) -> Item:
    """`{score, pair, category}`."""
    details = _details(sample, path)
    category = str(details["category"])
    return replace(read_score(sample, path), group=f"{category}/{details['pair']}", stratum=category)


def read_mme(sample: Sample, path: str) -> Item:
    """MME logs perception and cognition under keys of their own: `{path}_perception_score` and so on."""
    from lmms_eval.tasks.mme.utils import parse_pred_ans

    value = next(sample[k] for k in (f"{path}_perception_score", f"{path}_cognition_score") if k in sample)
    category = str(value["category"])
    return Item(
        score=float(value["score"]),
        group=f"{category}/{value['question_id']}",
        stratum=category,
        parsed=parse_pred_ans(_response(sample)) != "other",
    )


def read_mmstar(sample: Sample, path: str) -> Item:
    """`{score, l2_category}`: eighteen categories count the same."""
    from lmms_eval.tasks._task_utils.mcq_extract import extract_mcq_answer

    parsed = bool(extract_mcq_answer(_response(sample), choices=["A", "B", "C", "D"]))
    stratum = str(_details(sample, path)["l2_category"])
    return replace(read_score(sample, path), stratum=stratum, parsed=parsed)


def read_mmt(sample: Sample, path: str) -> Item:
    """`{overall}`, a guess where no letter is found."""
    from lmms_eval.tasks.mmt.utils import mmt_doc_to_choice, parse_multi_choice_response

    choices, response = mmt_doc_to_choice(sample["doc"]), _response(sample)
    guess = _draws(lambda: parse_multi_choice_response(response, choices))
    return replace(read_score(sample, path), parsed=not guess)


def read_mmmu(sample: Sample, path: str) -> Item:
    """MMMU logs the parsed answer only; it is compared again by the task's own rules."""
    from lmms_eval.tasks.mmmu import utils

    value, doc, response = logged(sample, path), sample["doc"], _response(sample)
    choice = value["question_type"] == "multiple-choice"
    compare = utils.eval_multi_choice if choice else utils.eval_open
    guess = choice and _draws(lambda: _parse_mmmu(doc, response))
    return Item(
        score=float(compare(value["answer"], value["parsed_pred"][0])),
        stratum=str(value["subdomain"]),
        parsed=not guess,
    )


def _parse_mmmu(doc: Mapping[str, Any], response: str) -> None:
    import ast

    from lmms_eval.tasks.mmmu import utils

    answers, choices = utils.get_multi_choice_info(ast.literal_eval(doc["options"]))
    utils.parse_multi_choice_response(response, choices, answers)


def read_mmbench(sample: Sample, path: str) -> Item:
    """MMBench logs no score; `score_mmbench` judges whole questions."""
    return Item(score=math.nan, group=str(int(logged(sample, path)["index"]) % CIRCULAR_STEP))


def score_mmbench(samples: Sequence[Sample], items: Sequence[Item]) -> list[Item]:
    """Score all rotations of a question together, as the task's own evaluator does without an API."""
    import pandas as pd
    from lmms_eval.tasks.mmbench.mmbench_evals import MMBench_Evaluator

    rows = pd.DataFrame([s["gpt_eval_score"] for s in samples])
    rows["prediction"] = rows["prediction"].astype(str)
    answers = dict(zip(rows["index"], rows["answer"], strict=True))
    evaluator = MMBench_Evaluator()
    hits = {
        str(question): float(evaluator.eval_sub_data(part.sort_values("index"), answers, static_only=True))
        for question, part in rows.groupby(rows["index"].astype(int) % CIRCULAR_STEP)
    }
    return [replace(item, score=hits[item.group]) for item in items]


def _response(sample: Sample) -> str:
    return str(sample["filtered_resps"][0]).strip()


def _draws(parse: Callable[[], object]) -> bool:
    """True where a parser drew a random number: it found no answer and guessed one."""
    state = random.getstate()
    try:
        parse()
        return random.getstate() != state
    finally:
        random.setstate(state)
