"""Labelling: a teacher on the loopback interface, its odd replies, its failures, and a process that is killed."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from selector_zoo.passes.mmssr_answers import normal_styles
from selector_zoo.prompts import CAPABILITIES, STYLES, load_pack

from harness import labelling
from harness.cli import main
from harness.errors import HarnessError
from harness.labelling import LabelRequest, drawn, journal_of, label_pool, rejects_of
from harness.labelling_file import read_labels
from harness.labelling_journal import Journal, Reply
from harness.labelling_reply import NoLabel, parse_reply
from harness.labelling_teacher import TeacherSpec, asked_pause_s, data_url, pause_before
from harness.pool import Pool
from tests.support import png, write_pool

N = 12
GOOD = {c: i % 6 for i, c in enumerate(CAPABILITIES)} | {"styles": ["yes/no", "Comparison"]}
Answering = Callable[[int, dict[str, Any]], tuple[int, str]]


@dataclass
class Server:
    """An endpoint that answers as a function of (number of the request, its body) says: status and content."""

    answer: Answering
    url: str = ""
    seen: list[dict[str, Any]] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    usage: bool = True
    after: tuple[str, str] = ("Retry-After-Ms", "1")
    lock: threading.Lock = field(default_factory=threading.Lock)

    def reply(self, body: dict[str, Any], key: str) -> tuple[int, bytes]:
        with self.lock:
            self.seen.append(body)
            self.keys.add(key)
            number = len(self.seen)
        status, text = self.answer(number, body)
        if status != 200:
            return status, json.dumps({"error": {"message": text}}).encode()
        message = {"role": "assistant", "content": text}
        done: dict[str, Any] = {
            "id": "1", "object": "chat.completion", "created": 0, "model": body["model"],
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
        }  # fmt: skip
        if self.usage:
            done["usage"] = {"prompt_tokens": 90, "completion_tokens": 10, "total_tokens": 100}
        return 200, json.dumps(done).encode()


@pytest.fixture
def serve() -> Iterator[Callable[[Answering], Server]]:
    opened: list[ThreadingHTTPServer] = []

    def start(answer: Answering) -> Server:
        server = Server(answer)

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, data = server.reply(body, self.headers["Authorization"])
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.send_header(*server.after)
                with contextlib.suppress(BrokenPipeError):  # the client of one test is killed
                    self.end_headers()
                    self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=http.serve_forever, daemon=True).start()
        opened.append(http)
        server.url = f"http://127.0.0.1:{http.server_port}/v1"
        return server

    yield start
    for http in opened:
        http.shutdown()
        http.server_close()


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    return write_pool(tmp_path / "pool", N)


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_KEY", "sesame-from-the-environment")
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def request(pool: Pool, server: Server, out: Path, **changes: Any) -> LabelRequest:
    teacher = TeacherSpec(
        model="teacher", endpoint=server.url, key_variable="TEACHER_KEY", retries=2, timeout_s=20
    )
    made = LabelRequest(pool=pool, teacher=teacher, pack=load_pack("own"), out=out, samples=N, concurrency=3)
    return replace(made, **changes)


def good(number: int, body: dict[str, Any]) -> tuple[int, str]:
    return 200, f"```json\n{json.dumps(GOOD)}\n```"


def test_every_sample_gets_its_label(pool: Pool, serve: Any, tmp_path: Path) -> None:
    server = serve(good)
    report = label_pool(request(pool, server, tmp_path / "l.parquet"))
    assert (report.labelled, report.requests, report.tokens, report.unanswered) == (N, N, 100 * N, 0)
    rows = read_labels(tmp_path / "l.parquet")
    assert sorted(rows) == sorted(pool.uids())
    assert rows["s3"] == {"uid": "s3", **{c: GOOD[c] for c in CAPABILITIES}, "styles": "yes/no, comparison"}
    asked = {str(body["messages"][0]["content"][0]["text"]): body for body in server.seen}
    text, body = next((t, b) for t, b in asked.items() if "number 7" in t)
    assert "Question: What is number 7? Answer: It is odd.\nQuestion: Sure? Answer: Yes." in text
    assert all(c in text for c in (*CAPABILITIES, *STYLES))
    assert (body["temperature"], body["model"], len(body["messages"])) == (0.0, "teacher", 1)
    kind, _, data = body["messages"][0]["content"][1]["image_url"]["url"].partition(";base64,")
    assert (kind, base64.b64decode(data)) == ("data:image/png", png(7))
    without = next(b for t, b in asked.items() if "number 4?" in t)
    assert [part["type"] for part in without["messages"][0]["content"]] == ["text"]


def test_what_was_answered_is_not_asked_again(pool: Pool, serve: Any, tmp_path: Path) -> None:
    server, out = serve(good), tmp_path / "l.jsonl"
    first = label_pool(request(pool, server, out, samples=5))
    before = out.read_bytes()
    again = label_pool(request(pool, server, out, samples=5))
    assert (first.requests, again.requests, again.labelled) == (5, 0, 5)
    assert out.read_bytes() == before
    more = label_pool(request(pool, server, out))
    assert (more.requests, more.labelled) == (N - 5, N)
    other = request(pool, server, out)
    changed = label_pool(replace(other, teacher=replace(other.teacher, model="another")))
    assert changed.requests == N  # another teacher is another question


@pytest.mark.parametrize("limit", [{"max_requests": 4}, {"max_tokens": 400}])
def test_a_budget_is_kept_and_the_rest_comes_later(
    pool: Pool, serve: Any, tmp_path: Path, limit: dict[str, int]
) -> None:
    server, out = serve(good), tmp_path / "l.parquet"
    report = label_pool(request(pool, server, out, concurrency=1, **limit))
    assert (len(server.seen), report.labelled, report.unanswered) == (4, 4, N - 4)
    assert report.stopped == next(iter(limit))
    assert len(read_labels(out)) == 4
    rest = label_pool(request(pool, server, out))
    assert (len(server.seen), rest.labelled, rest.stopped) == (N, N, "")


def test_a_budget_of_nothing_makes_the_file_of_what_is_there(pool: Pool, serve: Any, tmp_path: Path) -> None:
    server, out = serve(good), tmp_path / "l.parquet"
    label_pool(request(pool, server, out, samples=3))
    out.unlink()
    report = label_pool(request(pool, server, out, max_requests=0))
    assert (len(server.seen), report.requests, report.labelled, report.unanswered) == (3, 0, 3, N - 3)
    assert len(read_labels(out)) == 3


def test_tokens_cannot_be_limited_where_nobody_counts_them(pool: Pool, serve: Any, tmp_path: Path) -> None:
    server = serve(good)
    server.usage = False
    with pytest.raises(HarnessError, match="how many tokens"):
        label_pool(request(pool, server, tmp_path / "l.parquet", max_tokens=1000))
    assert label_pool(request(pool, server, tmp_path / "l.parquet")).labelled == N


def test_a_teacher_is_told_what_was_wrong_and_asked_again(pool: Pool, serve: Any, tmp_path: Path) -> None:
    def second_time(number: int, body: dict[str, Any]) -> tuple[int, str]:
        return good(number, body) if len(body["messages"]) == 3 else (200, json.dumps(GOOD | {"humanities": 9}))

    server = serve(second_time)
    report = label_pool(request(pool, server, tmp_path / "l.parquet", samples=2))
    assert (report.labelled, report.requests, report.rejects) == (2, 4, {})
    said = next(b["messages"] for b in server.seen if len(b["messages"]) == 3)
    assert [m["role"] for m in said] == ["user", "assistant", "user"]
    assert "'humanities' is 9, no whole number from 0 to 5" in said[2]["content"]


def test_what_cannot_be_read_is_never_a_label(pool: Pool, serve: Any, tmp_path: Path) -> None:
    def stubborn(number: int, body: dict[str, Any]) -> tuple[int, str]:
        text = body["messages"][0]["content"][0]["text"]
        if "number 1?" in text:
            return 400, "content filter"
        return (200, "I would rather not.") if "number 2?" in text else good(number, body)

    server, out = serve(stubborn), tmp_path / "l.parquet"
    report = label_pool(request(pool, server, out))
    assert report.labelled == N - 2
    assert report.rejects == {"no_json": 1, "refused": 1}
    assert "status 400: content filter" in rejects_of(out).read_text()
    assert report.requests == N - 2 + 1 + 3
    assert not {"s1", "s2"} & set(read_labels(out))
    assert [json.loads(line)["uid"] for line in rejects_of(out).read_text().splitlines()] == ["s1", "s2"]
    again = label_pool(request(pool, server, out))
    assert (again.requests, again.rejects) == (0, report.rejects)  # nor is it paid for a second time


def test_a_picture_that_cannot_be_read_is_a_reject(
    pool: Pool, serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Pool.image_bytes
    monkeypatch.setattr(Pool, "image_bytes", lambda self, k: b"gone" if k == "0.png" else whole(self, k))
    report = label_pool(request(pool, serve(good), tmp_path / "l.parquet"))
    assert (report.labelled, report.rejects) == (N - 1, {"unreadable_image": 1})


def test_a_busy_teacher_is_waited_for(pool: Pool, serve: Any, tmp_path: Path) -> None:
    server = serve(
        lambda n, body: (429, "slow down") if n in (1, 3) else (503, "busy") if n == 5 else good(n, body)
    )
    report = label_pool(request(pool, server, tmp_path / "l.parquet", concurrency=1, samples=4))
    assert (report.labelled, report.requests, len(server.seen)) == (4, 7, 7)


@pytest.mark.parametrize("busy", [lambda n: True, lambda n: n % 3 > 0])
def test_every_retry_is_a_request_of_the_budget(
    pool: Pool, serve: Any, tmp_path: Path, busy: Callable[[int], bool]
) -> None:
    server = serve(lambda n, body: (429, "slow down") if busy(n) else good(n, body))
    made = request(pool, server, tmp_path / "l.parquet", max_requests=5, concurrency=4)
    report = label_pool(replace(made, teacher=replace(made.teacher, retries=5)))
    assert (len(server.seen), report.requests, report.stopped) == (5, 5, "max_requests")
    assert report.labelled == sum(not busy(n) for n in range(1, 6))
    assert report.labelled + report.unanswered == N


def test_requests_that_reach_nobody_count_too(pool: Pool, serve: Any, tmp_path: Path) -> None:
    made = request(pool, serve(good), tmp_path / "l.parquet", max_requests=3)
    nobody = replace(made.teacher, endpoint="http://127.0.0.1:9/v1", pause_s=0.001)
    report = label_pool(replace(made, teacher=nobody))
    assert (report.requests, report.unanswered, report.stopped) == (3, N, "max_requests")


def test_pauses_grow_unless_the_server_says_how_long() -> None:
    spec = TeacherSpec(model="m")
    pauses = [pause_before(retry, spec, 0.0) for retry in (1, 2, 3, 9)]
    assert all(0.75 * p <= pause <= p for pause, p in zip(pauses, (0.5, 1, 2, 8), strict=True))
    assert pause_before(1, spec, 31.0) == 31.0
    assert asked_pause_s({"retry-after": "7"}) == 7.0
    assert asked_pause_s({"retry-after": "7", "retry-after-ms": "20"}) == 0.02
    for nothing in ("", "soon", "nan", "-3", "Wed, 21 Oct 2015 07:28:00 GMT"):
        assert asked_pause_s({"retry-after": nothing}) == 0.0
    assert asked_pause_s({"retry-after": "Wed, 21 Oct 2999 07:28:00 GMT"}) > 1e9


def test_a_server_that_asks_for_long_pauses_is_left_alone(pool: Pool, serve: Any, tmp_path: Path) -> None:
    server = serve(lambda n, body: (429, "tomorrow"))
    server.after = ("Retry-After", "86400")
    report = label_pool(request(pool, server, tmp_path / "l.parquet", samples=4))
    assert (report.requests, report.unanswered) == (4, 4)


def test_an_error_does_not_wait_for_pauses(pool: Pool, serve: Any, tmp_path: Path) -> None:
    server = serve(lambda n, body: (429, "wait") if n == 1 else (401, "no"))
    server.after = ("Retry-After", "100")
    began = time.monotonic()
    with pytest.raises(HarnessError, match="status 401"):
        label_pool(request(pool, server, tmp_path / "l.parquet", concurrency=2))
    assert time.monotonic() - began < 50


@pytest.mark.parametrize(("samples", "which"), [(N, "the first 10 questions"), (3, r"every question .*\(3\)")])
def test_a_server_that_takes_no_question_ends_the_run_and_is_asked_again(
    pool: Pool, serve: Any, tmp_path: Path, samples: int, which: str
) -> None:
    server, out = serve(lambda n, body: (400, f"no 'max_tokens' {server.keys}")), tmp_path / "l.parquet"
    with pytest.raises(HarnessError, match=f"refused {which}.*status 400: no 'max_tokens'") as e:
        label_pool(request(pool, server, out, samples=samples, concurrency=1))
    assert "sesame" not in str(e.value)
    assert len(server.seen) in (min(samples, 10), min(samples, 11))  # one may be under way
    assert (out.exists(), journal_of(out).read_bytes()) == (False, b"")
    server.answer = good
    assert label_pool(request(pool, server, out)).labelled == N


def test_a_server_that_no_longer_takes_questions_ends_the_run_too(pool: Pool, serve: Any, tmp_path: Path) -> None:
    server, out = serve(good), tmp_path / "l.parquet"
    label_pool(request(pool, server, out, samples=2))
    server.answer = lambda n, body: (413, "too large")
    with pytest.raises(HarnessError, match=r"the first 10 questions.*status 413: too large"):
        label_pool(request(pool, server, out))
    server.answer = good
    assert label_pool(request(pool, server, out)).labelled == N


def test_refusals_are_about_samples_where_another_is_answered_later(
    pool: Pool, serve: Any, tmp_path: Path
) -> None:
    refused = threading.Semaphore(0)

    def slowly(number: int, body: dict[str, Any]) -> tuple[int, str]:
        if number == 2:  # one of the first ten, and the last that is answered
            assert all(refused.acquire(timeout=30) for _ in range(N - 1))
            return good(number, body)
        refused.release()
        return 422, "I do not like it."

    server, out = serve(slowly), tmp_path / "l.parquet"
    report = label_pool(request(pool, server, out))
    assert (report.labelled, report.rejects, report.requests) == (1, {"refused": N - 1}, N)
    assert label_pool(request(pool, server, out)).requests == 0


def test_a_refusal_alone_in_its_run_is_believed_if_others_were_answered_before(
    pool: Pool, serve: Any, tmp_path: Path
) -> None:
    server, out = serve(good), tmp_path / "l.parquet"
    label_pool(request(pool, server, out, samples=N - 1))
    server.answer = lambda n, body: (400, "content filter")
    report = label_pool(request(pool, server, out))
    assert (report.labelled, report.rejects, report.requests) == (N - 1, {"refused": 1}, 1)
    assert label_pool(request(pool, server, out)).requests == 0


def test_a_teacher_out_of_reach_ends_the_run_and_nothing_is_lost(
    pool: Pool, serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labelling, "GIVE_UP", 2)
    server, out = serve(lambda n, body: good(n, body) if n <= 3 else (500, "down")), tmp_path / "l.parquet"
    with pytest.raises(HarnessError, match="does not answer"):
        label_pool(request(pool, server, out, concurrency=1))
    assert not out.exists()
    server.answer = good
    report = label_pool(request(pool, server, out))
    assert (report.labelled, report.requests) == (N, N - 3)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_model_is_said_at_once(pool: Pool, serve: Any, tmp_path: Path, status: int) -> None:
    server = serve(lambda n, body: (status, "no"))
    with pytest.raises(HarnessError, match=f"status {status}"):
        label_pool(request(pool, server, tmp_path / "l.parquet", concurrency=1))
    assert len(server.seen) <= 2


def test_the_key_comes_from_the_environment_and_goes_nowhere(
    pool: Pool, serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, out = serve(good), tmp_path / "l.jsonl"
    label_pool(request(pool, server, out, samples=2))
    assert server.keys == {"Bearer sesame-from-the-environment"}
    assert not any(b"sesame" in f.read_bytes() for f in tmp_path.rglob("*") if f.is_file())
    monkeypatch.delenv("TEACHER_KEY")
    with pytest.raises(HarnessError, match="TEACHER_KEY is not set"):
        label_pool(request(pool, server, out))


KILLED = """
import sys
from pathlib import Path
from selector_zoo.prompts import load_pack
from harness.labelling import LabelRequest, label_pool
from harness.labelling_teacher import TeacherSpec
from harness.pool import open_pool
teacher = TeacherSpec(model="teacher", endpoint=sys.argv[1], key_variable="TEACHER_KEY")
label_pool(LabelRequest(pool=open_pool(sys.argv[2]), teacher=teacher, pack=load_pack("own"), out=Path(sys.argv[3]),
                        samples=12, concurrency=1))
