"""`genius-lite watch --web`: a real server, asked as a browser and as a stranger would, and a real browser."""

from __future__ import annotations

import base64
import hashlib
import http.client
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, urljoin, urlsplit

import filelock
import msgspec
import pytest

from genius_lite.progress import Stage
from genius_lite.report import live, web
from genius_lite.report.state import Histogram, Memory, RunState, SampleRollout, Work
from genius_lite.report.web import _Shelf, listening
from genius_lite.results.rounds import Summary
from tests.conftest import FORKED_HELPERS
from tests.report.conftest import open_all
from tests.support.cli import RECIPE, genius
from tests.support.reports import REPORT
from tests.support.runs import rollout, write_lines, write_run

pytestmark = FORKED_HELPERS

QUESTIONS = [f"question {n}" for n in range(10)]


@contextmanager
def serving(path: Path) -> Iterator[str]:
    """A server of its own thread; its address."""
    with listening(path, 0) as (server, here, address):
        thread = threading.Thread(target=server.run, args=([here],))
        thread.start()
        try:
            yield address
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(autouse=True)
def often(monkeypatch):
    """Looks every fifth of a second, so that nobody waits."""
    monkeypatch.setattr(live, "EVERY", 0.2)
    monkeypatch.setattr("genius_lite.report.web.EVERY", 0.2)


@pytest.fixture
def run(tmp_path, tiny_llama) -> Path:
    """A run that has searched three of ten questions."""
    path = write_run(tmp_path / "runs" / "a run", tiny_llama, [rollout(question) for question in QUESTIONS], held_out=1)
    (path / "lock").touch()
    (path / "round-0" / "evaluation").mkdir(parents=True)
    (path / "round-1" / "pairs.jsonl").unlink()
    write_lines(path / "round-1" / "rollouts.jsonl", [rollout(question) for question in QUESTIONS[:3]])
    return path


def at_work(run: Path, done: int, steps: int = 1) -> None:
    """What the run's process keeps for others."""
    board = RunState(
        out=str(run),
        model="tiny <b>model</b>",
        pid=os.getpid(),
        host=platform.node(),
        command="genius-lite run r.yaml",
        started=100.0,
        updated=190.0 + done,
        number=1,
        kind=Stage.ROLLOUTS,
        work=Work("round 1: rollouts", "queries", 10, done, 0.5, 2.0 * (10 - done)),
        run_left=600.0,
        memory=Memory(10**9, 5 * 10**8, 8 * 10**9),
        values=Histogram({-40: 1, -20: 3, -10: done}),
        glimpse=SampleRollout("What is <one> & one?", [(-0.1 * n, f"step {n}: so") for n in range(1, steps + 1)]),
    )
    (run / "progress.json.new").write_bytes(msgspec.json.encode(board))
    (run / "progress.json.new").replace(run / "progress.json")


def ask(address: str, path: str = "", method: str = "GET", **headers: str) -> tuple[int, dict[str, str], str]:
    """Ask as it is written: no client mends the path or the headers."""
    place = urlsplit(address)
    connection = http.client.HTTPConnection(place.netloc, timeout=60)
    connection.putrequest(method, path or place.path, skip_host="Host" in headers, skip_accept_encoding=True)
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders()
    answer = connection.getresponse()
    found = answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read().decode()
    connection.close()
    return found


def until(wanted, seconds: float = 60.0):
    """What `wanted` says once it says anything."""
    end = time.monotonic() + seconds
    while not (found := wanted()):
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.05)
    return found


def page_of(address: str, name: str = "a run") -> str:
    return f"{urlsplit(address).path}{quote(name)}/"


def shown(address: str, name: str = "a run") -> str:
    status, _, text = ask(address, page_of(address, name) + "live")
    assert status == 200, text
    return text


def version(address: str) -> int:
    found = re.search(r'data-report="(\d+)"', shown(address))
    assert found
    return int(found[1])


