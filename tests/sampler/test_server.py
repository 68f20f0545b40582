"""The sampler that is a server: steps, failures and refusals against a scripted one, numbers against llama-server."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
import shutil
import socket
import subprocess
import time
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import httpx2
import numpy as np
import pytest
from pydantic import ValidationError

from genius_lite.data.vocabulary import Vocabulary
from genius_lite.errors import UserError
from genius_lite.recipe import Server
from genius_lite.records import Completion
from genius_lite.sampler import server
from genius_lite.sampler.client import QueryFailedError, open_sampler
from genius_lite.sampler.messages import EngineSettings, Sampling
from genius_lite.sampler.server import open_server_sampler
from genius_lite.sampler.server_key import HOLDER, KEY, is_open, key_for
from genius_lite.sampler.tree import Node
from tests.support.http import CUT, HIDDEN, FakeServer, Item, Status

ROOT = Node(None, [257, 72, 105, 258], (0, 1, "q"))
SAMPLING = Sampling(0.8, top_k=50, top_p=0.9, min_p=0.01)
END = 258
LETTERS: list[Item] = [(97 + i % 26, -0.5) for i in range(40)]


def _tokens(text: str) -> list[Item]:
    return [(byte, -0.25) for byte in text.encode()]


@pytest.fixture(autouse=True)
def _waits_little(monkeypatch):
    monkeypatch.setattr(server, "_LONGEST_WAIT", 0.001)


@asynccontextmanager
async def _sampler(fake: FakeServer, gguf: Path, **settings):
    async with fake.listening():
        cfg = Server(url=fake.url, **settings)
        with Vocabulary.open(gguf) as vocabulary:
            async with open_server_sampler(cfg, vocabulary, SAMPLING, [1, 2, 3]) as sampler:
                yield sampler


def _sample(fake: FakeServer, gguf: Path, *, n: int = 1, until="step", limit: int = 30, **settings) -> list[Completion]:
    async def scenario():
        async with _sampler(fake, gguf, **settings) as sampler:
            nodes = await asyncio.gather(*sampler.extend(ROOT, n, until=until, limit=limit))
            assert all(node.parent is ROOT for node in nodes)
            return [node.completion for node in nodes]

    return asyncio.run(scenario())


@pytest.mark.parametrize(
    ("sent", "until", "limit", "kept", "finish"),
    [
        ("ab\ncd", "step", 30, "ab\n", "step"),
        ("\n \nab\ncd", "step", 30, "\n \nab\n", "step"),
        ("ab\ncd", "end", 4, "ab\nc", "length"),
        ("abcd", "step", 2, "ab", "length"),
    ],
)
def test_a_completion_ends_where_the_engine_would_end_it(tiny_llama, sent, until, limit, kept, finish):
    fake = FakeServer(lambda body, number: _tokens(sent))
    (completion,) = _sample(fake, tiny_llama, until=until, limit=limit)
    assert completion == Completion(list(kept.encode()), [-0.25] * len(kept), finish)


def test_an_end_token_ends_it_and_belongs_to_it(tiny_llama):
    fake = FakeServer(lambda body, number: [*_tokens("ab"), (END, -1.0)], finish="stop")
    (completion,) = _sample(fake, tiny_llama)
    assert completion == Completion([97, 98, END], [-0.25, -0.25, -1.0], "end")


def test_steps_are_the_engines_own(tiny_llama, tmp_path):
    """What the engine sampled is streamed with more behind it, and cut at the same token."""

    async def engine():
        settings = EngineSettings(slots=8, context=256, threads=1)
        async with open_sampler(tiny_llama, settings, Sampling(1.5), tmp_path / "log") as sampler:
            nodes = await asyncio.gather(*sampler.extend(ROOT, 16, until="step", limit=120))
            return [node.completion for node in nodes]

    sampled = asyncio.run(engine())
    assert {c.finish for c in sampled} >= {"step"}
    seeds = [seed % (2**31 - 1) for seed in ROOT.seeds("step", 16)]

    def answer(body, number) -> list[Item]:
        completion = sampled[seeds.index(body["seed"])]
        more = [] if completion.finish == "length" else LETTERS
        return [*zip(completion.tokens, completion.logprobs, strict=True), *more]

    assert _sample(FakeServer(answer), tiny_llama, n=16, limit=120) == sampled


def test_what_is_asked_for(tiny_llama):
    fake = FakeServer(lambda body, number: _tokens("a\n"))
    _sample(fake, tiny_llama, n=2, in_flight=1)
    first, second = fake.bodies
    assert first["prompt"] == ROOT.tokens
    assert (first["model"], first["max_tokens"], first["stream"], first["ignore_eos"]) == ("m", 30, True, False)
    assert (first["temperature"], first["top_k"], first["top_p"], first["min_p"]) == (0.8, 50, 0.9, 0.01)
    assert first["samplers"] == ["temperature", "top_k", "top_p", "min_p"], "no penalties, no other samplers"
    assert first["post_sampling_probs"] is False
    seeds = ROOT.seeds("step", 2)
    assert {first["seed"], second["seed"]} == {seed % (2**31 - 1) for seed in seeds}
    assert all(0 <= body["seed"] < 2**31 - 1 for body in fake.bodies)


def test_it_hangs_up_at_the_end_of_a_step(tiny_llama):
    endless: list[Item] = [*_tokens("a\n"), *([(98, -0.1), 0.01] * 500)]
    fake = FakeServer(lambda body, number: endless)

    async def scenario():
        async with _sampler(fake, tiny_llama) as sampler:
            await asyncio.gather(*sampler.extend(ROOT, 1, until="step", limit=1000))
            for _ in range(400):
                if not fake.busy:
                    return
                await asyncio.sleep(0.01)

    asyncio.run(scenario())
    assert fake.busy == 0
    assert fake.written[0] < 300


@pytest.mark.parametrize(
    "fault",
    [
        Status(429, "slow down"),
        Status(503, "Loading model", {"retry-after": "1"}),
        Status(500, "out of luck"),
        [(97, -0.5), CUT],
        [CUT],
        [(97, -0.5), 5.0],
        [b"data: {broken\n\n"],
        [b"data: " + b"[" * 5000 + b"\n\n"],
        [b'data: {"error": {"message": "lost"}}\n\n'],
        [(97, 0.5)],
        [(97, math.nan)],
        [(97, -math.inf)],
        [(260, -0.5)],
        [(-1, -0.5)],
        [(2**70, -0.5)],
    ],
    ids=str,
)
def test_what_fails_once_is_asked_again(tiny_llama, fault):
    fake = FakeServer(lambda body, number: _tokens("ok\n") if number else fault)
    silent = isinstance(fault, list) and 5.0 in fault
    (completion,) = _sample(fake, tiny_llama, timeout=1.0 if silent else 30.0)
    assert bytes(completion.tokens) == b"ok\n"
    assert [body["seed"] for body in fake.bodies] == [fake.bodies[0]["seed"]] * 2


def test_a_token_is_no_megabyte(tiny_llama):
    huge: list[Item] = [b'data: {"choices": [' + b"{}," * 700_000 + b"{}]}\n\n"]
    fake = FakeServer(lambda body, number: _tokens("ok\n") if number else huge)
    (completion,) = _sample(fake, tiny_llama, timeout=10.0)
    assert bytes(completion.tokens) == b"ok\n"
    assert len(fake.bodies) == 2


def test_waits_double(tiny_llama, monkeypatch):
    waits = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(server, "_LONGEST_WAIT", 60.0)
    monkeypatch.setattr(server.asyncio, "sleep", sleep)
    answers = [Status(500, "x")] * 3 + [Status(429, "x", {"retry-after": "20"}), Status(500, "x")]
    fake = FakeServer(lambda body, number: answers[number] if number < 5 else _tokens("ok\n"))
    _sample(fake, tiny_llama)
    waits = [wait for wait in waits if wait > 0.1]
    assert [low <= wait <= 3 * low for low, wait in zip([0.5, 1, 2, 20, 8], waits, strict=True)] == [True] * 5


def test_no_more_is_in_flight_than_the_recipe_says(tiny_llama):
    fake = FakeServer(lambda body, number: [0.02, *_tokens("ab\n")])
    assert len(_sample(fake, tiny_llama, n=12, in_flight=3)) == 12
    assert fake.busiest == 3


def test_one_that_fails_again_and_again_is_set_aside_while_the_server_does_others(tiny_llama):
    def answer(body, number):
        return Status(500, "this one never") if body["prompt"] == ROOT.tokens else _tokens("ok\n")

    fake = FakeServer(answer)
    with pytest.raises(QueryFailedError, match=r"the server answered 500: this one never, 3 times"):
        _sample(fake, tiny_llama, retries=2)
    assert len(fake.bodies) == 4, "three tries, and a look at whether it does other work"


def test_a_server_that_does_nothing_any_more_ends_it_in_a_line(tiny_llama):
    fake = FakeServer(lambda body, number: Status(502, "no\nworker\x1b[2J"))
    with pytest.raises(UserError, match=r"answered 502: no worker.*2 times; .* the same command") as e:
        _sample(fake, tiny_llama, retries=1)
    assert "\n" not in str(e.value)
    assert "\x1b" not in str(e.value)


@pytest.mark.parametrize(
    ("answer", "settings", "message"),
    [
        (Status(400, "the prompt is too long"), {}, "answered 400: the prompt is too long"),
        (Status(401, "who are you"), {}, f"environment variable {KEY}"),
        (Status(307, ""), {}, "answered 307"),
        ([*_tokens("ab")], {}, "start it with more context"),
        ([b'data: {"choices": [{"text": "ab"}]}\n\n'], {}, "does not say the ids"),
        ([], {"model": "other"}, "does not have the model other; it has: m"),
    ],
)
def test_refusals_are_one_line_and_not_repeated(tiny_llama, answer, settings, message):
    fake = FakeServer(lambda body, number: answer)
    with pytest.raises(UserError, match=message) as e:
        _sample(fake, tiny_llama, **settings)
    assert len(fake.bodies) <= 1
    assert "\n" not in str(e.value)


def test_another_vocabulary_is_refused(tiny_llama):
    fake = FakeServer(lambda body, number: [], models=[{"id": "m", "meta": {"n_vocab": 261}}])
    with pytest.raises(UserError, match="vocabulary has 261 tokens, that of the run's model 260"):
        _sample(fake, tiny_llama)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://127.0.0.1:1", r"http://127.0.0.1:1 cannot be reached .*; is it running\?"),
        # httpx2 calls it neither an error of HTTP nor one of values.
        ("http://xn--\N{LATIN SMALL LETTER E WITH ACUTE}", r"cannot be reached \(Invalid IDNA hostname"),
    ],
)
def test_a_server_that_is_not_there_is_one_line(tiny_llama, url, said):
    async def scenario():
        with Vocabulary.open(tiny_llama) as vocabulary:
            async with open_server_sampler(Server(url=url, retries=1), vocabulary, SAMPLING, [65]):
                pytest.fail("there is no such server")

    with pytest.raises(UserError, match=said):
        asyncio.run(scenario())


@pytest.fixture
def held_by(monkeypatch):
    """Set a key, and the server that it is for."""

    def hold(key: str, url: str) -> None:
        monkeypatch.setenv(KEY, key)
        monkeypatch.setenv(HOLDER, url)

    return hold


def test_the_key_goes_to_the_server_and_nowhere_else(tiny_llama, held_by, monkeypatch, caplog, capfd):
    key = "sk-very-secret-123"
    caplog.set_level(logging.DEBUG)
    fake = FakeServer(lambda body, number: Status(500 if number < 2 else 401, f"Bearer {key} is no good"))
    listening = fake.listening

    @asynccontextmanager
    async def bound():
        async with listening():
            held_by(f"{key}\n", f"{fake.url}/v1/")
            yield fake

    monkeypatch.setattr(fake, "listening", bound)
    with pytest.raises(UserError, match=r"answered 401: Bearer \*\*\* is no good") as e:
        _sample(fake, tiny_llama)
    assert set(fake.keys) == {f"bearer {key}"}
    assert key not in json.dumps(fake.bodies)
    output = capfd.readouterr()
    assert key not in str(e.value) + caplog.text + output.out + output.err
    assert key not in repr(Server(url=fake.url).model_dump())


@pytest.mark.parametrize(
    ("holder", "said"),
    [
        ("", "is for no server yet"),
        ("https://127.0.0.1", "is for the server at https://127.0.0.1"),
        ("http://127.0.0.1:1", "is for the server at http://127.0.0.1:1"),
        ("http://elsewhere.example:80", "is for the server at http://elsewhere.example:80"),
        ("http://[", "is no address"),
    ],
)
def test_a_recipe_does_not_say_who_gets_the_key(tiny_llama, held_by, holder, said):
    held_by("sk-very-secret-123", holder)
    fake = FakeServer(lambda body, number: [*_tokens("ab")])
    with pytest.raises(UserError, match=re.escape(said)) as e:
        _sample(fake, tiny_llama)
    assert fake.keys == []
    assert "secret" not in str(e.value)
    assert f"set {HOLDER}=http://127.0.0.1:" in str(e.value) or "no address" in said


@pytest.mark.parametrize(
    ("url", "holder"),
    [
        ("http://h:8080", "http://h:8080/"),
        ("http://h:8080/v1", "h:8080"),
        ("https://h", "https://H:443"),
        ("http://[::1]:9", "http://[::1]:9/v1"),
    ],
)
def test_ways_to_write_the_same_server(held_by, url, holder):
    held_by("k", holder)
    assert key_for(url) == "k"


def test_a_key_on_an_open_way_is_told(held_by):
    held_by("k", "x")
    ways = (
        "http://h",
        "https://h",
        "http://127.0.0.1:8",
        "http://localhost",
        "http://[::1]:8",
        "http://127.0.0.1.evil",
    )
    assert [is_open(url) for url in ways] == [True, False, False, False, False, True]
    held_by("", "x")
    assert not is_open("http://h")


@pytest.mark.parametrize("url", ["http://[::1", "http://h:99999", "http://h:0", "http://:80", "http://[v1.x"])
def test_an_address_that_is_none_is_refused_with_the_recipe(url):
    with pytest.raises(ValidationError, match="no address such as"):
        Server(url=url)


def test_no_proxy_is_asked(tiny_llama, held_by, monkeypatch):
    asked = []
    proxy = FakeServer(lambda body, number: Status(502, "proxy"))
    fake = FakeServer(lambda body, number: [*_tokens("ab\n")])

    async def scenario():
        async with proxy.listening(), fake.listening():
            for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "HTTPS_PROXY"):
                monkeypatch.setenv(name, proxy.url)
            held_by("k", fake.url)
            with Vocabulary.open(tiny_llama) as vocabulary:
                async with open_server_sampler(Server(url=fake.url, retries=0), vocabulary, Sampling(1.0), [65]) as s:
                    (branch,) = s.extend(Node(None, [65], (0,)), 1, until="step", limit=3)
                    asked.append((await branch).tokens)

    asyncio.run(scenario())
    assert len(asked) == 1
    assert proxy.keys == []
    assert set(fake.keys) == {"bearer k"}


def test_a_key_that_is_none_is_not_shown(tiny_llama, monkeypatch):
    monkeypatch.setenv(KEY, "secret\x01\u00e9")
    with pytest.raises(UserError, match="holds characters that no key has") as e:
        _sample(FakeServer(lambda body, number: []), tiny_llama)
    assert "secret" not in str(e.value)


def test_a_token_that_is_not_shown_is_drawn_from_those_that_may_be_hidden(tiny_llama):
    euro = [0xE2, 0x82, 0xAC]  # its first byte is hidden, since a character is unfinished after it
    top = [{"id": 97, "logprob": -0.2}, {"id": euro[0], "logprob": -2.0}, {"id": 0x82, "logprob": -3.0}]

    def answer(body, number) -> list[Item]:
        if "logit_bias" in body:
            assert (body["prompt"], body["logprobs"], body["max_tokens"]) == ([*ROOT.tokens, 97], 260, 1)
            content = [{"id": 65, "logprob": -9.0, "top_logprobs": top}]
            return [
                b"data: "
                + json.dumps({"choices": [{"text": "A", "logprobs": {"content": content}}]}).encode()
                + b"\n\n"
            ]
        if body["prompt"] == ROOT.tokens:
            return [(97, -0.5), HIDDEN, (0x82, -0.3), (0xAC, -0.3)]
        assert body["prompt"] == [*ROOT.tokens, 97, euro[0]]
        return [(0x82, -0.3), (0xAC, -0.4), *_tokens("\nmore")]

    fake = FakeServer(answer)
    (completion,) = _sample(fake, tiny_llama)
    assert completion == Completion([97, *euro, 10], [-0.5, -2.0, -0.3, -0.4, -0.25], "step")
    assert [body["max_tokens"] for body in fake.bodies] == [30, 1, 28]


def test_the_vocabulary_is_gone_through_once(tiny_llama):
    async def scenario():
        async with _sampler(FakeServer(lambda body, number: []), tiny_llama) as sampler:
            return sampler._hidden_tokens, sampler._hidden_tokens

    first, second = asyncio.run(scenario())
    assert first is second


# -- the real one ----------------------------------------------------------------------------------------------


@contextmanager
def _llama_server(model: Path, *arguments: str):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["llama-server", "-m", model, "-c", 2048, "-np", 4, "-t", 1, "--port", port, "--no-warmup", *arguments]
    process = subprocess.Popen([str(c) for c in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            assert process.poll() is None, "llama-server has ended"
            try:
                if httpx2.get(f"{url}/health").status_code == 200:
                    break
            except httpx2.TransportError:
                pass
            time.sleep(0.1)
        else:
            pytest.fail("llama-server does not come up within a minute")
        yield url
    finally:
        process.kill()
        process.wait()


@pytest.mark.skipif(not shutil.which("llama-server"), reason="llama-server is not on PATH")
def test_llama_server_agrees_with_the_embedded_sampler(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setenv(KEY, "sesame")

    async def scenario(url):
        settings, sampling = EngineSettings(slots=1, context=256, threads=1), Sampling(1.0)
        roots = [Node(None, [257, 72 + i, 258], (0, 1, f"q{i}")) for i in range(8)]
        with Vocabulary.open(tiny_llama) as vocabulary:
            async with (
                open_server_sampler(Server(url=url, in_flight=4), vocabulary, sampling, roots[0].tokens) as server,
                open_sampler(tiny_llama, settings, sampling, tmp_path / "log") as local,
            ):
                nodes = await asyncio.gather(*(server.extend(r, 1, until="end", limit=60)[0] for r in roots))
                scores = [await local.score(node.parent.path, node.tokens) for node in nodes]
        return nodes, scores

    with _llama_server(tiny_llama, "--api-key", "sesame") as url:
        monkeypatch.setenv(HOLDER, url)
        nodes, scores = asyncio.run(scenario(url))
    apart = np.concatenate([np.abs(np.subtract(n.completion.logprobs, s)) for n, s in zip(nodes, scores, strict=True)])
    assert len(apart) > 100
    assert apart.mean() < 0.01
    assert any(0xC3 <= token < 0xF5 for node in nodes for token in node.tokens), "tokens that it does not show, too"
    assert {node.completion.finish for node in nodes} <= {"end", "length"}
