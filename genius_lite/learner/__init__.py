"""The learner: a LoRA adapter over frozen (4-bit, bf16 or fp32) weights, trained with ACO."""

import os

# On a CPU oneDNN compiles every product anew for each number of tokens, which is another one in nearly every pack, and
# keeps 1,024 of these programs: of SmolLM2-135M 0.9 GB after 30 packs, 0.6 MB each. A pass makes use of some thirty.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
