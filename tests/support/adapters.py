"""Random adapters, and log-probabilities by torch and by llama.cpp."""

from __future__ import annotations

import numpy as np
import torch

from genius_lite.learner.model import load_base
from genius_lite.sampler.engine import Engine
from genius_lite.sampler.messages import EngineSettings, Extend, Extended, Sampling, Score
from tests.support.engine import drain


def random_adapter(hf_checkpoint, folder, *, spread: float, rank: int = 4):
    """A peft adapter over every linear layer with random factors, as if it had been trained."""
    from peft import LoraConfig, get_peft_model

    from genius_lite.learner.targets import target_modules

    base = load_base(hf_checkpoint, "cpu", "fp32")
    targets = target_modules(base)
    lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, task_type="CAUSAL_LM")
    policy = get_peft_model(base, lora)
    rng = torch.Generator().manual_seed(3)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=rng) * spread
        elif "lora_A" in name:
            parameter.data = torch.randn(parameter.shape, generator=rng) / parameter.shape[1] ** 0.5
    policy.save_pretrained(folder)
    return policy.eval()


def sampled_and_scored(path, prompts, limit, context=256):
    """Responses that the GGUF itself samples, and their log-probabilities in llama.cpp."""
    engine = Engine(str(path), EngineSettings(slots=4, context=context, threads=2, flash_attention=False))
    for i, prompt in enumerate(prompts):
        engine.submit(Extend(i, prompt, [i], "end", limit, Sampling(0.8)))
    responses = {r.id: r.completion.tokens for r in drain(engine) if isinstance(r, Extended)}
    for i, prompt in enumerate(prompts):
        engine.submit(Score(i, prompt, responses[i]))
    scores = {r.id: r.logprobs for r in drain(engine)}
    return [(responses[i], scores[i]) for i in range(len(prompts))]


def torch_scores(policy, prompt, response) -> np.ndarray:
    with torch.no_grad():
        logits = policy(torch.tensor([prompt + response])).logits[0].double().log_softmax(-1)
    return logits[range(len(prompt) - 1, len(prompt) + len(response) - 1), response].numpy()