def test_who_does_not_know_the_token_finds_nothing(run):
    with serving(run) as address:
        token = urlsplit(address).path.strip("/")
        assert len(token) >= 32
        guessed = (f"/{token[:-1]}/", f"/{token}x/a%20run/")
        for path in ("/", "/x/", "//", *guessed, "/favicon.ico", "/a%20run/", "/%C3%A9/"):
            for method in ("GET", "HEAD", "POST", "OPTIONS"):
                status, headers, text = ask(address, path, method)
                assert (status, text) == (404, "" if method == "HEAD" else "Not Found"), (path, method)
                assert token not in str(headers)
        assert ask(address, "*", "OPTIONS")[0] == 404
        files = ("a%20run/recipe.json", "a%20run/progress.json", "recipe.json", "b/")
        for path in ("..%2f..%2fetc/", "../", "%2e%2e/", *files):
            assert ask(address, f"/{token}/{path}")[0] == 404, path
        for path in (f"/{token}/", f"/{token}/a%20run/", f"/{token}/a%20run/live"):
            for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
                assert ask(address, path, method)[0] == 405
        for path in (f"/{token}", f"/{token}/"):
            assert (
                urljoin(address[:-1] + path[len(token) + 1 :], ask(address, path)[1]["location"])
                == f"{address}a%20run/"
            )
        status, headers, text = ask(address, page_of(address), "HEAD")
        assert (status, text, headers["content-type"]) == (200, "", "text/html; charset=utf-8")


def test_a_page_whose_own_name_leads_here_is_refused(run):
    with serving(run) as address:
        port = urlsplit(address).port
        for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "", "[::1]", "localhost.evil"):
            assert ask(address, page_of(address), Host=host)[0] == 400, host
        for host in (f"localhost:{port}", f"127.0.0.1:{port}", "localhost:9000"):  # the last one by a tunnel
            assert ask(address, page_of(address), Host=host)[0] == 200, host
        with pytest.raises(OSError), socket.create_connection((_other_address(), port), timeout=2):
            pass


def _other_address() -> str:
    """Another address of this machine; all that begin with 127 are on Linux."""
    return "127.0.0.2"


