"""Judging stored answers: by a rule, and by a judge model behind a real HTTP endpoint."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from eval_official import Case, official_answers, write_official
from eval_support import spec_of, tiny_checkpoint, write_task

from harness.benchmarks import Benchmark
from harness.errors import HarnessError
from harness.evaluation.engine import run_task
from harness.evaluation.judge import judge, load_rule
from harness.evaluation.results import SAMPLES, SCORE, Row, read_rows, write_rows
from harness.evaluation.session import EvalSession


def by_length(answer: str, target: str) -> float | None:
    """A rule for the tests: long answers are right, and some it cannot judge."""
    return None if "unsure" in answer else float(len(answer) > len(target))


def row(doc_id: int, answer: str, task: str = "t") -> Row:
    return Row(
        doc_id=doc_id,
        task=task,
        cluster=str(doc_id),
        group="",
        stratum="",
        input=f"{doc_id:064x}",
        target="abc",
        answer=answer,
        score=None,
        parsed=True,
        output_tokens=2,
        truncated=False,
    )


def rule_benchmark(name: str = "by_length") -> Benchmark:
    return Benchmark(
        name="free", title="Free", task="t", metrics=("hit,none",), judge=f"rules:test_eval_judge:{name}"
    )


def test_a_rule_scores_stored_answers(tmp_path: Path) -> None:
    write_rows(tmp_path / SAMPLES, [row(0, "a longer answer"), row(1, "ab"), row(2, "another one")])
    bench = rule_benchmark()
    score = judge(spec_of(bench), bench, tmp_path, tmp_path / "out", tmp_path / "p")
    assert score.value == pytest.approx(200 / 3)
    assert [r.score for r in read_rows(tmp_path / "out" / SAMPLES)] == [1, 0, 1]
    assert json.loads((tmp_path / "out" / SCORE).read_text())["judge"] == bench.judge


def test_what_is_not_judged_is_not_zero(tmp_path: Path) -> None:
    write_rows(tmp_path / SAMPLES, [row(0, "a longer answer"), row(1, "unsure")])
    bench = rule_benchmark()
    with pytest.raises(HarnessError, match="1 of 2 answers could not be judged"):
        judge(spec_of(bench), bench, tmp_path, tmp_path / "out", tmp_path / "p")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name", ["no_such_module:f", "test_eval_judge:nothing", "json", "test_eval_judge:SAMPLES"]
)
def test_rules_that_cannot_be_loaded_are_named(name: str) -> None:
    with pytest.raises(HarnessError, match="rules:MODULE:FUNCTION"):
        load_rule(name)


def test_a_session_answers_and_leaves_the_score_to_the_judge(tmp_path: Path) -> None:
    bench = replace(write_task(tmp_path / "task"), judge="rules:test_eval_judge:by_length")
    session = EvalSession(
        tiny_checkpoint(), device="cpu", dtype="float32", attention="sdpa", batch_size=4, threads=1
    )
    assert session.run(spec_of(bench), bench, tmp_path / "answers", tmp_path / "p") is None
    stored = read_rows(tmp_path / "answers" / SAMPLES)
    assert all(r.score is None and r.answer for r in stored)
    assert [r.cluster for r in stored] == [str(i // 2) for i in range(12)]
    facts = json.loads((tmp_path / "answers" / SCORE).read_text())
    assert "value" not in facts
    score = judge(spec_of(bench), bench, tmp_path / "answers", tmp_path / "out", tmp_path / "p")
    scored = read_rows(tmp_path / "out" / SAMPLES)
    assert [replace(r, score=None) for r in scored] == stored
    assert score.value == pytest.approx(100 * sum(r.score or 0 for r in scored) / 12)


# --- a judge model -----------------------------------------------------------------------------------------------

MMVET = Case(
    file="mmvet/mmvet.yaml",
    split="test",
    docs=[
        {"question_id": f"v{i}", "question": f"What is {i}?", "answer": str(i), "capability": "rec,ocr"}
        for i in range(4)
    ],
    answers=["surely 0", "partly 1", "wrong", "surely 3"],
    scores=[1, 0.5, 0, 1],
    value=62.5,
)


def _vista(i: int, answer: str, kind: str) -> dict[str, object]:
    choices = ["red", "green"] if kind == "multi_choice" else []
    facts = {"split": "testmini", "language": "english", "source": "made", "category": "vqa"}
    return {
        "pid": str(i),
        "question": "Which?",
        "query": f"Hint.\nQuestion {i}?",
        "choices": choices,
        "answer": answer,
        "question_type": kind,
        "answer_type": "text" if choices else "integer",
        "precision": 0,
        "unit": "",
        "metadata": {**facts, "task": "vqa", "context": "chart", "grade": "none", "skills": ["count"]},
    }


MATHVISTA = Case(
    file="mathvista/mathvista_testmini_format.yaml",
    split="testmini",
    docs=[
        _vista(0, "red", "multi_choice"),
        _vista(1, "green", "multi_choice"),
        _vista(2, "12", "free_form"),
        _vista(3, "7", "free_form"),
        _vista(4, "red", "multi_choice"),
        _vista(5, "green", "multi_choice"),
    ],
    # "B" and the sentences go to the judge, which names the option or the number it finds
    answers=["red", "B", "It is 12", "8", "B", "It is (B)"],
    scores=[1, 1, 1, 0, 0, 1],
    value=66.67,
)


def _verdict(prompt: str) -> str:
    """What the stub judge says: MMVet asks for a correctness, MathVista for the extracted answer."""
    last = prompt.rstrip().splitlines()[-1]
    if "|" in last:
        said = last.split("|")[-2]
        return "" if "silence" in said else "1.0" if "surely" in said else "0.5" if "partly" in said else "0.0"
    answer = prompt.rsplit("Extracted answer:", 1)[0].strip().splitlines()[-1]
    return answer.split()[-1].strip("()")


class _Judge(BaseHTTPRequestHandler):
    requests: list[dict[str, object]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).requests.append(body)
        message = {"role": "assistant", "content": _verdict(body["messages"][-1]["content"])}
        reply = json.dumps({"model": body["model"], "choices": [{"message": message}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *args: object) -> None:
        """Stay silent."""


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, object]]]:
    """The requests a judge on this machine receives."""
    handler = type("Judge", (_Judge,), {"requests": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("LLM_JUDGE_URL", f"http://127.0.0.1:{server.server_port}/v1/chat/completions")
    yield handler.requests
    server.shutdown()
    server.server_close()


def stored(name: str, case: Case, folder: Path) -> Benchmark:
    """A judged benchmark with its answers in `folder/answers`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "answers").mkdir()
    answers = official_answers(name, case)
    write_rows(folder / "answers" / SAMPLES, [row(a.doc_id, a.text, a.task) for a in answers])
    return replace(write_official(name, case, folder / "task"), judge="local:judge-1")


