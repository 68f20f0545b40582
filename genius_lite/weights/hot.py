"""Is it sooner done to merge and quantize, or to apply the adapter while llama.cpp runs? Measured, then compared."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Speeds:
    """What was measured on this machine: seconds to make the merged file, and tokens a second with either."""

    merge_s: float
    merged_rate: float
    adapter_rate: float

    def favour_adapter(self, tokens: int, *, merged: bool) -> bool:
        """Whether a round of so many tokens ends sooner with the adapter; `merged`: the merged file exists already."""
        return tokens / self.adapter_rate < tokens / self.merged_rate + (0 if merged else self.merge_s)

    @property
    def break_even(self) -> float:
        """Tokens of a round above which merging pays; infinite where the adapter costs no speed."""
        slower = 1 / self.adapter_rate - 1 / self.merged_rate
        return self.merge_s / slower if slower > 0 else float("inf")

    def line(self) -> str:
        """For a person."""
        above = (
            f"merging pays from {self.break_even:.0f} tokens a round" if self.adapter_rate < self.merged_rate else ""
        )
        rates = f"{self.adapter_rate:.0f} tokens/s with the adapter, {self.merged_rate:.0f} merged"
        return f"{rates}, {self.merge_s:.0f} s to merge: {above or 'merging never pays'}"
