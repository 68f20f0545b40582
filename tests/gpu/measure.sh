#!/usr/bin/env bash
# Everything that is measured on a GPU: bash tests/gpu/measure.sh MODEL.gguf QUESTIONS.jsonl FOLDER
#
# It ends within 10 minutes whatever happens, as what hangs is stopped. Some 7 are expected of a model of up to half a
# billion weights on an H200: 1 to 2.5 for the tests, 0.5 to 1.5 for each of six settings (64, 128 and 256 branches,
# with one KV cache for all and one for each), reckoned from the 3,000 tokens/s of drawing on the host and 3 s for each
# start. A setting is printed when it is over, as rows of ours, drawn on the host and on the device, beside
# llama-batched-bench of the same; of one that was stopped, what it had measured by then. FOLDER gets all that was said.
#
# Needs genius-lite with llama.cpp built for the GPU, and llama-batched-bench of the same source on PATH, without which
# only ours is measured.
set -u
model=$1 questions=$2 out=$3
mkdir -p "$out"
ends=$((SECONDS + 585))

within() {  # SECONDS COMMAND...: no longer than that, nor than is left
  local left=$((ends - SECONDS))
  local most=$((left < $1 ? left : $1))
  shift
  [ "$most" -gt 0 ] && timeout -k 5 "$most" "$@"
}

within 150 python -m pytest -q -m gpu -n 3 tests/gpu > "$out/tests.txt" 2>&1
tail -3 "$out/tests.txt"
for kv in --kv-unified ""; do
  for slots in 64 128 256; do
    parked=$((slots < 256 ? slots : 0))  # llama.cpp holds 256 sequences
    said="$out/drawing-$slots$kv.txt"
    within 120 python -m tests.benchmarks.rollouts --model "$model" --queries "$questions" --limit $((slots / 2)) \
      --slots $slots --parked $parked $kv --steps 2 --max-tokens 64 --draws host,device --against bench > "$said" 2>&1
    echo "$slots branches${kv:+, $kv}: ended with $? after $SECONDS s of all"
    grep '^|' "$said" || { grep '^0 ' "$said" | cut -c 1-120; tail -1 "$said" | cut -c 1-300; }
  done
done
