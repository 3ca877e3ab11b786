"""Prompt packs: ours, the user's, and those fetched from where they were published."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from selector_zoo import prompts
from selector_zoo.passes import llava_chat
from selector_zoo.prompts import (
    CAPABILITIES,
    OFFICIAL,
    SLOTS,
    STYLES,
    PromptPack,
    fill,
    load_pack,
    text_digest,
    write_pack,
)

from harness import published
from harness.cli import main
from harness.errors import HarnessError
from harness.published import ORIGINS, fetch_pack, spelled

SOURCE = """
import os
marks = [" ", "\\n"]
kinds = ["plain", "purl"]
kinds = f"<{'; '.join(kinds)}>"
ask = "Kinds:" + marks[0] + kinds + marks[1] + "Which? "
shell = "[{}]"

class Words:
    @property
    def rate(self):
        rate = ("How good is {this} "
                "knitting?")
        return rate

def later(kind):
    if kind:
        return shell.format("a <sent>")
    return os.environ.get("KIND") + marks[7] + kinds.upper()
"""
WORDS = {"rate": "How good is {this} knitting?", "kinds": "Kinds: <plain; purl>\nWhich? ", "shell": "[a <sent>]"}


@pytest.fixture
def serve() -> Iterator[Callable[[bytes], tuple[str, list[str]]]]:
    """A host that answers every path with the same bytes, and remembers the paths."""
    opened: list[ThreadingHTTPServer] = []

    def start(data: bytes) -> tuple[str, list[str]]:
        paths: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                paths.append(self.path)
                self.send_response(200 if data else 404)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=http.serve_forever, daemon=True).start()
        opened.append(http)
        return f"http://127.0.0.1:{http.server_port}", paths

    yield start
    for http in opened:
        http.shutdown()
        http.server_close()


@pytest.fixture
def knitting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A project whose prompts are those of SOURCE."""
    known = {name: text_digest(text) for name, text in WORDS.items()}
    monkeypatch.setattr(prompts, "OFFICIAL", {**OFFICIAL, "knitting": known})
    monkeypatch.setattr(published, "OFFICIAL", {**OFFICIAL, "knitting": known})
    origin = replace(ORIGINS["mmssr"], repository="a/knitting", commit="c0ffee", path="words.py")
    monkeypatch.setattr(published, "ORIGINS", {**ORIGINS, "knitting": origin})


@pytest.mark.usefixtures("knitting")
def test_texts_are_read_from_source_and_known_by_their_digest(serve: Any, tmp_path: Path) -> None:
    host, paths = serve(SOURCE.encode())
    pack = fetch_pack("knitting", host)
    assert paths == ["/a/knitting/c0ffee/words.py"]
    assert dict(pack.templates) == WORDS
    assert (pack.official, pack.licence) == ("knitting", "Apache-2.0")
    assert pack.source.endswith("a/knitting/blob/c0ffee/words.py")
    write_pack(pack, tmp_path / "deep" / "pack.yaml")
    again = load_pack(str(tmp_path / "deep" / "pack.yaml"))
    assert again == pack
    assert replace(again, templates=WORDS | {"rate": "How bad?"}).official == ""


@pytest.mark.usefixtures("knitting")
@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (SOURCE.replace("good", "bad").encode(), "does not have the published template 'rate'"),
        (b"<html>not found</html>", "no Python file"),
        (b"", "cannot be fetched"),
        (b"#" * (published.LARGEST + 1), "larger than expected"),
    ],
)
def test_what_is_not_what_was_published_is_refused(serve: Any, data: bytes, complaint: str) -> None:
    with pytest.raises(HarnessError, match=complaint):
        fetch_pack("knitting", serve(data)[0])


def test_an_unknown_project_and_no_network(serve: Any) -> None:
    with pytest.raises(HarnessError, match="Did you mean 'mmssr'"):
        fetch_pack("mmsr")
    with pytest.raises(HarnessError, match="cannot be fetched"):
        fetch_pack("mmssr", "http://127.0.0.1:9")


