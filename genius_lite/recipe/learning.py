"""What is learned from, how, and into which file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from genius_lite.recipe.types import AboveZero, Auto, NotNegative, Positive, Section, Share, TargetType, Text, key

Loss = Literal["aco", "dpo", "ipo", "simpo", "ropo", "sft"]
"""What a pair is learned with; `learner.loss` has the equations."""
OWN_LOSS: Loss = "aco"
"""The method's own."""

_OF_PAIRS = ("beta", "length_normalize", "sft_weight")
READ_BY_LOSS: dict[Loss, tuple[str, ...]] = {
    "aco": (*_OF_PAIRS, "alpha", "calibration"),
    "dpo": _OF_PAIRS,
    "ipo": _OF_PAIRS,
    "simpo": ("beta", "sft_weight", "simpo_gamma"),  # per token anyway
    "ropo": (*_OF_PAIRS, "ropo_alpha"),
    "sft": ("sft_weight",),
}
"""Which keys of `Learner` a loss depends on, of those that not every loss does."""


class Pairs(Section):
    """Which responses become pairs to learn from. What is left out is drawn again; a step without a pair is counted.

    A chosen response that a filter leaves out makes way for the next best one, a rejected one for another draw.
    """

    choose: Literal["best", "agreed", "random"] = key(
        "best",
        "best: the chosen response has the highest f; agreed: it states the final answer that most of the query's "
        "different responses state (two at least; of answers with as many votes f decides), and the rejected one a "
        "rarer answer; random: chosen and rejected are any two, the control for spurious gains",
    )
    negatives: Literal["foresight", "uniform"] = key(
        "uniform",
        "Draw the rejected response uniformly (released code), or from F (paper), where it is nearly as good as the "
        "chosen one",
    )
    min_gap: NotNegative | Auto = key(
        "auto",
        "Least difference of foresight values, chosen - rejected; 0.0: any (paper); auto: 0.05 where the best is "
        "chosen, else 0.0",
        unit="nats per token",
    )
    looping: Literal["keep", "chosen", "either"] = key(
        "chosen", "Leave a pair out if the chosen, or either, response ends in a repetition"
    )
    truncated: Literal["keep", "chosen", "either"] = key(
        "chosen",
        "Leave a pair out if the chosen, or either, response was cut off at max_tokens, or its "
        "future at future_tokens; keep: neither (paper)",
    )
    max_length_ratio: Annotated[float, Field(gt=1)] | None = key(
        None, "Leave a pair out if one response is this many times as long as the other"
    )
    agreement: Annotated[float, Field(gt=0, le=1)] | None = key(
        None,
        "Leave a pair out unless at least this share of the query's responses that state a final answer give the "
        "chosen one's, and the rejected one's differs",
        unit="share",
    )
    weigh: Literal["equally", "votes"] = key(
        "equally",
        "A pair's weight in the loss. votes: by which share of the query's votes the chosen answer leads the rejected "
        "one, for choose: agreed",
    )

    at_least: Positive = key(
        1,
        "The run ends before a later round of fewer pairs: an update of one pair moves the weights as far as one of "
        "many",
        unit="pairs",
    )

    @model_validator(mode="after")
    def _possible(self) -> Pairs:
        if self.weigh == "votes" and self.choose != "agreed":
            raise ValueError("weigh votes needs choose: agreed, which lets the responses vote; write both, or neither")
        return self

    @property
    def least_gap(self) -> float:
        """`min_gap`, nats per token. What a vote or chance chooses is not asked to have the higher value."""
        if self.min_gap == "auto":
            return 0.05 if self.choose == "best" else 0.0
        return self.min_gap


