from __future__ import annotations

import json
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import pytest
import torch
from genius_lite.weights.policy import policy_gguf
from safetensors.numpy import load_file, save_file

from genius_lite.errors import UserError
from genius_lite.learner.model import load_base, response_logps
from genius_lite.learner.packing import trees
from genius_lite.prompts import Vocabulary
from genius_lite.sampler.engine import Engine
from genius_lite.sampler.messages import EngineSettings, Extend, Extended, Sampling, Score
from genius_lite.weights import gguf_file
from genius_lite.weights.importing import MAP_FILE, Base, import_master
from genius_lite.weights.mapping import TensorMap
from genius_lite.weights.merge import Adapter, merge, read_factors
from tests.sampler.test_engine import PROMPT, drain
from tests.tiny import TEMPLATE, tiny_gguf

QUERIES = Path("recipes/quickstart-queries.jsonl")


def random_adapter(master, folder, *, spread: float, rank: int = 4):
    """A peft adapter over every linear layer with random factors, as if it had been trained."""
    from peft import LoraConfig, get_peft_model

    from genius_lite.learner.model import target_modules

    base = load_base(master, "cpu", "fp32")
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


def test_row_order_is_recovered(tiny):
    tensor_map = TensorMap.load(tiny.master / MAP_FILE)
    permuted = {name for name, (_, number) in tensor_map.tensors.items() if number is not None}
    q_and_k = {f"blk.{i}.attn_{x}.weight" for i in range(2) for x in "qk"}
    assert permuted == (q_and_k if tiny.architecture == "llama" else set())
    assert len(tensor_map.permutations) == (2 if tiny.architecture == "llama" else 0)
    source, master = gguf_file.read(tiny.gguf), load_file(tiny.master / "model.safetensors")
    for tensor in source.tensors:
        if tensor.name in tensor_map.tensors and tensor_map.tensors[tensor.name][0] in master:
            ours = master[tensor_map.tensors[tensor.name][0]][tensor_map.rows(tensor.name)]
            assert np.array_equal(ours, source.dequantized(tensor).astype(np.float16))


def test_without_an_adapter_the_merge_is_the_source(tiny, tmp_path):
    source = gguf_file.read(tiny.gguf)
    merge(source, None, tmp_path / "m.gguf", lambda n: None)
    assert (tmp_path / "m.gguf").read_bytes() == tiny.gguf.read_bytes()


def test_merged_f16_in_llama_cpp_equals_the_adapter_in_torch(tiny, tmp_path):
    policy = random_adapter(tiny.master, tmp_path / "adapter", spread=0.05)
    policy_gguf(Base(gguf_file.read(tiny.gguf), tiny.master), tmp_path / "adapter", "F16", tmp_path / "p.gguf")
    prompts = [[*PROMPT, i] for i in range(20)]
    change = 0.0
    for prompt, (response, scores) in zip(prompts, sampled_and_scored(tmp_path / "p.gguf", prompts, 30), strict=True):
        expected = torch_scores(policy, prompt, response)
        assert np.abs(expected - scores).mean() < 0.01
        with policy.disable_adapter():
            change += np.abs(torch_scores(policy, prompt, response) - expected).mean()
    assert change / 20 > 0.1, "the adapter must matter for this to show anything"


def test_an_adapter_of_another_model_is_refused(tiny, tmp_path):
    random_adapter(tiny.master, tmp_path / "a", spread=0.05)
    base = Base(gguf_file.read(tiny.gguf), tiny.master)
    weights = load_file(tmp_path / "a" / "adapter_model.safetensors")
    key = "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"
    stray = {k.replace("layers.0.mlp.up_proj", "layers.7.mlp.up_proj"): v for k, v in weights.items()}
    for changed, message in [(stray, "has no model.layers.7"), ({**weights, key: weights[key][:-1]}, "up_proj")]:
        save_file(changed, tmp_path / "a" / "adapter_model.safetensors")
        with pytest.raises(UserError, match=message):
            Adapter.load(tmp_path / "a", base)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "F16"])
def test_metadata_template_and_tokenizer_are_kept_byte_for_byte(tiny, tmp_path, kind):
    random_adapter(tiny.master, tmp_path / "adapter", spread=0.05)
    source = gguf_file.read(tiny.gguf)
    policy_gguf(Base(source, tiny.master), tmp_path / "adapter", kind, tmp_path / "p.gguf")
    before, after = gguf.GGUFReader(tiny.gguf), gguf.GGUFReader(tmp_path / "p.gguf")
    differing = {
        key
        for key in before.fields.keys() | after.fields.keys()
        if not key.startswith("GGUF.")
        and (key not in before.fields or before.fields[key].contents() != after.fields[key].contents())
    }
    assert differing <= {"general.file_type", "general.quantization_version"}
    assert after.fields["tokenizer.chat_template"].contents() == TEMPLATE
    kv = bytearray(gguf_file.read(tmp_path / "p.gguf").kv[: len(source.kv)])
    at = source.value_at["general.file_type"]
    kv[at : at + 4] = source.kv[at : at + 4]
    assert bytes(kv) == source.kv
    wanted = {"Q8_0": 8, "Q4_0": 2, "F16": 1}[kind]
    assert {t.tensor_type for t in after.tensors if t.name == "blk.0.ffn_up.weight"} == {wanted}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "p.gguf"]