@pytest.mark.usefixtures("knitting")
def test_the_verb_writes_a_pack(
    serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    host, _ = serve(SOURCE.encode())
    monkeypatch.chdir(tmp_path)
    assert main(["published", "prompts", "knitting", "--host", host]) == 0
    assert "prompts/knitting.yaml: kinds, rate, shell of https://" in capsys.readouterr().out
    assert load_pack("prompts/knitting.yaml").official == "knitting"
    assert main(["published", "prompts", "nothing", "--host", host]) == 2


def test_nothing_of_a_source_is_run(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    texts = set(spelled(f"open({str(mark)!r}, 'w').write('x')\na = 'b' + unknown\nc = a + 'd'\ne = 'f' 'g'\n"))
    assert not mark.exists()
    assert {"x", "b", "d", "fg"} <= texts
    assert "bd" not in texts
    assert "second" in set(spelled("a = 'first'\na = 'sec' + 'ond'\n"))
    assert "firstly" not in set(spelled("a = 'first'\na = f()\nb = a + 'ly'\n"))


def test_every_published_pack_has_an_origin() -> None:
    assert set(ORIGINS) == set(OFFICIAL)
    assert all(len(o.commit) == 40 for o in ORIGINS.values())
    assert all(len(sha) == 64 for known in OFFICIAL.values() for sha in known.values())


def test_the_published_words_are_known_by_their_digests() -> None:
    """As read from the projects that published them; a digest that drifts would call other words official."""
    known = {f"{name}/{part}": sha for name, parts in OFFICIAL.items() for part, sha in parts.items()}
    assert known["mmssr/score"] == "33e4af5c31384e85a4cff30f710922e16ba99f5df661a9c437ecc849738551d4"
    assert known["mmssr/styles"] == "670d1cd4c8d01952a743c7956289fe46f62e0118c5b64c129e7f85da7d2196d2"
    assert known["deita/complexity"] == "7d3b818c0530b64aee6c2b422157fc0cc2fc4f05bc00090481f00ad812ab23f7"
    assert known["deita/quality"] == "5f9fec526d8855b581327d0cfe2346b74de9f2e439b84e3d560056841acef265"
    assert known["vicuna/system"] == text_digest(llava_chat.SYSTEM)


@pytest.mark.usefixtures("knitting")
def test_a_layout_that_is_code_comes_with_the_texts(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "LAYOUTS", {"knitting": {"conversation": "{instruction} {output}"}})
    pack = fetch_pack("knitting", serve(SOURCE.encode())[0])
    assert dict(pack.templates) == WORDS | {"conversation": "{instruction} {output}"}
    assert pack.official == "knitting"


def test_our_own_pack_is_whole_and_not_the_published_one() -> None:
    own = load_pack("own")
    assert set(own.templates) == {"score", "styles", "label", "complexity", "quality"}
    assert own.official == ""
    for text in (own.template("styles"), own.template("label").replace("\n", " ")):
        assert all(style in text for style in STYLES)
    assert all(f"- {capability}: " in own.template("label") for capability in CAPABILITIES)
    for name, text in own.templates.items():
        assert all(f"{{{slot}}}" in text for slot in SLOTS[name])
    assert own.digest == replace(own, name="other", source="elsewhere").digest
    assert own.digest != replace(own, templates={**own.templates, "styles": "Which?"}).digest


def test_slots_are_filled_once_and_braces_stay() -> None:
    assert fill("{a} and {b}", a="{b}", b="2") == "{b} and 2"
    assert fill('Rate {a}: {"k": 1}', a="x {a}") == 'Rate x {a}: {"k": 1}'
    assert fill("none", a="x") == fill("none") == "none"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("name: x\n", "exactly the keys"),
        ("[1, 2]\n", "exactly the keys"),
        ("a: [\n", "is not YAML"),
        ("name: x\nversion: 1\nsource: s\nlicence: l\ntemplates: {score: no slot}\n", "lacks {cap_keyword}"),
        ("name: x\nversion: 1\nsource: s\nlicence: l\ntemplates: {}\n", "at least one"),
        ("name: x\nversion: 1\nsource: s\nlicence: l\ntemplates: {a: 3}\n", "every template is a text"),
    ],
)
def test_a_file_that_is_no_pack_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "pack.yaml").write_text(text)
    with pytest.raises(HarnessError, match=complaint):
        load_pack(str(tmp_path / "pack.yaml"))


def test_a_missing_pack_or_template_is_named() -> None:
    with pytest.raises(HarnessError, match="no prompt pack none"):
        load_pack("none")
    pack = PromptPack(name="x", version="1", source="s", licence="l", templates={"a": "b"})
    with pytest.raises(HarnessError, match="no template 'styles'; it has a"):
        pack.template("styles")
