#!/usr/bin/env bash
# Everything that is measured on a GPU, in at most 12 minutes: bash tests/gpu/measure.sh MODEL.gguf QUESTIONS.jsonl FOLDER
#
# Needs genius-lite with llama.cpp built for the GPU, and llama-batched-bench of the same source on PATH, without which
# only ours is measured. What comes goes into FOLDER as it comes.
set -u
model=$1 questions=$2 out=$3
mkdir -p "$out"
timeout 180 python -m pytest -q -m gpu -n 3 tests/gpu > "$out/tests.txt" 2>&1
tail -3 "$out/tests.txt"
for slots in 64 128 256; do
  parked=$((slots < 256 ? slots : 0))  # llama.cpp holds 256 sequences
  for kv in "" --kv-unified; do
    timeout 150 python -m tests.benchmarks.rollouts --model "$model" --queries "$questions" --limit $((slots / 2)) \
      --slots $slots --parked $parked $kv --draws host,device --against bench > "$out/drawing-$slots$kv.txt" 2>&1
    tail -1 "$out/drawing-$slots$kv.txt"
  done
done
