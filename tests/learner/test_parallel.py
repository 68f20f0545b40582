"""Several processes that train together, really started."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file

from genius_lite.errors import UserError
from genius_lite.learner.packing import shares
from genius_lite.learner.process_group import SINGLE_PROCESS, ProcessGroup, join, require_possible
from genius_lite.rundir.folder import IMPORTANCE
from tests.support import forked, warm
from tests.support.training_processes import PAIRS, train

ROOT = Path(__file__).parents[2]
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
ACCELERATE = ["accelerate.commands.launch", "--num_processes", "2", "--main_process_port", "0", "--no_python"]
# What `accelerate launch --use_fsdp` sets, for other launchers.
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def hf_checkpoint(tmp_path_factory) -> Path:
    from genius_lite.weights import gguf_file
    from genius_lite.weights.importing import import_checkpoint
    from tests.support.models import tiny_gguf

    folder = tmp_path_factory.mktemp("tiny")
    tiny_gguf(folder / "tiny.gguf", "llama")
    import_checkpoint(gguf_file.read(folder / "tiny.gguf"), folder / "hf-checkpoint", lambda n: None)
    return folder / "hf-checkpoint"


def _launch(launcher: list[str], command: list[str], cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a module and its arguments, as a launcher starts it."""
    module, *arguments = [*launcher, *(forked.command(warm.server(), *command) if launcher else command)]
    return warm.run(arguments, cwd, ENVIRONMENT | variables, module=module, timeout=500)


def _plan(folder: Path, hf_checkpoint: Path, *trainings: dict[str, Any], **spoiled: int) -> list[str]:
    plan = folder / "plan.json"
    plan.write_text(json.dumps({"hf-checkpoint": str(hf_checkpoint), "trainings": trainings, **spoiled}))
    return ["tests.support.training_processes", str(plan)]


def _training(out: Path, stop: int | None = None, **options: Any) -> dict[str, Any]:
    return {"out": str(out), "options": options, "stop": stop}


def _difference(a: Path, b: Path, file: str = "adapter_model.safetensors") -> float:
    """The largest of any weight."""
    first, second = load_file(a / file), load_file(b / file)
    assert first.keys() == second.keys()
    return max((first[name] - second[name]).abs().max().item() for name in first)


@pytest.fixture(scope="module")
def trained(hf_checkpoint, tmp_path_factory) -> SimpleNamespace:
    """Everything that one launch can show: trainings of two processes, one after the other."""
    folder = tmp_path_factory.mktemp("trained")
    assert train(hf_checkpoint, folder / "begun-alone", {"epochs": 2}, stop_at=2) is None
    launched = _launch(
        TORCHRUN,
        _plan(
            folder,
            hf_checkpoint,
            _training(folder / "whole", epochs=2),
            _training(folder / "lonely", batch_pairs=1, gradient_checkpointing=True),
            _training(folder / "begun-together", stop=2, epochs=2),
            _training(folder / "begun-alone", epochs=2),
            memory=30,
        ),
        ROOT,
    )
    assert launched.returncode == 0, launched.stderr
    return SimpleNamespace(folder=folder, said=launched.stdout)


def test_two_processes_end_where_one_does(trained, hf_checkpoint):
    """Also where a batch is too small for both, activations are computed twice, and one runs out of memory."""
    assert trained.said.split("\n") == [*(f"training {number}" for number in range(4)), ""], "only the leading one says"
    for name, options in {
        "whole": {"epochs": 2},
        "lonely": {"batch_pairs": 1, "gradient_checkpointing": True},
    }.items():
        alone = trained.folder / f"{name}-alone"
        expected = train(hf_checkpoint, alone, options)
        assert expected
        assert _difference(alone, trained.folder / name) <= 1e-5
        report = json.loads((trained.folder / f"{name}.json").read_text())
        assert len(report["curve"]) == expected.updates >= 6
        for row, other in zip(report["curve"], expected.curve, strict=True):
            assert row == pytest.approx(other, abs=1e-4)
        assert report["margin"] == pytest.approx(expected.margin, abs=1e-4)
        assert report["accuracy"] == expected.accuracy
        ours, theirs = (load_file(out / IMPORTANCE) for out in (trained.folder / name, alone))
        assert ours.keys() == theirs.keys()


def test_what_flows_in_is_gathered_from_all(hf_checkpoint, trained, tmp_path):
    """Shares cut some trees in two, and more tokens are computed; their mean square is nearly the same."""
    train(hf_checkpoint, tmp_path / "alone", {})
    ours, theirs = (load_file(out / IMPORTANCE) for out in (trained.folder / "whole", tmp_path / "alone"))
    assert ours["tokens"] >= theirs["tokens"]
    for name in theirs:
        if name != "tokens":
            mean, other = ours[name].sum() / ours["tokens"], theirs[name].sum() / theirs["tokens"]
            assert mean.item() == pytest.approx(other.item(), rel=0.2)


