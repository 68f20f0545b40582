"""The learner: a LoRA adapter over frozen (4-bit, bf16 or fp32) weights, trained with ACO."""
