"""Real Ray nodes as processes of this machine, real workers, a tiny model."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from genius_lite.cluster import actor
from genius_lite.cluster.nodes import connected, node_slots, node_statuses
from genius_lite.cluster.ray import _FileStore, _ray_errors
from genius_lite.errors import NonFiniteError, UserError
from genius_lite.recipe import Evaluate, Foresight, Model, Queries, Recipe, Sampler
from tests.support.cluster import RAY, rollouts
from tests.support.models import ANY_PAIRS, questions

pytest.importorskip("ray")
FEW, MANY = 10, 40  # queries; the more where something is to happen before the round is over


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """Where the nodes keep models."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def cluster(cache):
    """A head without CPUs for others, and one node with one."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # Ray ends a process a minute after it has lost its head, whatever it does by then: this one runs other tests.
        patch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "3600")
        patch.setattr("genius_lite.cluster.ray._PART", 50_000)  # bytes: even a tiny model travels in parts
        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 100 << 20}
        found = Cluster(initialize_head=True, head_node_args=head)
        found.add_node(num_cpus=1, object_store_memory=100 << 20)
        found.wait_for_nodes()
        yield found
        found.shutdown()


@pytest.fixture
def join(cluster):
    """Lets a node join; from any thread, which `Cluster.add_node` cannot."""
    nodes: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        options = ["--num-cpus=1", "--object-store-memory=100000000", "--block"]
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        nodes.append(subprocess.Popen([RAY, "start", "--address", cluster.address, *options], **silent))

    yield start
    for node in nodes:
        node.terminate()
        node.wait()
    cluster.add_node(num_cpus=1, object_store_memory=100 << 20)


@pytest.fixture
def recipe(tiny_llama, tmp_path) -> Recipe:
    return Recipe(
        out=str(tmp_path / "run"),
        model=Model(gguf=str(tiny_llama)),
        queries=Queries(source=questions(tmp_path, MANY), limit=FEW),
        foresight=Foresight(beams=1, candidates=2, steps=2, max_tokens=60),
        pairs=ANY_PAIRS,
        evaluate=Evaluate(queries=0),
        sampler=Sampler(slots=2, parked=2, threads=1, watchdog=60),
    )


def of_many(recipe: Recipe) -> Recipe:
    return recipe.model_copy(update={"queries": recipe.queries.model_copy(update={"limit": MANY})})


def test_a_cluster_samples_what_this_machine_would(cluster, recipe, tmp_path):
    """One branch at a time: in other company a sum is rounded in another way, which a random model makes much of."""
    recipe = recipe.model_copy(update={"sampler": recipe.sampler.model_copy(update={"slots": 1, "parked": 1})})
    there, said = rollouts(recipe, cluster.address)
    here, _ = rollouts(recipe.model_copy(update={"out": str(tmp_path / "local")}), "local")
    assert there == here
    shares = json.loads((tmp_path / "run" / "round-1" / "hosts.json").read_text())
    assert [*shares.values()] == [FEW]
    assert [line for line in said if line.startswith("sampling on ")]


def test_a_node_that_dies_loses_nothing_and_one_that_joins_takes_work(cluster, join, recipe, tmp_path):
    """The only node is killed in mid-round; one that joins afterwards does the rest."""
    log, killed = tmp_path / "run" / "round-1" / "rollouts.jsonl", []

    def kill_and_replace() -> None:
        while not log.exists() or log.read_bytes().count(b"\n") < 4:
            time.sleep(0.01)
        for node in [n for n in cluster.list_all_nodes() if n is not cluster.head_node]:
            cluster.remove_node(node, allow_graceful=False)
        killed.append(log.read_bytes().count(b"\n"))
        join()

    killer = threading.Thread(target=kill_and_replace, daemon=True)  # a run that fails leaves it waiting
    killer.start()
    found, said = rollouts(of_many(recipe), cluster.address)
    killer.join()
    assert killed[0] < MANY, "the round was over before the node was killed"
    assert len(found) == MANY
    assert len([line for line in said if "is lost" in line]) == 1
    assert len([line for line in said if line.startswith("sampling on ")]) == 2


def test_the_model_travels_to_a_node_once(cluster, cache, recipe, tmp_path):
    rollouts(recipe, cluster.address)
    cached = [*cache.rglob("models/*.gguf")]
    before = {path: path.stat().st_ino for path in cached}
    rollouts(recipe.model_copy(update={"out": str(tmp_path / "again")}), cluster.address)
    assert len(before) == 1
    assert {path: path.stat().st_ino for path in cached} == before


def test_a_model_that_a_node_cannot_load_is_one_line(cluster, recipe):
    impossible = recipe.model_copy(update={"sampler": recipe.sampler.model_copy(update={"kv_type": "Q8_0"})})
    with pytest.raises(UserError, match=r"llama\.cpp cannot hold 2 \+ 2 branches"):
        rollouts(impossible, cluster.address)


def test_nodes_are_listed_with_their_state(cluster):
    listed = node_statuses(cluster.address)
    assert sorted((node.cpus, node.state) for node in listed if node.state != "gone") == [
        (0, "no CPUs for others"),
        (1, "ready"),
    ]
    with connected(cluster.address) as ray:
        assert {(slot.cpus, slot.gpus) for slot in node_slots(ray)} == {(1, 0)}


def test_what_is_no_address_is_told_alike_by_the_command_and_by_a_recipe():
    with pytest.raises(UserError, match=r"^nowhere is no address; write auto, ray://HOST:PORT or HOST:PORT$"):
        node_statuses("nowhere")
    with pytest.raises(ValidationError, match="cluster nowhere is no address; write local, auto, ray://HOST:PORT or H"):
        Sampler(cluster="nowhere")


def test_without_a_cluster_it_is_said_how_to_start_one():
    with pytest.raises(UserError, match=r"no Ray cluster at 127\.0\.0\.1:1 .*ray start --head"):
        node_statuses("127.0.0.1:1")
    with pytest.raises(UserError, match=r"no Ray cluster at node\.\.lan:6379 .*ray start --head"):
        node_statuses("node..lan:6379")


HOLDER = """
import sys, time
from pathlib import Path
import ray