def test_stopped_it_goes_on_with_another_number_of_processes(trained, hf_checkpoint):
    whole = trained.folder / "whole"
    assert not (trained.folder / "begun-together").exists()
    report = train(hf_checkpoint, trained.folder / "begun-together", {"epochs": 2})
    assert report
    assert _difference(whole, trained.folder / "begun-together") <= 1e-5
    assert _difference(whole, trained.folder / "begun-alone") <= 1e-5
    assert report.curve[:3] == json.loads((trained.folder / "whole.json").read_text())["curve"][:3]


@pytest.mark.parametrize("engine", [{}, FSDP])
def test_a_process_that_dies_ends_the_training_which_goes_on_alone(hf_checkpoint, tmp_path, engine):
    """Without a launcher, which would end the main process by itself: so it is on several machines."""
    plan = _plan(tmp_path, hf_checkpoint, _training(tmp_path / "a", epochs=2), dies_at=3)
    command = forked.command(warm.server(), *plan)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    variables = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    variables |= engine
    own = [ENVIRONMENT | variables | {"RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    follower = subprocess.Popen(command, cwd=ROOT, env=own[1])
    try:
        leader = subprocess.run(command, cwd=ROOT, env=own[0], capture_output=True, text=True, timeout=500, check=False)
        follower.wait(timeout=60)
    finally:
        follower.kill()
        follower.wait()
    assert follower.returncode == -signal.SIGKILL
    assert leader.returncode == 2
    assert "Traceback" not in leader.stderr
    said = leader.stderr.splitlines()[-1]
    assert said.startswith("error: a process that trains along has ended or is out of reach (")
    assert not (tmp_path / "a").exists()
    assert [p.name for p in (tmp_path / "a-work").glob("update-*")] == ["update-000003"]
    resumed, whole = (
        train(hf_checkpoint, tmp_path / "a", {"epochs": 2}),
        train(hf_checkpoint, tmp_path / "b", {"epochs": 2}),
    )
    assert resumed
    assert whole
    assert len(resumed.curve) == whole.updates
    assert _difference(tmp_path / "a", tmp_path / "b") <= 1e-5


IN_PARTS = {"plain": {}, "twice": {"gradient_checkpointing": True, "batch_pairs": 1}}  # computed twice, and one idle


@pytest.fixture(scope="module")
def divided(hf_checkpoint, tmp_path_factory) -> Path:
    """Everything that one launch can show of two processes that divide the model."""
    folder = tmp_path_factory.mktemp("divided")
    trainings = [_training(folder / "nf4", precision="nf4")]
    for name, options in IN_PARTS.items():
        done = {"epochs": 2, **options}
        trainings += [_training(folder / name, **done), _training(folder / f"{name}-begun", stop=2, **done)]
    launched = _launch([*ACCELERATE, "--use_fsdp"], _plan(folder, hf_checkpoint, *trainings), ROOT)
    assert launched.returncode == 0, launched.stderr
    return folder


@pytest.mark.parametrize("name", IN_PARTS)
def test_processes_that_divide_the_model_end_where_one_does(hf_checkpoint, divided, tmp_path, name):
    """Also where one has nothing to compute of a batch, and only makes the passes of the other."""
    done = {"epochs": 2, **IN_PARTS[name]}
    expected = train(hf_checkpoint, tmp_path / "alone", done)
    assert expected
    report = json.loads((divided / f"{name}.json").read_text())
    assert report["margin"] == pytest.approx(expected.margin, abs=1e-4)
    assert 0.4 * expected.weight_bytes < report["weight_bytes"] < 0.8 * expected.weight_bytes
    assert _difference(tmp_path / "alone", divided / name) <= 1e-5
    ours, theirs = (load_file(folder / IMPORTANCE) for folder in (divided / name, tmp_path / "alone"))
    for key in theirs:
        assert (ours[key] >= 0.999 * theirs[key]).all(), "what is shared may be computed by both"
    assert train(hf_checkpoint, divided / f"{name}-begun", done)
    assert _difference(tmp_path / "alone", divided / f"{name}-begun") <= 1e-5


def test_divided_nf4_is_the_same_nf4(hf_checkpoint, divided, tmp_path):
    training = _training(tmp_path / "whole", precision="nf4")
    launched = _launch(TORCHRUN, _plan(tmp_path, hf_checkpoint, training), ROOT)
    assert launched.returncode == 0, launched.stderr
    assert _difference(tmp_path / "whole", divided / "nf4") <= 1e-5
    whole, parts = (json.loads(file.read_text()) for file in (tmp_path / "whole.json", divided / "nf4.json"))
    assert parts["curve"] == whole["curve"]
    assert parts["margin"] == pytest.approx(whole["margin"], abs=1e-4), "scored in fp32, layer by layer"
    assert parts["weight_bytes"] < 0.8 * whole["weight_bytes"]


def test_memory_that_runs_out_where_the_model_is_divided_ends_it(hf_checkpoint, tmp_path):
    launched = _launch(TORCHRUN, _plan(tmp_path, hf_checkpoint, _training(tmp_path / "a"), memory=30), ROOT, **FSDP)
    assert launched.returncode != 0
    assert "processes that divide the model cannot try again with smaller ones; set learner.max_pack" in launched.stderr
    assert launched.stderr.count("Traceback") == 1, "torchrun's own"
    assert "exitcode  : 2" in launched.stderr
    assert not (tmp_path / "a").exists()


RECIPE = """
model: {gguf: tiny.gguf}
queries: {source: q.txt}
rounds: 1
foresight: {beams: 2, candidates: 2, steps: 2, max_tokens: 24, temperature: 1.5}
pairs: {truncated: keep, min_gap: 0}
learner: {rank: 4, lora_alpha: 8, lr: 1e-3, batch_pairs: 4, parity_limit: 5, precision: fp32, holdout: 0}
tracking: {with: [tensorboard]}
sampler: {slots: 1, threads: 1}
"""


def test_a_run_of_two_processes_is_one_run(tiny_llama, tmp_path):
    (tmp_path / "tiny.gguf").symlink_to(tiny_llama)
    # What is decoded beside a branch, and what of its beginning is cached, rounds its sums; so one at a time, and no
    # question begins as another does.
    (tmp_path / "q.txt").write_text("".join(f"{letter} and {letter}?\n" for letter in "abcdef"))
    (tmp_path / "r.yaml").write_text(RECIPE)
    command = ["genius_lite", "run", "r.yaml", "--out"]
    alone = _launch([], [*command, "alone"], tmp_path)
    assert alone.returncode == 0, alone.stderr
    both = _launch(TORCHRUN, [*command, "together"], tmp_path)
    assert both.returncode == 0, both.stderr
    assert both.stdout.count("Tuned model:") == alone.stdout.count("Tuned model:") == 1
    one, two = tmp_path / "alone", tmp_path / "together"
    assert {p.relative_to(one) for p in one.rglob("*.json*")} == {p.relative_to(two) for p in two.rglob("*.json*")}
    assert (one / "round-1/pairs.jsonl").read_bytes() == (two / "round-1/pairs.jsonl").read_bytes()
    assert _difference(one / "round-1/adapter", two / "round-1/adapter") <= 1e-5
    parts = _launch(TORCHRUN, [*command, "in-parts", "--reuse", "alone"], tmp_path, **FSDP)
    assert parts.returncode == 0, parts.stderr
    assert _difference(one / "round-1/adapter", tmp_path / "in-parts/round-1/adapter") <= 1e-5
    # A mistake is told once, and the others end as the main process does.
    wrong = _launch(TORCHRUN, ["genius_lite", "run", "nowhere.yaml"], tmp_path)
    assert wrong.returncode != 0
    assert wrong.stderr.count("error: ") == 1
    assert wrong.stderr.count("exitcode  : 2") >= 1


def test_shares_are_even_whole_and_never_beyond_a_pair():
    from genius_lite.learner.packing import by_query, packs

    groups = list(by_query(PAIRS))
    assert shares(groups, 1) == [groups]
    for count in (2, 3, 40):
        found = shares(groups, count)
        assert len(found) == count
        given = [(pair.query_id, pair.step) for share in found for group in share for pair in group]
        assert sorted(given) == sorted((pair.query_id, pair.step) for pair in PAIRS)
        assert found == shares(groups, count)
    two = [sum(pack.tokens for pack in packs(share, 10**6, 10**6)) for share in shares(groups, 2)]
    assert max(two) < 1.2 * min(two)
    assert shares(groups[:1], 2) == [groups[:1], []]  # one pair


def test_launches_that_cannot_be(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")  # by one process alone there is nothing to divide
    assert join() is SINGLE_PROCESS
    assert "ACCELERATE_USE_FSDP" not in os.environ
    require_possible(SINGLE_PROCESS)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(UserError, match="this launch asks for DeepSpeed"):
        require_possible(ProcessGroup(0, 2))
    monkeypatch.delenv("ACCELERATE_USE_DEEPSPEED")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    require_possible(SINGLE_PROCESS)
    require_possible(ProcessGroup(0, 2))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(UserError, match="accelerate launch --cpu starts one process"):
        require_possible(SINGLE_PROCESS)