def test_the_policy_allows_the_pages_own_script_and_style_only(run):
    with serving(run) as address:
        until(lambda: version(address))
        status, headers, html = ask(address, page_of(address))
        policy = headers["content-security-policy"]
        assert (status, headers["cache-control"], headers["referrer-policy"]) == (200, "no-store", "no-referrer")
        assert policy.startswith("default-src 'none'; script-src 'sha256-")
        assert "unsafe" not in policy
        assert policy.endswith("frame-ancestors 'none'")
        for kind, tag in (("script-src", "script"), ("style-src", "style")):
            (said,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
            digest = base64.b64encode(hashlib.sha256(said.encode()).digest()).decode()
            assert f"{kind} 'sha256-{digest}';" in policy
        body = html.partition('<script type="application/json"')[0].split("</style>")[1]
        assert not re.search(r"\son\w+=|\sstyle=", body)


def test_a_run_that_grows_is_followed_to_its_end(run):
    with serving(run.parent) as address, filelock.FileLock(run / "lock"):
        at_work(run, 3)
        status, headers, _ = ask(address)
        assert (status, headers["location"]) == (307, "a%20run/")
        text = shown(address)
        assert 'data-said="running: round 1, rollouts"' in text
        for said in ("3/10 queries", "14s left", "about 10m00s left", "1.00 GB", "What is &lt;one&gt; &amp; one?"):
            assert said in text
        assert "<b>" not in text
        until(lambda: version(address) == 1)
        assert "all 3 queries" in ask(address, page_of(address))[2]

        at_work(run, 5, steps=2)
        assert "step 2: so" in until(lambda: "5/10 queries" in shown(address) and shown(address))
        write_lines(run / "round-1" / "rollouts.jsonl", [rollout(question) for question in QUESTIONS])
        write_lines(run / "round-1" / "pairs.jsonl", [])
        until(lambda: "all 10 queries" in ask(address, page_of(address))[2])

    (run / "round-1" / "report.json").write_bytes(msgspec.json.encode(msgspec.structs.replace(REPORT, round=1)))
    summary = Summary(str(run), "m.gguf", 1, None, False, 10, 0, [])
    (run / "best.json").write_text('{"round": 1}')
    (run / "summary.json").write_bytes(msgspec.json.encode(summary))
    with serving(run.parent) as address:
        text = until(lambda: version(address) and shown(address))
        assert 'data-said="finished: all is done"' in text
        assert "Nothing works on this run now." in text
        assert "Exported: m.gguf." in ask(address, page_of(address))[2]


def test_nothing_is_read_again_where_nothing_has_changed(run, monkeypatch):
    with serving(run) as address:
        first = until(lambda: version(address))
        log = run / "round-1" / "rollouts.jsonl"
        log.write_bytes(log.read_bytes() + b"{")  # hardly grown
        time.sleep(1)
        assert version(address) == first
        with ThreadPoolExecutor(8) as pool:  # many who look at once have it made once
            write_lines(run / "round-1" / "pairs.jsonl", [])
            seen = lambda: set(pool.map(lambda _: version(address), range(8)))  # noqa: E731
            assert until(lambda: seen() == {first + 1})
            time.sleep(1)
            assert seen() == {first + 1}
        monkeypatch.setattr(live, "EVERY", 3600.0)  # not before it is time
        time.sleep(0.3)
        before = shown(address)
        at_work(run, 9)
        assert shown(address) == before


def test_reports_are_never_made_beside_each_other(run, tiny_llama):
    others = [write_run(run.parent / f"b{n}", tiny_llama, [rollout("one")]).name for n in range(3)]
    with serving(run.parent) as address, ThreadPoolExecutor(4) as pool:
        names, most = ["a run", *others], 0

        def made() -> bool:
            nonlocal most
            texts = list(pool.map(lambda name: shown(address, name), names))
            most = max(most, sum(thread.name.endswith("(_make)") for thread in threading.enumerate()))
            return all("The report is being made." not in text for text in texts)

        until(made)
        assert most == 1


@pytest.mark.parametrize("name", ["round-0/cooling-0.3.jsonl", "tracking.json", "round-1/x.partial"])
def test_what_no_report_is_made_of_makes_none_anew(run, name):
    before = live._contents(run)
    (run / name).parent.mkdir(exist_ok=True)
    for text in ("{}", "{}\n{}"):
        (run / name).write_text(text)
        assert live._contents(run) == before


def test_each_of_many_pages_that_are_open_keeps_its_report(run, monkeypatch):
    shelf, names = _Shelf(run.parent), [f"b{n}" for n in range(6)]
    first = {name: shelf._report(name, run) for name in names}
    assert all(shelf._report(name, run) is first[name] for name in names)
    monkeypatch.setattr(web, "_IDLE", 0.0)
    shelf._report("another", run)
    assert shelf._report(names[0], run) is not first[names[0]], "what nobody looks at goes"


def test_a_strangers_folder_is_only_looked_at(run, tiny_llama):
    linked = run.parent / "linked"
    linked.symlink_to(run)
    inside = write_run(run.parent / "inside", tiny_llama, [rollout("one")])
    (inside / "round-1" / "evaluation").symlink_to("/etc")
    odd = write_run(run.parent / "<i>odd #1 \x1b ü", tiny_llama, [rollout("one")])
    (odd / "lock").touch()
    board = msgspec.to_builtins(RunState(host="another", number=1, kind=Stage.ROLLOUTS))
    board |= {"lights": {"<b>": '"><script>'}, "model": "<script>\x1b[2J", "rows": [{"round": 0, "score": "<b>"}]}
    for values in ({"1": 10**400}, {"9" * 400: 1}, {"1": -1}, {"1": 2}):
        (odd / "progress.json").write_bytes(msgspec.json.encode(board).replace(b'"bins":{}', _bins(values)))
        with filelock.FileLock(odd / "lock"):
            before = _state(run.parent)
            with serving(run.parent) as address:
                text = until(lambda: _with_report(address, odd.name))
                assert "<b>" not in text
                assert "<script" not in text
                assert "\x1b" not in text
                assert "is a link; a run folder holds none" in shown(address, "inside")
                assert ask(address, page_of(address, "linked"))[0] == 404
                assert ask(address, page_of(address, odd.name))[0] == 200
            assert _state(run.parent) == before
    assert "2 values from" in text
    with filelock.FileLock(run / "lock", timeout=0):
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes")
def test_names_that_are_no_text_stay_two(run):
    for byte in (b"\xfe", b"\xff"):
        shutil.copytree(run, os.fsdecode(os.fsencode(run) + byte))
    assert sorted(_Shelf(run.parent).runs()) == ["a run", "a run\\udcfe", "a run\\udcff"]


def _with_report(address: str, name: str) -> str:
    text = shown(address, name)
    return "" if "The report is being made." in text else text


def _bins(values: dict[str, int]) -> bytes:
    return b'"bins":{' + b",".join(f'"{place}":{n}'.encode() for place, n in values.items()) + b"}"


def _state(folder: Path) -> dict[str, int]:
    return {str(path): path.lstat().st_mtime_ns for path in [folder, *folder.rglob("*")]}


def test_a_run_that_goes_or_cannot_be_read_is_said(run):
    with serving(run) as address:
        until(lambda: version(address))
        (run / "round-1" / "quantized.json").write_text("[]")  # another version's
        until(lambda: "There is no newer report: " in shown(address))
        assert "trees-data" in ask(address, page_of(address))[2], "the report that there was stays"
        (run / "round-1" / "quantized.json").unlink()
        until(lambda: "There is no newer report: " not in shown(address))
        run.rename(run.with_name("moved"))
        until(lambda: ask(address, page_of(address) + "live")[0] == 404)
        assert ask(address)[0] == 404


def test_the_command_answers_until_ctrl_c(run):
    command = [sys.executable, "-m", "genius_lite", "watch", str(run.parent), "--web"]
    watching = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert watching.stdout
    address = watching.stdout.readline().strip()
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/[\w-]{32}/", address)
    assert "interrupted" in shown(address)
    taken = genius("watch", run, "--web", "--port", urlsplit(address).port, cwd=run)
    assert (taken.returncode, taken.stderr.count("\n")) == (2, 1)
    assert "is not to be had (Address already in use); name another one" in taken.stderr
    watching.send_signal(signal.SIGINT)
    assert watching.communicate(timeout=20) == ("", "")
    assert watching.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "before", "line"),
    [
        (["--web"], "import sys; sys.modules['uvicorn'] = None", "pip install 'starlette>=1.0' 'uvicorn>=0.40'"),
        (["--web"], "import sys; sys.modules['starlette'] = None", "pip install 'starlette>=1.0' 'uvicorn>=0.40'"),
        (["--web", "--port", "99999"], "", "port 99999 is not to be had (there is no such port)"),
        (["--port", "8000"], "", "--port is for --web"),
    ],
)
def test_what_cannot_be_is_one_line(run, arguments, before, line):
    refused = genius("watch", run, *arguments, cwd=run, before=before)
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
    assert line in refused.stderr


