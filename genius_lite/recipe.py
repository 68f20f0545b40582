"""The recipe: its types, and the one home of every default.

Nothing heavy is imported here. `recipe_reader.py` reads it from YAML.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(ge=1)]
Auto = Literal["auto"]
QuantType = Literal[
    "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_0", "Q5_1", "Q4_K_M", "Q4_K_S", "Q4_0", "Q4_1",
    "Q3_K_M", "Q3_K_S", "Q3_K_L", "Q2_K",
]  # fmt: skip
KVType = Literal["F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"]


class Section(BaseModel):
    """Part of a recipe: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=True)


class Model(Section):
    """Which GGUF is trained."""

    gguf: str = Field(description="PATH, hf:OWNER/REPO/FILE.gguf, or python:PACKAGE/FILE.gguf")
    revision: str | None = Field(default=None, description="Commit, tag or branch, for hf: sources")
    weights: str | None = Field(
        default=None,
        description="Full-precision safetensors of the same model for the learner, FOLDER or hf:OWNER/REPO",
    )
    weights_revision: str | None = Field(default=None, description="Commit, tag or branch, for hf: weights")


class Queries(Section):
    """Which unlabelled questions are answered."""

    source: str = Field(description="PATH (.jsonl .csv .parquet .txt) or hf:OWNER/DATASET")
    column: str = Field(default="prompt", description="Column that holds the question")
    split: str = Field(default="train", description="Split, for hub datasets")
    revision: str | None = Field(default=None, description="Commit, tag or branch, for hub datasets")
    limit: Positive | None = Field(default=None, description="Use at most this many, after shuffling")
    shuffle: bool = Field(default=False, description="Shuffle with `seed` before `limit`")
    seed: int = 0
    system: str | None = Field(default=None, description="System message; none leaves the template's own default")


class Foresight(Section):
    """Stepwise foresight search, Eq. 1 to 6 of the paper; M, N and K are its `beams`, `candidates`, `steps`."""

    beams: Positive = 2
    candidates: Positive = 4
    steps: Positive = 4
    tau: Annotated[float, Field(gt=0)] = Field(default=0.1, description="Temperature of F = softmax(f / tau), Eq. 2")
    temperature: Annotated[float, Field(gt=0)] = Field(default=0.6, description="Sampling temperature")
    top_k: Annotated[int, Field(ge=0)] = Field(default=0, description="0: off")
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    min_p: Annotated[float, Field(ge=0, lt=1)] = 0.0
    max_tokens: Positive = Field(default=256, description="Longest response, in tokens, kept steps included")
    negatives: Literal["foresight", "uniform"] = Field(
        default="foresight", description="Draw the rejected response from F (paper) or uniformly (released code)"
    )
    skip_agreeing: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None, description="Light mode: no foresight where candidate steps share this much of their tokens"
    )
    future_tokens: Positive | None = Field(
        default=None, description="Longest simulated future, in tokens; none: up to max_tokens"
    )
    drop_below: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="Give up futures whose candidate no draw from F can take with this probability"
    )


class Learner(Section):
    """The adapter and how it is trained."""

    loss: Literal["aco", "dpo", "ipo", "simpo", "ropo", "sft"] = Field(
        default="aco", description="aco is the method, Eq. 10 to 12; the others are for comparison"
    )
    beta: Annotated[float, Field(gt=0)] = 0.1
    alpha: Annotated[float, Field(gt=0)] = Field(default=1.0, description="Of aco; .inf gives DPO")
    calibration: Literal["cap", "floor"] = Field(
        default="cap", description="w = min(exp(..), 1) (paper) or max(exp(..), 1) (released code)"
    )
    simpo_gamma: Annotated[float, Field(ge=0)] = Field(default=0.5, description="Target margin of simpo")
    ropo_alpha: Annotated[float, Field(gt=1)] = Field(default=14.0, description="Weight of ropo's bounded part")
    length_normalize: bool = Field(default=False, description="Log-probabilities per token instead of summed")
    sft_weight: Annotated[float, Field(ge=0)] = Field(default=0.0, description="Share of the SFT loss that is added")
    precision: Literal["auto", "nf4", "bf16", "fp32"] = Field(
        default="auto", description="Of the frozen weights; auto: nf4 where bitsandbytes has it, else bf16"
    )
    rank: Positive = 16
    lora_alpha: Positive = 32
    targets: list[str] | Auto = Field(
        default="auto", description="Layers to adapt, such as [q_proj, v_proj]; auto: all but embeddings and head"
    )
    optimizer: Literal["auto", "adamw", "paged_adamw_8bit"] = Field(
        default="auto", description="auto: paged 8-bit AdamW on CUDA, else AdamW"
    )
    lr: Annotated[float, Field(gt=0)] = 2e-5
    schedule: Literal["constant", "linear", "cosine"] = Field(default="constant", description="After the warm-up")
    warmup: Annotated[float, Field(ge=0, le=1)] = Field(default=0.1, description="Share of the updates")
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    epochs: Positive = 1
    holdout: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.1, description="Share of the queries whose pairs only show what a quantized file keeps"
    )
    batch_pairs: Positive = Field(default=16, description="Pairs per optimizer update, at least")
    max_pack_tokens: Positive = Field(default=2048, description="Distinct tokens of one forward pass, at most")
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    gradient_checkpointing: bool | Auto = Field(
        default="auto", description="Compute activations twice instead of keeping them; auto: if memory is short"
    )
    save_every: Annotated[float, Field(ge=0)] = Field(default=60.0, description="Seconds between saved states")
    parity_limit: Annotated[float, Field(gt=0)] = Field(
        default=0.5, description="Nats a token by which learner and sampler may differ"
    )


