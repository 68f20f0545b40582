"""Ray nodes in network namespaces of their own: `python -m tests.cluster.namespaces`, as root, with iproute2.

A bridge joins this machine, which is the head and leads, with two nodes that have an address, a loopback, a /tmp/ray
and a model cache of their own; nothing but the bridge is between them. In the middle of a round the cable of one node
is pulled (its link goes down; nobody closes a connection), and a third node joins. The rollouts must be those of a run
without a cluster, none lost, none twice. The last line is JSON.
"""

from __future__ import annotations

import json
import os
import string
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from genius_lite.recipe import Evaluate, Foresight, Model, Queries, Recipe, Sampler
from tests.support.cluster import RAY, rollouts
from tests.support.models import ANY_PAIRS, tiny_gguf

HEAD, PORT = "10.77.0.1", 6390
NODES = {"gl1": "10.77.0.2", "gl2": "10.77.0.3", "gl3": "10.77.0.4"}
# Run by a shell: with a /tmp/ray of its own, a node does not find the head's files there.
NODE = """
mount -t tmpfs tmpfs /tmp/ray
exec {ray} start --address {head}:{port} --node-ip-address {own} --num-cpus 1 --object-store-memory 100000000 --block
"""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@contextmanager
def network() -> Iterator[None]:
    """A bridge with this machine's address, and each node's namespace behind a cable of its own."""
    ip("link", "add", "br-gl", "type", "bridge")
    try:
        ip("addr", "add", f"{HEAD}/24", "dev", "br-gl")
        ip("link", "set", "br-gl", "up")
        for name, own in NODES.items():
            ip("netns", "add", name)
            ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", name, "master", "br-gl", "up")
            for words in (["addr", "add", f"{own}/24", "dev", "eth0"], ["link", "set", "eth0", "up"]):
                ip("-n", name, *words)
            ip("-n", name, "link", "set", "lo", "up")
        yield
    finally:
        for name in NODES:
            subprocess.run(["ip", "link", "del", name], check=False)
            subprocess.run(["ip", "netns", "del", name], check=False)
        ip("link", "del", "br-gl")


@contextmanager
def node(name: str, folder: Path) -> Iterator[None]:
    """One that joins the cluster from within a namespace, and is killed at the end."""
    shell = NODE.format(ray=RAY, head=HEAD, port=PORT, own=NODES[name])
    # With the process that leads it goes all that a node has started.
    unshared = ["unshare", "--mount", "--pid", "--mount-proc", "--fork", "--kill-child=SIGKILL"]
    command = ["ip", "netns", "exec", name, *unshared, "sh", "-c", shell]
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / name), "RAY_USAGE_STATS_ENABLED": "0"}
    with (folder / f"{name}.log").open("wb") as log:
        started = subprocess.Popen(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield
    finally:
        started.kill()
        started.wait()


@contextmanager
def head() -> Iterator[None]:
    options = ["--num-cpus=0", "--include-dashboard=false", "--object-store-memory=100000000", "--disable-usage-stats"]
    started = [RAY, "start", "--head", "--node-ip-address", HEAD, "--port", str(PORT), *options]
    subprocess.run(started, check=True, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        subprocess.run([RAY, "stop", "--force"], check=False, stdout=subprocess.DEVNULL)


def recipe_of(folder: Path, out: str) -> Recipe:
    """Sums must be rounded alike wherever a question is asked, since a random model makes much of a difference.

    So branches are decoded one at a time, and no question begins as another does: a worker keeps the common beginning
    of what is in its cache, which depends on the question that it had before.
    """
    lines = [json.dumps({"prompt": f"{letter} and {letter}?"}) for letter in string.ascii_letters[:40]]
    (folder / "queries.jsonl").write_text("\n".join(lines))
    return Recipe(
        out=str(folder / out),
        model=Model(gguf=str(folder / "tiny.gguf")),
        queries=Queries(source=str(folder / "queries.jsonl")),
        foresight=Foresight(beams=4, candidates=8, steps=4, max_tokens=200),
        pairs=ANY_PAIRS,
        evaluate=Evaluate(queries=0),
        sampler=Sampler(slots=1, parked=16, threads=1, watchdog=60),
    )


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="namespaces-"))
    tiny_gguf(folder / "tiny.gguf", "llama")
    started = time.monotonic()
    here, _ = rollouts(recipe_of(folder, "here"), "local")
    alone = time.monotonic() - started
    log = folder / "there" / "round-1" / "rollouts.jsonl"
    seen: dict[str, float] = {}

    def done() -> int:
        return log.read_bytes().count(b"\n") if log.exists() else 0

    def pull_the_cable() -> None:
        while done() < 8:
            time.sleep(0.05)
        ip("link", "set", "gl2", "down")
        seen["pulled_after"], pulled = done(), time.monotonic()
        nodes.enter_context(node("gl3", folder))
        while not any((folder / "gl3").rglob("models/*.gguf")):
            time.sleep(0.05)
        seen["third_has_the_model_s"] = time.monotonic() - pulled

    os.environ["XDG_CACHE_HOME"] = str(folder / "head")
    with network(), head(), ExitStack() as nodes:
        for name in ("gl1", "gl2"):
            nodes.enter_context(node(name, folder))
        time.sleep(15)
        hand = threading.Thread(target=pull_the_cable, daemon=True)
        hand.start()
        started = time.monotonic()
        there, said = rollouts(recipe_of(folder, "there"), f"{HEAD}:{PORT}")
        seconds = time.monotonic() - started
        hand.join(60)
    print(*said, sep="\n", file=sys.stderr)
    hosts = json.loads((folder / "there" / "round-1" / "hosts.json").read_text())
    result = {
        "queries": len(there),
        "same_as_without_a_cluster": there == here,
        "models_cached": {name: len([*(folder / name).rglob("models/*.gguf")]) for name in ("head", *NODES)},
        "lost": sum("is lost" in line for line in said),
        "by_host": hosts,
        "alone_s": round(alone, 1),
        "cluster_s": round(seconds, 1),
        **{key: round(value, 1) for key, value in seen.items()},
    }
    print(json.dumps(result))
    if there != here or not result["lost"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