class Learner(Section):
    """The adapter and how it is trained."""

    loss: Loss = key(OWN_LOSS, "aco is the method, Eq. 10 to 12; the others are for comparison")
    beta: AboveZero | Auto = key(
        "auto",
        "How strongly a pair pulls away from the reference: the factor of z in Eq. 10, and the tau of ipo; auto: 0.1 "
        "where log-probabilities are summed, 2.5 where they are per token (simpo, length_normalize)",
    )
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=True)] = key(
        1.0, "How gently the calibration of aco acts, Eq. 11; .inf gives dpo", unit="nats per token"
    )
    calibration: Literal["cap", "floor"] = key("cap", "w = min(exp(..), 1) (paper) or max(exp(..), 1) (released code)")
    simpo_gamma: NotNegative | Auto = key(
        "auto", "Target margin of simpo, beta included; auto: 0.4 beta, which is 1.0 of its own beta"
    )
    ropo_alpha: Annotated[float, Field(gt=1)] = key(14.0, "Weight of ropo's bounded part")
    length_normalize: bool = key(False, "Log-probabilities per token instead of summed")
    sft_weight: NotNegative = key(0.0, "Weight of the SFT loss of the chosen response that is added")
    precision: Literal["auto", "nf4", "bf16", "fp32"] = key(
        "auto",
        "Of the frozen weights; auto: 16 bits (32 where bf16 is emulated: CPUs without it, GPUs before Ampere) if "
        "they take at most 55 % of the free memory, else nf4",
    )
    rank: Positive = key(16, "Rank of the LoRA adapter")
    lora_alpha: Positive = key(32, "The adapter's weight is lora_alpha / rank")
    targets: Annotated[list[Text], Field(min_length=1)] | Auto = key(
        "auto", "Layers to adapt; auto: all but embeddings and head", examples=[["q_proj", "v_proj"]]
    )
    optimizer: Literal["auto", "adamw", "paged_adamw_8bit"] = key(
        "auto", "auto: AdamW; paged_adamw_8bit: for CUDA and CPUs, its state in 8 bits"
    )
    lr: AboveZero = key(5e-5, "Learning rate of the adapter")
    schedule: Literal["constant", "linear", "cosine"] = key("constant", "Of the learning rate, after the warm-up")
    warmup: Share = key(0.1, "Share of the updates in which the learning rate rises", unit="share")
    weight_decay: NotNegative = key(0.0, "Of AdamW")
    epochs: Positive = key(1, "Times that each pair is learned from in a round")
    holdout: Annotated[float, Field(ge=0, lt=1)] = key(
        0.1,
        "Share of the queries that is never searched or learned from, but watched by the collapse guard; no more than "
        "evaluate.queries of them",
        unit="share",
    )
    batch_pairs: Positive = key(
        16,
        "Pairs per optimizer update, about: those of a question stay together, and every epoch has as many updates",
        unit="pairs",
    )
    max_pack_tokens: Positive = key(
        2048, "Distinct tokens of one forward pass, at most; less takes less memory", unit="tokens"
    )
    max_grad_norm: AboveZero = key(1.0, "Longer gradients are shortened")
    gradient_checkpointing: bool | Auto = key(
        "auto", "Compute activations twice instead of keeping them; auto: of as many layers as memory asks for"
    )
    save_every: NotNegative = key(
        60.0, "Time between saved states, from which an interrupted training goes on", unit="seconds"
    )
    parity_limit: AboveZero | Auto = key(
        "auto",
        "By how much learner and sampler may differ before the run stops; from a third of it on that is said. auto: "
        "0.15, of nf4 0.6; 1.0 where the sampler's file is rounded otherwise: of model.weights, and after the first "
        "round",
        unit="nats per token",
    )

    @property
    def chosen_alone(self) -> bool:
        """Whether the loss looks at the chosen response alone, so that updates need not compute the rejected one."""
        return self.loss == "sft"

    @property
    def strength(self) -> float:
        """`beta` as it comes out.

        Of summed log-probabilities it is DPO's; of means, whose differences are a hundred times smaller, it is of the
        2.0 to 2.5 of SimPO's authors (Meng et al., arXiv 2405.14734). IPO's target is 1 / (2 beta) in either: 5 nats,
        or 0.2 nats a token.
        """
        if self.beta != "auto":
            return self.beta
        return 2.5 if self.loss == "simpo" or self.length_normalize else 0.1

    @property
    def target(self) -> float:
        """`simpo_gamma` as it comes out, of the scale of beta: its authors search gamma / beta between 0.1 and 0.8."""
        return 0.4 * self.strength if self.simpo_gamma == "auto" else self.simpo_gamma


class Quantize(Section):
    """The GGUF that the next round samples from, and that is exported."""

    type: TargetType = key(
        "source",
        "source: each tensor keeps the type that it has in the model's GGUF, and every weight that is not learned its "
        "value; the base model is rounded to any other type once, and told against as that",
    )
    keep: Share = key(
        0.9,
        "Share of the update that the file must keep. A round that keeps less gets a file of a type that does, and "
        "the next round takes the adapter at run time",
        unit="share",
    )
    check: Literal["first", "each", "never"] = key(
        "first",
        "After which rounds llama.cpp scores pairs of a few questions with the file, its base, and the adapter at run "
        "time",
    )

    def checks(self, number: int) -> bool:
        """Return whether the file of a round is scored."""
        return self.check == "each" or (self.check == "first" and number == 1)
