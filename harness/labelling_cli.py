"""`sievebench label`: a teacher scores a part of a pool."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_label_verb(verbs: object) -> None:
    """Add `label` to the command line."""
    text = "have a teacher score samples of a pool, to train a scorer on"
    verb: argparse.ArgumentParser = verbs.add_parser("label", help=text)  # type: ignore[attr-defined]
    verb.add_argument("pool", type=Path, help="folder of the pool")
    verb.add_argument("--out", type=Path, required=True, help="label file, .parquet or .jsonl")
    verb.add_argument("--model", required=True, help="what the endpoint calls the teacher")
    verb.add_argument("--endpoint", default="https://api.openai.com/v1", help="any OpenAI-compatible one")
    verb.add_argument("--key-variable", default="OPENAI_API_KEY", help="environment variable of the API key")
    verb.add_argument("--samples", type=int, default=1000, help="how many to label, drawn at random")
    verb.add_argument("--seed", type=int, default=0, help="draws the samples")
    verb.add_argument("--prompts", default="own", help="prompt pack: 'own' or a YAML file")
    verb.add_argument("--max-requests", type=int, help="of this run; 0 makes the file of what is there")
    verb.add_argument("--max-tokens", type=int, help="of this run's questions and replies")
    verb.add_argument("--concurrency", type=int, default=8, help="requests at a time")
    verb.set_defaults(handler=_label)


def _label(options: argparse.Namespace) -> int:
    from selector_zoo.prompts import load_pack

    from harness.labelling import LabelRequest, label_pool, rejects_of
    from harness.labelling_teacher import TeacherSpec
    from harness.pool import open_pool
    from harness.pool_cli import counter

    teacher = TeacherSpec(model=options.model, endpoint=options.endpoint, key_variable=options.key_variable)
    request = LabelRequest(
        pool=open_pool(options.pool),
        teacher=teacher,
        pack=load_pack(options.prompts),
        out=options.out,
        samples=options.samples,
        seed=options.seed,
        max_requests=options.max_requests,
        max_tokens=options.max_tokens,
        concurrency=options.concurrency,
    )
    with counter("label") as progress:
        report = label_pool(request, progress)
    spent = f"{report.requests} requests, {report.tokens} tokens"
    print(f"{options.out}: {report.labelled} labels; {spent}")
    for reason, n in sorted(report.rejects.items()):
        print(f"  without a label: {n} {reason} (see {rejects_of(options.out)})")
    if report.unanswered:
        why = f"stopped by --{report.stopped.replace('_', '-')}" if report.stopped else "no answer"
        print(f"  still to ask: {report.unanswered} ({why}); the same command goes on")
    return 1 if report.unanswered else 0
