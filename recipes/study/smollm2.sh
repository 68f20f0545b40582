#!/usr/bin/env bash
# Every run of SmolLM2 in the first tables of RESULTS.md, one after the other: 2 to 5 hours on two cores that do nothing else.
# Stopped, it goes on where it was. First: python recipes/study/prepare.py
set -euo pipefail
cd "$(dirname "$0")/../.."

run() { genius-lite run "recipes/$1.yaml" --out "runs/study/$2" "${@:3}"; }

for seed in 0 1 2; do
  run study/smollm2-reasoning "aco-$seed" --set "seed=$seed"
  run ablations/random-pairs "random-$seed" --set "seed=$seed" --reuse "runs/study/aco-$seed"
done
for seed in 0 1 2; do
  run study/smollm2-reasoning "lr2e4-$seed" --set "seed=$seed" --set learner.lr=2e-4 --reuse "runs/study/aco-$seed"
  for ablation in no-foresight sft agreed; do
    run "ablations/$ablation" "$ablation-$seed" --set "seed=$seed" --reuse "runs/study/aco-$seed"
  done
done
run study/smollm2-reasoning uniform-0 --set pairs.negatives=uniform --set pairs.min_gap=0.05 --reuse runs/study/aco-0
for ablation in greedy-beams calibration-floor dpo simpo ipo ropo; do
  run "ablations/$ablation" "$ablation-0" --reuse runs/study/aco-0
done
run study/smollm2-general general-0 --reuse runs/study/aco-0

# Is it more than sharpening? The tuned models and their base at a lower temperature.
for run in aco random lr2e4 sft; do
  for seed in 0 1 2; do
    [ -e "runs/study/cool/$run-$seed" ] ||
      genius-lite eval "runs/study/$run-$seed" --round 1 --tasks recipes/study/smollm2-reasoning.yaml --seed "$seed" \
        --temperature 0.5 --no-greedy --out "runs/study/cool/$run-$seed"
  done
done

genius-lite compare runs/study/*-[0-9] --json > runs/study/smollm2.json
