"""What each quantization type keeps of a learned margin, with and without the importance matrix.

    python -m tests.benchmarks.retained_margin --model F.gguf --master RUN/master --pairs RUN/round-1/pairs.jsonl

RUN is a run folder of the same model. For each learning rate an adapter is trained on the pairs; then every type is
made from the merge as a run does it, and scored by llama.cpp. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from genius_lite.weights.policy import measured_policy

from genius_lite.bench import file_speed
from genius_lite.hardware import cores, learner_device, learner_precision
from genius_lite.learner.train import Training, train_adapter
from genius_lite.queries import hold_out
from genius_lite.recipe import Learner, Quantize
from genius_lite.records import PreferencePair
from genius_lite.report.summary import retained_lines
from genius_lite.rundir import IMPORTANCE_FILE, RunDir, read_records
from genius_lite.sampler.messages import EngineSettings
from genius_lite.weights import gguf_file, imatrix
from genius_lite.weights.importing import Base
from genius_lite.weights.merge import merged_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--master", type=Path, required=True)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=32, help="pairs")
    parser.add_argument("--rates", default="2e-5,2e-4")
    parser.add_argument("--types", default="Q4_0,Q4_K_M,Q5_K_M,Q6_K,Q8_0")
    parser.add_argument("--context", type=int, default=512)
    a = parser.parse_args()
    base = Base(gguf_file.read(a.model), a.master)
    pairs = read_records(a.pairs, PreferencePair)[: a.limit]
    aside = hold_out(list(dict.fromkeys(pair.query_id for pair in pairs)), 0.1, seed=0)
    learned, held_back = ([p for p in pairs if (p.query_id in aside) == side] for side in (False, True))
    settings = EngineSettings(slots=32, context=a.context, threads=cores())
    device = learner_device()
    cfg = Quantize(type="auto", among=a.types.split(","), ablate_imatrix=True)
    result: dict[str, object] = {"model": a.model.name, "pairs": len(learned), "held back": len(held_back)}
    for rate in map(float, a.rates.split(",")):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "work").mkdir()
            precision = learner_precision("auto", device, merged_bytes(base.gguf))
            options = Learner(lr=rate, batch_pairs=4, parity_limit=10)
            job = Training(a.master, None, learned, [], options, device, precision, (0, 1), RunDir(folder / "work"))
            report = train_adapter(job, folder / "adapter")
            gathered, matrix = (folder / "adapter" / name for name in (IMPORTANCE_FILE, imatrix.IMATRIX_FILE))
            imatrix.write(gathered, base.tensor_map, "pairs", matrix)
            found = measured_policy(
                base,
                folder / "adapter",
                cfg,
                held_back + learned[:16],
                settings,
                a.model,
                lambda file: file_speed(file, settings),
                folder / "policy.gguf",
                folder / "log",
                lambda n: None,
            )
        print(f"lr {rate:g}: {report.updates} updates, learned margin {report.margin:.2f} nats (learner)")
        for line in retained_lines(found, cfg.keep):
            print(f"  {line}", flush=True)
        result[f"lr {rate:g}"] = {"margin": report.margin, **found}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