def test_quantized_sources_dequantize_exactly(tmp_path):
    path = tmp_path / "q8.gguf"
    tiny_gguf(path, "llama", kind=gguf.GGMLQuantizationType.Q8_0)
    source = gguf_file.read(path)
    import_master(source, tmp_path / "master", lambda n: None)
    policy_gguf(Base(source, tmp_path / "master"), None, "F16", tmp_path / "f16.gguf")
    merged = gguf_file.read(tmp_path / "f16.gguf")
    for old, new in zip(source.tensors, merged.tensors, strict=True):
        assert np.array_equal(source.dequantized(old).astype(np.float16), merged.dequantized(new).astype(np.float16))


def test_smollm2_merged_f16_agrees_with_torch_on_real_responses(smollm2, smollm2_master, tmp_path):
    """20 real responses agree to 0.01 nats per token, through a quantized source and permuted rows."""
    source = gguf_file.read(smollm2)
    policy = random_adapter(smollm2_master, tmp_path / "adapter", spread=0.03, rank=8)
    policy_gguf(Base(source, smollm2_master), tmp_path / "adapter", "F16", tmp_path / "p.gguf")
    questions = [json.loads(line)["prompt"] for line in QUERIES.read_text().splitlines()[:20]]
    with Vocabulary.open(smollm2) as vocabulary:
        prompts = [vocabulary.prompt(question) for question in questions]
    worst, change = 0.0, 0.0
    for prompt, (response, scores) in zip(prompts, sampled_and_scored(tmp_path / "p.gguf", prompts, 32), strict=True):
        expected = torch_scores(policy, prompt, response)
        worst = max(worst, np.abs(expected - scores).mean())
        with policy.disable_adapter():
            change += np.abs(torch_scores(policy, prompt, response) - expected).mean() / len(prompts)
    print(f"worst mean difference {worst:.5f} nats per token; the adapter changes {change:.3f}")
    assert worst < 0.01
    assert change > 0.05, "the adapter must matter for this to show anything"
    # The learner's own packed forward pass gives the same sums.
    inputs = trees([[(prompt, response), (prompt, response[:-1])]])
    with torch.no_grad():
        assert response_logps(policy, inputs)[0].item() == pytest.approx(expected.sum(), abs=0.01)


def test_the_tuned_gguf_answers_in_a_plain_llama(smollm2, smollm2_master, tmp_path):
    random_adapter(smollm2_master, tmp_path / "adapter", spread=1e-4)
    policy_gguf(Base(gguf_file.read(smollm2), smollm2_master), tmp_path / "adapter", "Q8_0", tmp_path / "p.gguf")
    llama = llama_cpp.Llama(str(tmp_path / "p.gguf"), n_ctx=256, verbose=False)
    question = [{"role": "user", "content": "What is 2 + 2?"}]
    answer = llama.create_chat_completion(question, max_tokens=48, temperature=0)
    assert "4" in answer["choices"][0]["message"]["content"]
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_an_adapter_reads_back_its_own_delta(tmp_path):
    b, a = np.arange(6.0, dtype=np.float32).reshape(3, 2), np.ones((2, 4), dtype=np.float32)
    start = "base_model.model.model.layers.0.mlp.up_proj"
    save_file({f"{start}.lora_A.weight": a, f"{start}.lora_B.weight": b}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 4}))
    factors, alpha, rank = read_factors(tmp_path)
    delta = Adapter(factors, alpha, rank).delta("model.layers.0.mlp.up_proj.weight", slice(1, 3))
    assert np.array_equal(delta, (2 * b @ a)[1:3])


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_the_round_trip_is_byte_identical_at_the_masters_type(tmp_path, kind):
    source_type = gguf.GGMLQuantizationType[kind]
    tiny_gguf(tmp_path / "s.gguf", "llama", kind=source_type)
    raw = bytearray((tmp_path / "s.gguf").read_bytes())
    source = gguf_file.read(tmp_path / "s.gguf")
    at = 24 + source.value_at["general.file_type"]
    raw[at : at + 4] = {"F32": 0, "F16": 1, "BF16": 32}[kind].to_bytes(4, "little")
    (tmp_path / "s.gguf").write_bytes(raw)
    source = gguf_file.read(tmp_path / "s.gguf")
    import_master(source, tmp_path / "master", lambda n: None)
    policy_gguf(Base(source, tmp_path / "master"), None, "F16", tmp_path / "p.gguf")
    written = gguf_file.read(tmp_path / "p.gguf")
    for old, new in zip(source.tensors, written.tensors, strict=True):
        expected = source.raw(old)
        if kind == "F32" and len(old.shape) == 2:  # the master is 16-bit
            expected = source.dequantized(old).astype(np.float16).view(np.uint8).reshape(-1)
        assert np.array_equal(written.raw(new), expected), new.name
    if kind != "F32":
        assert (tmp_path / "p.gguf").read_bytes() == bytes(raw)