@pytest.mark.parametrize(("name", "case"), [("mmvet", MMVET), ("mathvista", MATHVISTA)])
def test_official_scorers_ask_the_judge_once(
    name: str, case: Case, tmp_path: Path, requests: list[dict[str, object]]
) -> None:
    bench = stored(name, case, tmp_path)
    for attempt in ("first", "second"):
        score = judge(spec_of(bench), bench, tmp_path / "answers", tmp_path / attempt, tmp_path / "p")
        assert score.value == pytest.approx(case.value)
        assert [r.score for r in read_rows(tmp_path / attempt / SAMPLES)] == pytest.approx(list(case.scores))
    assert {r["model"] for r in requests} == {"judge-1"}
    assert len(requests) == 4, "the second attempt reads the kept replies"


def test_a_judge_without_words_gives_no_score(tmp_path: Path, requests: list[dict[str, object]]) -> None:
    bench = stored("mmvet", replace(MMVET, answers=["surely 0", "silence", "wrong", "surely 3"]), tmp_path)
    with pytest.raises(HarnessError, match="1 of 4 answers could not be judged"):
        judge(spec_of(bench), bench, tmp_path / "answers", tmp_path / "out", tmp_path / "p")
    assert not (tmp_path / "out").exists()
    asked = len(requests)
    with pytest.raises(HarnessError, match="1 of 4"):
        judge(spec_of(bench), bench, tmp_path / "answers", tmp_path / "out", tmp_path / "p")
    assert {json.dumps(r["messages"])[-60:] for r in requests[asked:]} < {
        json.dumps(r["messages"])[-60:] for r in requests[:asked]
    }, "only the silent one is asked again"


def test_a_judge_that_is_down_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.evaluation import judge_server

    bench = stored("mmvet", MMVET, tmp_path)

    def down(messages: object, config: object) -> str:
        raise ConnectionError("connection refused")

    def client(name: str, cache: Path) -> judge_server.CachedJudge:
        return judge_server.CachedJudge(model=name, reply=down, cache=cache)

    monkeypatch.setattr(judge_server, "lmms_eval_judge", client)
    with pytest.raises(HarnessError, match="is not judged: judge local:judge-1: ConnectionError"):
        judge(spec_of(bench), bench, tmp_path / "answers", tmp_path / "out", tmp_path / "p")


def test_a_benchmark_that_names_no_judge_may_not_ask_one(tmp_path: Path) -> None:
    from harness.evaluation.judge_server import JudgeUnavailable
    from harness.evaluation.replay import SieveReplay

    bench = write_official("mmvet", MMVET, tmp_path / "task")
    model = SieveReplay.of(official_answers("mmvet", MMVET))
    with pytest.raises(JudgeUnavailable, match="its benchmark names none"):
        run_task(model, spec_of(bench), tmp_path / "engine")


def test_judges_are_named_and_need_their_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.evaluation.judge_server import lmms_eval_judge

    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(HarnessError, match="set OPENAI_API_KEY"):
        lmms_eval_judge("openai", tmp_path / "c.jsonl")
    with pytest.raises(HarnessError, match=r"judge 'opnai' is not known.*Did you mean 'openai'"):
        lmms_eval_judge("opnai:gpt", tmp_path / "c.jsonl")


def test_kept_replies_survive_a_torn_line(tmp_path: Path) -> None:
    from lmms_eval.llm_judge import ServerConfig

    from harness.evaluation.judge_server import CachedJudge

    asked: list[object] = []

    def reply(messages: object, config: object) -> str:
        asked.append(messages)
        return f"verdict {len(asked)}"

    path, config = tmp_path / "judge.jsonl", ServerConfig(model_name="x")
    first = CachedJudge(model="m", reply=reply, cache=path)
    assert [first.ask([{"role": "user", "content": c}], config) for c in "ab"] == ["verdict 1", "verdict 2"]
    path.write_text(path.read_text()[:-5])
    again = CachedJudge(model="m", reply=reply, cache=path)
    assert [again.ask([{"role": "user", "content": c}], config) for c in "ab"] == ["verdict 1", "verdict 3"]
    other = CachedJudge(model="another", reply=reply, cache=path)
    assert other.ask([{"role": "user", "content": "a"}], config) == "verdict 4"