def test_a_folder_without_runs_is_one_line(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        refused = genius("watch", path, "--web", cwd=tmp_path)
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
        assert "is no run folder, and none is in it" in refused.stderr


def test_a_real_run_is_seen_from_its_beginning_to_its_end(tmp_path, tiny_llama, run):
    (tmp_path / "tiny.gguf").symlink_to(tiny_llama)
    (tmp_path / "q.txt").write_text("\n".join(QUESTIONS))
    (tmp_path / "r.yaml").write_text(RECIPE.replace("rounds: 2", "rounds: 1"))
    seen = set()
    with serving(run.parent) as address, ThreadPoolExecutor(1) as pool:
        going = pool.submit(genius, "run", "r.yaml", "--out", run.parent / "real", cwd=tmp_path)
        while not going.done():
            status, _, text = ask(address, page_of(address, "real") + "live")
            if status == 200:
                seen |= set(re.findall(r'data-said="([^"]*)"', text))
            time.sleep(0.2)
        assert going.result().returncode == 0, going.result().stderr
        assert any(said.startswith("running: ") for said in seen), seen  # which stages, is the machine's doing
        assert {said for said in seen if not said.startswith(("running: ", "finished: ", "interrupted: "))} == set()
        until(lambda: 'data-said="finished: all is done"' in shown(address, "real"))
        assert ask(address)[1]["location"] == "real/", "that which was last at work"
        until(lambda: "Exported: " in ask(address, page_of(address, "real"))[2])
        assert "a run" in shown(address, "real")


@pytest.mark.browser
def test_what_is_new_comes_without_moving_what_the_reader_holds(run, opened):
    write_lines(run / "round-1" / "pairs.jsonl", [])
    with serving(run.parent) as address, filelock.FileLock(run / "lock"):
        at_work(run, 3)
        until(lambda: version(address))
        view = opened(address, reduced_motion="reduce")  # so that no scrolling is under way
        view.get_by_text("3/10 queries").wait_for()
        assert view.locator("#said").inner_text() == "running: round 1, rollouts"
        chosen = view.locator("#queries li").nth(1).inner_text()
        view.locator("#queries li").nth(1).click()
        view.locator("#c-0-0 > summary").click()
        view.get_by_text("How to read a tree").click()
        view.locator("#search").fill("question")
        view.evaluate("window.spoken = []; window.scrollTo(0, 900); document.querySelector('#tree').here = true")
        view.evaluate(
            "new MutationObserver(() => spoken.push(document.querySelector('#said').textContent))"
            ".observe(document.querySelector('#said'), {childList: true, characterData: true, subtree: true})"
        )
        view.locator("#c-0-0 > summary").focus()
        held = "[document.activeElement.closest('details').id, document.querySelector('#tree').here]"
        place = "document.querySelector('#c-0-0').getBoundingClientRect().top"
        before, stood = view.evaluate(held), view.evaluate(place)
        assert view.evaluate("scrollY") > 300

        at_work(run, 5, steps=2)
        view.get_by_text("5/10 queries").wait_for()
        view.get_by_text("step 2: so").wait_for()
        write_lines(run / "round-1" / "rollouts.jsonl", [rollout(question) for question in QUESTIONS[:8]])
        (run / "round-1" / "filtered.json").write_text('{"gap": 4}')
        view.locator("#queries li").nth(7).wait_for()
        after = view.evaluate(held)
        assert after == before == ["c-0-0", True]
        assert abs(view.evaluate(place) - stood) < 40
        assert view.locator("#c-0-0").get_attribute("open") is not None
        assert view.locator("#trees details[open] summary", has_text="How to read a tree").count() == 1
        assert view.locator("#queries [aria-selected='true']").inner_text() == chosen
        assert view.locator("#search").input_value() == "question"
        assert view.evaluate("spoken") == [], "figures are not said"
        view.close()  # it would ask a server that has ended


@pytest.mark.browser
def test_the_end_of_a_run_is_said_and_of_the_server_too(run, browser):
    view = browser.new_page()
    with serving(run) as address:
        with filelock.FileLock(run / "lock"):
            at_work(run, 3)
            view.goto(address)
            view.locator("#trees-data").wait_for(state="attached")  # the page that has the report
            view.get_by_text("3/10 queries").wait_for()
            (run / "best.json").write_text('{"round": 0}')
            (run / "summary.json").write_bytes(
                msgspec.json.encode(Summary(str(run), "m.gguf", 0, None, False, 10, 0, []))
            )
        view.get_by_text("Nothing works on this run now").wait_for()
        assert view.locator("#said").inner_text() == "finished: all is done"
        view.get_by_text("which is what was exported").first.wait_for()
        assert not view.locator("#lost").is_visible()
    view.locator("#lost").wait_for()
    assert view.get_by_text("which is what was exported").first.is_visible()
    view.close()


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1280, "dark")])
def test_no_fault_of_access_and_no_sideways_scrolling(run, tiny_llama, opened, width, scheme):
    """The style's widths change no color."""
    from axe_playwright_python.sync_playwright import Axe

    write_run(run.parent / ("a-long-name-without-any-break-" * 4), tiny_llama, [rollout("one")])
    with serving(run.parent) as address, filelock.FileLock(run / "lock"):
        at_work(run, 3, steps=3)
        until(lambda: version(address))
        view = opened(address, width, scheme, reduced_motion="reduce")
        view.get_by_text("3/10 queries").wait_for()
        if folder := os.environ.get("GENIUS_LITE_PICTURES"):
            view.screenshot(path=f"{folder}/{width}-{scheme}.png", full_page=True)
        assert view.evaluate("document.getAnimations().length") == 0
        open_all(view)
        assert view.evaluate("document.documentElement.scrollWidth") <= width
        found = Axe().run(view).response["violations"]
        assert [(v["id"], v["nodes"][0]["html"]) for v in found] == []
        view.close()  # it would ask a server that has ended