class Quantize(Section):
    """The type of the GGUF that the next round samples from, and that is exported."""

    type: QuantType | Auto = Field(default="Q8_0", description="auto: the fastest of `among` that keeps enough")
    keep: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.9, description="Share of the learned margin that must survive; less is warned of"
    )
    among: Annotated[list[QuantType], Field(min_length=1)] = Field(
        default=["Q4_0", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0"], description="What auto chooses from"
    )
    imatrix: bool = Field(default=True, description="Quantize by importance, gathered while the reference is scored")
    ablate_imatrix: bool = Field(default=False, description="Measure every type without the importance matrix too")

    @property
    def types(self) -> list[QuantType]:
        """The types that are tried."""
        return self.among if self.type == "auto" else [self.type]


class Sampler(Section):
    """llama.cpp settings. They change speed and memory, not what is sampled from.

    `sampler: auto` measures the first three on this machine, once for each model.
    """

    slots: Annotated[int, Field(ge=1, le=128)] | Auto = Field(
        default=32, description="Branches decoded together; auto: measured on this machine"
    )
    kv_unified: bool | Auto = Field(
        default=False, description="One KV buffer for all branches instead of one each; auto: measured"
    )
    threads: Positive | Auto = Field(
        default="auto", description="auto: measured with the other two, else the cores this process may use"
    )
    parked: Annotated[int, Field(ge=0)] | Auto = Field(
        default="auto", description="Paths kept in the KV cache beside the slots; auto: as many as slots"
    )
    context: Positive | Auto = Field(default="auto", description="Tokens per branch; auto: what the queries need")
    kv_type: KVType = Field(default="F16", description="Of the KV cache; quantized ones need flash attention")
    flash_attention: bool | Auto = Field(default="auto", description="auto: llama.cpp decides")
    gpu_layers: Annotated[int, Field(ge=0)] | Auto = Field(
        default="auto", description="Layers on the GPU, where llama.cpp has one; auto: as many as fit its memory"
    )
    prefill_chunk: Positive = Field(default=128, description="Prompt tokens that ride along in one decode")

    @property
    def measured(self) -> bool:
        """Whether something here is to be measured."""
        return "auto" in (self.slots, self.kv_unified)


def _sampler_section(value: Any) -> Any:
    """`sampler: auto` is short for all that can be measured."""
    return {"slots": "auto", "kv_unified": "auto", "threads": "auto"} if value == "auto" else value


_OF_THE_MACHINE = {"precision", "gradient_checkpointing", "max_pack_tokens", "save_every", "parity_limit"}


class Recipe(Section):
    """A whole run."""

    out: str = Field(description="Run folder, relative to the working directory")
    model: Model
    queries: Queries
    seed: int = 0
    rounds: Positive = 2
    policy: Literal["merge", "adapter", "auto"] = Field(
        default="merge",
        description="What a next round samples from: the merged and quantized model; the base with the adapter applied "
        "while it runs; auto: whichever is sooner done here. The last round is always merged",
    )
    foresight: Foresight = Foresight()
    learner: Learner = Learner()
    quantize: Quantize = Quantize()
    sampler: Annotated[Sampler, BeforeValidator(_sampler_section)] = Sampler()

    @model_validator(mode="after")
    def _possible(self) -> Recipe:
        if self.foresight.beams * self.foresight.candidates < 2:
            raise ValueError("foresight: beams x candidates must be at least 2, a pair needs two responses")
        return self

    def identity(self) -> dict[str, Any]:
        """What must be equal for a run folder to go on: all but where files lie and what suits the machine.

        The model and the queries are compared by content instead, when the folder is opened.
        """
        keys: dict[str, Any] = dict.fromkeys(("out", "sampler", "model", "queries"), True)
        parts = {"learner": _OF_THE_MACHINE, "quantize": {"ablate_imatrix"}}
        return self.model_dump(mode="json", exclude=keys | parts)