@ray.remote(num_cpus=1)
def hold(folder):
    (folder / "held").touch()
    for _ in range(600):
        if (folder / "released").exists():
            break
        time.sleep(0.05)

ray.init(sys.argv[1])
ray.get(hold.remote(Path(sys.argv[2])))
"""


def test_a_busy_node_is_said_to_be_waited_for(cluster, recipe, tmp_path, monkeypatch):
    """Case 46: nothing was printed for as long as others held the node's CPUs."""
    monkeypatch.setattr("genius_lite.cluster.ray._BUSY", 1.0)

    def release(line: str) -> None:
        if line.startswith("waiting for 1 CPUs of "):
            (tmp_path / "released").touch()

    holder = [sys.executable, "-c", HOLDER, cluster.address, str(tmp_path)]
    with subprocess.Popen(holder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not (tmp_path / "held").exists():
            assert process.poll() is None
            time.sleep(0.05)
        found, _ = rollouts(recipe, cluster.address, release)
    assert len(found) == FEW
    assert (tmp_path / "released").exists()


def test_a_node_without_room_for_the_model_costs_only_itself(cluster, recipe):
    node = cluster.add_node(num_cpus=1, object_store_memory=100 << 20, env_vars={"XDG_CACHE_HOME": "/proc/nothing"})
    cluster.wait_for_nodes()
    try:
        found, said = rollouts(of_many(recipe), cluster.address)
    finally:
        cluster.remove_node(node)
    assert len(found) == MANY
    refused = [line for line in said if "does not take part" in line]
    assert refused
    assert len([line for line in said if line.startswith("sampling on ")]) == 1


def test_nodes_run_no_code_of_the_working_directory(cluster, recipe, tmp_path, monkeypatch):
    for name in ("platformdirs", "msgspec", "llama_cpp", "gguf", "numpy", "pydantic"):
        (tmp_path / f"{name}.py").write_text(f"open('{tmp_path}/ran', 'a').write('{name} ')\n")
    monkeypatch.chdir(tmp_path)
    found, _ = rollouts(recipe, cluster.address)
    assert len(found) == FEW
    assert not (tmp_path / "ran").exists()


def test_a_file_that_the_store_did_not_take_is_put_there_for_the_next_node(tmp_path):
    """The failure was kept, and every later node failed of it."""
    (tmp_path / "m.gguf").write_bytes(b"x" * 10)
    full, arrived = [OSError("the object store is full")], []

    def put(part: bytes) -> bytes:
        if full:
            raise full.pop()
        return part

    async def lacks(names: list[str]) -> list[str]:
        return names

    async def fetch(name: str, parts: list[bytes]) -> None:
        arrived.append((name, b"".join(parts)))

    remote = lambda method: SimpleNamespace(remote=method)  # noqa: E731
    store = _FileStore(SimpleNamespace(put=put), {"m": tmp_path / "m.gguf"})
    actor = SimpleNamespace(missing=remote(lacks), fetch=remote(fetch))

    async def two_nodes() -> None:
        with pytest.raises(OSError, match="full"):
            await store.send(actor, "first")
        await store.send(actor, "second")

    asyncio.run(two_nodes())
    assert arrived == [("m", b"x" * 10)]


def test_a_node_measures_its_settings_within_its_own_loop(recipe, tiny_llama, tmp_path, monkeypatch):
    """It was a RuntimeError, so that no node with settings to measure took part."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(actor, "_cached", lambda name: tiny_llama)
    cfg = Sampler(slots="auto", threads=1, gpu_layers=0)
    settings = actor.HostSettings("0" * 64, "", cfg, recipe.foresight, 256, (0, 1))

    async def opened() -> int:
        host = actor.HostActor()
        async with host._open:
            return await host.open(settings, 2)

    monkeypatch.setattr(actor, "forget_secrets", lambda: None)
    assert asyncio.run(opened()) > 0


def test_what_a_node_finds_that_is_no_number_is_one_line():
    from ray.exceptions import RayTaskError

    fault = RayTaskError("search", "a traceback", NonFiniteError("query x")).as_instanceof_cause()
    with pytest.raises(NonFiniteError) as raised, _ray_errors():
        raise fault
    assert str(raised.value) == "query x"
