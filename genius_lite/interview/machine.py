"""What this machine can do in an evening, roughly: `genius-lite plan` reckons from its measured rates."""

from __future__ import annotations

from dataclasses import dataclass

from genius_lite.hardware import cores, free_memory, gpus

# Parameters x sampled tokens a second. One core: SmolLM2-135M and Qwen2.5-0.5B on an AVX2 server, 11 to 15e9. GPUs were
# not measured; these are far below what llama-batched-bench reports for small cards.
_RATE_OF_A_CORE = 12e9
_RATE_OF_A_GPU = 1e12
_CORES_THAT_HELP = 8  # decoding waits for memory beyond
_SAMPLED = 0.35  # of the most tokens that a search may sample; responses end, and candidates repeat
_OTHER_STAGES = 2.2  # a round's time over that of its rollouts: learning, merging, measuring


@dataclass(frozen=True)
class Machine:
    """Cores, free bytes of memory, and free bytes of the largest GPU that llama.cpp sees (0: none)."""

    cores: int
    memory: int
    gpu: int = 0

    @property
    def room(self) -> int:
        """Bytes that a model has to fit into."""
        return self.gpu or self.memory

    def __str__(self) -> str:
        gpu = f", a GPU with {self.gpu / 1e9:.0f} GB free" if self.gpu else ", no GPU that llama.cpp sees"
        return f"{self.cores} cores, {self.memory / 1e9:.0f} GB of free memory{gpu}"


@dataclass(frozen=True)
class Fit:
    """The settings that a recipe for this machine and model begins with."""

    steps: int
    max_tokens: int
    lr: str
    batch_pairs: int
    max_pack_tokens: int
    rounds: int = 2
    beams: int = 2
    candidates: int = 4


def this_machine() -> Machine:
    """What hardware.py finds."""
    return Machine(cores(), free_memory(), max((gpu.free for gpu in gpus()), default=0))


def fit(machine: Machine, parameters: float, questions: int) -> Fit:
    """Settings for a model of so many parameters: smaller models take larger learning rates, and shorter searches.

    The two higher rates gained in `recipes/RESULTS.md` at temperature 1 and at 0.5, where higher ones gained less
    (SmolLM2-135M) or lost greedily (Qwen2.5-Coder-0.5B); larger models were not trained.
    """
    lr = next(rate for most, rate in ((3e8, "2e-4"), (4e9, "5e-5"), (1e99, "2e-5")) if parameters < most)
    batch = next(pairs for most, pairs in ((50, 4), (200, 8), (1000, 16), (10**9, 32)) if questions <= most)
    return Fit(
        steps=4 if machine.gpu else 3,
        max_tokens=384 if machine.gpu else 256 if parameters < 1e9 else 192,
        lr=lr,
        batch_pairs=batch,
        max_pack_tokens=2048 if machine.room > 8e9 else 1024,
    )


def seconds(machine: Machine, parameters: float, questions: int) -> float:
    """About how long a run over so many questions takes."""
    cfg = fit(machine, parameters, questions)
    sampled = cfg.beams * cfg.candidates * cfg.steps * cfg.max_tokens * _SAMPLED
    power = _RATE_OF_A_GPU if machine.gpu else _RATE_OF_A_CORE * min(machine.cores, _CORES_THAT_HELP)
    return cfg.rounds * questions * sampled * _OTHER_STAGES * parameters / power


def questions_in(machine: Machine, parameters: float, wanted: float) -> int:
    """About how many questions a run of so many seconds has time for; 10 at least, in round numbers."""
    exact = wanted / seconds(machine, parameters, 1)
    step = 10 if exact < 200 else 50 if exact < 1000 else 100
    return max(10, int(exact // step) * step)


def duration(wanted: float) -> str:
    """A time in words: "40 minutes", "5 hours", "3 days"."""
    for unit, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if wanted >= 1.75 * unit or name == "minutes":
            return f"{max(1, round(wanted / unit))} {name}"
    raise AssertionError
