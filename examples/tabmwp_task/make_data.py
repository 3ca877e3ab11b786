"""Turn TabMWP's questions and table images into the parquet file of the task beside this script.

    python make_data.py --source DIR [--out FILE]

`DIR` holds `test.json` (question_id, image, question, choices, answer, unit, ques_type, grade) and `images/`. The
data is CC BY-NC-SA: keep the result out of version control.
"""

import argparse
import json
from pathlib import Path


def rows(source: Path) -> list[dict[str, object]]:
    """One row a question; the image as encoded bytes."""
    return [
        {
            "question_id": str(q["question_id"]),
            "image": {"bytes": (source / "images" / q["image"]).read_bytes(), "path": q["image"]},
            "image_name": q["image"],
            "question": q["question"],
            "choices": q["choices"] or [],
            "answer": q["answer"],
            "unit": q["unit"] or "",
            "ques_type": q["ques_type"],
            "grade": int(q["grade"]),
        }
        for q in json.loads((source / "test.json").read_text())
    ]


def write(source: Path, out: Path) -> int:
    """Write the parquet file; returns the number of questions."""
    from datasets import Dataset, Features, Image, Sequence, Value

    text = Value("string")
    features = Features(
        {
            "question_id": text,
            "image": Image(),
            "image_name": text,
            "question": text,
            "choices": Sequence(text),
            "answer": text,
            "unit": text,
            "ques_type": text,
            "grade": Value("int32"),
        }
    )
    data = Dataset.from_list(rows(source), features=features)
    data.to_parquet(str(out))
    return len(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, required=True, help="folder with test.json and images/")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("tabmwp.parquet"))
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    print(f"{write(args.source, args.out)} questions in {args.out}")


if __name__ == "__main__":
    main()