"""


def test_a_killed_labelling_goes_on_where_it_was(pool: Pool, serve: Any, tmp_path: Path) -> None:
    reached = threading.Event()

    def slow(number: int, body: dict[str, Any]) -> tuple[int, str]:
        if number > 5:
            reached.set()
            time.sleep(1)
        return good(number, body)

    server, out = serve(slow), tmp_path / "l.parquet"
    given = [sys.executable, "-c", KILLED, server.url, pool.path, str(out)]
    with subprocess.Popen(given, env=os.environ.copy()) as process:
        assert reached.wait(60)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    journal = journal_of(out)
    assert journal.read_bytes().count(b"\n") == 5
    with journal.open("ab") as f:
        f.write(b'{"key": "half a li')  # what a kill in the middle of a write leaves
    server.answer = good
    asked = len(server.seen)
    report = label_pool(request(pool, server, out))
    assert (report.labelled, len(server.seen) - asked) == (N, N - 5)
    assert len(journal.read_text().split("\n")) == N + 1


def test_two_processes_do_not_write_one_journal(tmp_path: Path) -> None:
    file = tmp_path / "a.journal.jsonl"
    with Journal.open(file) as journal:
        journal.add(Reply(key="k", uid="a", text="line\u2028separator"))
        with pytest.raises(HarnessError, match="another process"), Journal.open(file):
            pass
    with Journal.open(file) as journal:
        assert journal.of("k") == [Reply(key="k", uid="a", text="line\u2028separator")]
        assert journal.of("other") == []
    file.write_text('{"key": 1}\n')
    with pytest.raises(HarnessError, match="line 1 of"), Journal.open(file):
        pass


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"humanities": 6}, "bad_score"),
        ({"humanities": 2.5}, "bad_score"),
        ({"humanities": "3"}, "bad_score"),
        ({"humanities": True}, "bad_score"),
        ({"humanities": None}, "missing_score"),
        ({"styles": []}, "no_styles"),
        ({"styles": [1]}, "no_styles"),
        ({"styles": None}, "no_styles"),
        ({"styles": ["haiku"]}, "unknown_style"),
    ],
)
def test_a_reply_is_a_label_or_a_reason(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(NoLabel) as e:
        parse_reply(json.dumps(GOOD | change))
    assert e.value.reason == reason


def test_replies_may_be_wrapped_but_not_vague() -> None:
    said = {k.upper(): v for k, v in GOOD.items()}
    assert parse_reply(f"Sure! {json.dumps(said)} Anything else?")["styles"] == "yes/no, comparison"
    text = json.dumps(GOOD | {"styles": "chain-of-thought (step-by-step), coordinate"})
    assert parse_reply(text)["styles"] == "chain-of-thought, coordinate"
    for broken in ("", "five", '{"humanities": ', "[1, 2]"):
        with pytest.raises(NoLabel) as e:
            parse_reply(broken)
        assert e.value.reason == "no_json"
    assert normal_styles(["  YES/NO "]) == ("yes/no",)


def test_samples_are_drawn_by_uid_and_nested(tmp_path: Path) -> None:
    straight = write_pool(tmp_path / "a", N)
    turned = write_pool(tmp_path / "b", N, order=list(reversed(range(N))))
    chosen = [{p.record(i).uid for i in drawn(p, 5, 1)} for p in (straight, turned)]
    assert chosen[0] == chosen[1]
    assert set(drawn(straight, 3, 1)) < set(drawn(straight, 5, 1))
    assert drawn(straight, 5, 1) != drawn(straight, 5, 2)


def test_pictures_are_sent_in_a_format_that_endpoints_know() -> None:
    image, out = Image.new("RGB", (4, 3), (200, 10, 10)), io.BytesIO()
    image.save(out, format="BMP")
    kind, _, data = data_url(out.getvalue()).partition(";base64,")
    assert kind == "data:image/png"
    assert Image.open(io.BytesIO(base64.b64decode(data))).getpixel((0, 0)) == (200, 10, 10)
    with pytest.raises(OSError, match="cannot identify"):
        data_url(b"no picture")


def test_the_verb_says_what_was_done_and_what_is_left(
    pool: Pool, serve: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server, out = serve(good), tmp_path / "l.parquet"
    given = ["label", pool.path, "--out", str(out), "--model", "m", "--endpoint", server.url, "--samples", "6",
             "--key-variable", "TEACHER_KEY", "--concurrency", "1"]  # fmt: skip
    assert main([*given, "--max-requests", "2"]) == 1
    said = capsys.readouterr().out
    assert "2 labels; 2 requests, 200 tokens" in said
    assert "still to ask: 4 (stopped by --max-requests)" in said
    assert main(given) == 0
    assert "6 labels; 4 requests, 400 tokens" in capsys.readouterr().out
    assert main([*given, "--prompts", str(tmp_path / "none.yaml")]) == 2
    assert "there is no prompt pack" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [{"samples": 0}, {"concurrency": 0}, {"max_tokens": -1}])
def test_a_request_that_means_nothing_is_refused(pool: Pool, serve: Any, tmp_path: Path, wrong: Any) -> None:
    with pytest.raises(HarnessError, match="labelling: "):
        request(pool, serve(good), tmp_path / "l.parquet", **wrong)
