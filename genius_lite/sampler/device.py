"""Drawing where the model is: llama.cpp's backend sampling, so that the vocabulary's logits never leave the device.

llama.cpp asks the sampler of each sequence to add to the graph of a decode (`llama_set_sampler`). Ours add one graph
for the rows of all sequences together: an operation over (rows, vocabulary) instead of hundreds of small ones. What a
row's draws depend on (temperature, filters, uniform numbers) are inputs, so that the graph is built anew only when
llama.cpp builds its own. What is computed is what `sampling.Rows` computes, in float32.
"""

from __future__ import annotations

import ctypes
from collections import defaultdict, deque
from collections.abc import Callable
from functools import partial
from typing import Any

import llama_cpp
import numpy as np

from genius_lite.sampler.ggml import F32, I32, DeviceError, Ggml, Tensor
from genius_lite.sampler.sampling import DRAWS, SPAN, Draw, LogitsError, RowRequest

_BELOW_ONE = 1 - 2.0**-20  # factor that keeps a rounded sum below the sum that it is searched in
_DESCENDING = 1  # ggml_sort_order
_NO_SAMPLER: Any = None
_LIKELIEST = -1.0  # in the place of a uniform number
_COLUMNS = 6  # of a row's inputs, before its uniform numbers
_NODES = 2048


class OnDevice:
    """Draws from what a context decodes, on the device that computes its logits. Made before its first decode.

    `sequences`, counted from 0, may be drawn for.

    Raises:
        DeviceError: this build or this device cannot.
    """

    def __init__(self, ctx: Any, sequences: int, vocabulary: int):
        self.ctx, self.sequences, self.vocabulary = ctx, sequences, vocabulary
        self.ggml = Ggml()
        self._sorted = False
        self._building: _Graph | None = None
        self._graph: _Graph | None = None  # the last with rows that ask; llama.cpp keeps one without beside it
        self._waiting: dict[int, deque[RowRequest]] = defaultdict(deque)
        self._fault: BaseException | None = None
        self._kept: list[Any] = []  # what C code holds pointers to
        self._unsupported = ""
        self._attach()

    def ask(self, asked: list[RowRequest]) -> None:
        """Take what the rows of the next decode are asked, in the order of its batch."""
        if self._sorted != (wanted := any(row.sampling.filtered and row.sampling.top_k != 1 for row in asked)):
            self._sorted = wanted
            self._attach()
        self._waiting.clear()
        for row in asked:
            self._waiting[row.sequence].append(row)

    def read(self, asked: list[RowRequest]) -> list[list[Draw]]:
        """Return what the last decode drew for these rows.

        Raises:
            LogitsError: a row's logits are not finite.
        """
        if self._fault:
            raise self._fault
        first = llama_cpp.llama_get_sampled_logits_ith(self.ctx, -len(asked))
        # llama.cpp gives each row room for a vocabulary; ours are the tokens and their log-probabilities.
        every = np.ctypeslib.as_array(first, shape=((len(asked) - 1) * self.vocabulary + 2 * DRAWS,))
        strides = (self.vocabulary * every.itemsize, every.itemsize)
        found_RD = np.lib.stride_tricks.as_strided(every, (len(asked), 2 * DRAWS), strides).tolist()
        drawn = []
        for number, (row, found) in enumerate(zip(asked, found_RD, strict=True)):
            count = 1 if row.given is not None else len(row.uniforms)
            if any(logprob != logprob for logprob in found[DRAWS : DRAWS + count]):
                raise LogitsError(number)
            drawn.append([(int(token), logprob) for token, logprob in zip(found[:count], found[DRAWS:], strict=False)])
        return drawn

    # -- what llama.cpp calls ------------------------------------------------------------------------------

    def _attach(self) -> None:
        """Give each sequence a sampler; llama.cpp reserves its memory anew before the next decode."""
        kept: list[Any] = []
        types = {name: kind for name, kind, *_ in llama_cpp.llama_sampler_i._fields_}
        for sequence in range(self.sequences):
            called: dict[str, Callable[..., Any]] = {
                "name": lambda _: b"genius-lite",
                "apply": lambda *_: None,
                "backend_init": self._guarded(self._supported, False),
                "backend_apply": self._guarded(partial(self._add, sequence)),
                "backend_set_input": self._guarded(partial(self._fill, sequence)),
            }
            if not sequence:  # of all samplers the first is asked to forget its graph, and the first to build
                called["backend_reset"] = self._guarded(self._forget)
            interface = llama_cpp.llama_sampler_i(**{name: types[name](each) for name, each in called.items()})
            chained = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
            own = llama_cpp.llama_sampler_init(ctypes.byref(interface), ctypes.c_void_p())
            llama_cpp.llama_sampler_chain_add(chained, own)
            kept.append((interface, chained))
            attached = llama_cpp.llama_set_sampler(self.ctx, sequence, chained)
            if self._fault or not attached or self._unsupported:
                for every in range(self.sequences):  # others may have one of before
                    llama_cpp.llama_set_sampler(self.ctx, every, _NO_SAMPLER)
                self._kept += kept
                raise self._fault or DeviceError(self._unsupported or "llama.cpp takes no samplers on this device")
        self._kept = kept

    def _guarded(self, called: Callable[..., Any], otherwise: Any = None) -> Callable[..., Any]:
        """Remember what is raised in a function that C code calls: `read` raises it again."""

        def guarded(_: Any, *arguments: Any) -> Any:
            try:
                return called(*arguments)
            except BaseException as e:  # noqa: BLE001 (nothing may pass through C code; `read` raises it)
                self._fault = self._fault or e
                return otherwise

        return guarded

    def _supported(self, buffer_type: Any, _: int) -> bool:
        """Say whether the device has every operation of the graph."""
        ggml = self.ggml
        device = ggml.backend_buft_get_device(buffer_type)
        if not device or self._unsupported:
            return not self._unsupported
        context = ggml.scratch()
        rows = _Graph(ggml, context, ggml.new_tensor_2d(context, F32, self.vocabulary, 3), self._sorted)
        nodes = ggml.new_graph_custom(context, _NODES, False)
        ggml.build_forward_expand(nodes, rows.results)
        for node in (ggml.graph_node(nodes, n) for n in range(ggml.graph_n_nodes(nodes))):
            if not ggml.backend_dev_supports_op(device, node):
                self._unsupported = f"this device lacks ggml's operation {Tensor.from_address(node).op}"
        ggml.free(context)
        return not self._unsupported

    def _forget(self) -> None:
        self._building = None

    def _add(self, sequence: int, context: Any, _: Any, data: Any) -> None:
        """Add the graph of all rows, unless it is there, and point at the results of one of them."""
        row = data.contents.logits
        view = Tensor.from_address(row)
        if self._building is None:
            self._building = _Graph(self.ggml, context, view.view_src or row, self._sorted)
            self._graph = self._building if self._building.asks else self._graph
        graph = self._building
        at = view.view_offs // Tensor.from_address(view.view_src).nb[1] if view.view_src else 0
        graph.rows[sequence].append(at)
        data.contents.logits = self.ggml.view_1d(context, graph.results, 2 * DRAWS, at * 2 * DRAWS * 4)

    def _fill(self, sequence: int) -> None:
        """Set the inputs of the rows that this sequence has in the graph."""
        graph, waiting = self._graph, self._waiting[sequence]
        assert graph
        for row in graph.rows[sequence]:
            graph.values_RC[row] = _inputs(waiting.popleft())
        values = graph.values_RC
        self.ggml.backend_tensor_set(graph.inputs, values.ctypes.data, 0, values.nbytes)


class _Graph:
    """The tensors of one graph. `results` is float32 (rows, 2 x DRAWS): tokens, then their log-probabilities.

    llama.cpp has one row more than tokens ask for, which a sequence that asks for none points at.
    """

    def __init__(self, ggml: Ggml, context: Any, logits: int, in_order: bool):
        self.ggml, self.context = ggml, context
        vocabulary, count, *_ = Tensor.from_address(logits).ne
        self.asks = count > 1
        self.rows: dict[int, list[int]] = defaultdict(list)
        self.values_RC = np.zeros((count, _COLUMNS + DRAWS), dtype=np.float32)
        self.inputs = ggml.new_tensor_2d(context, F32, _COLUMNS + DRAWS, count)
        ggml.set_input(self.inputs)
        self.results = self._build(ggml.reshape_2d(context, logits, vocabulary, count), vocabulary, count, in_order)

    def __getattr__(self, name: str) -> Callable[..., int]:
        """Return ggml's function, which makes a tensor in this graph's context."""
        return partial(getattr(self.ggml, name), self.context)

    def _column(self, first: int, count: int, width: int = 1) -> int:
        """Return an input of every row, (width, rows)."""
        stride = (_COLUMNS + DRAWS) * 4
        return self.cont(self.view_2d(self.inputs, width, count, stride, first * 4))

    def _build(self, logits: int, vocabulary: int, count: int, in_order: bool) -> int:
        cooler, given, filtered, top_k, top_p, min_p = (self._column(n, count) for n in range(_COLUMNS))
        at = self._column(_COLUMNS, count, DRAWS)
        # Within bounds also where all logits are NaN, of which CUDA's says -1.
        top = self.clamp(self.cast(self.reshape_2d(self.argmax(logits), 1, count), F32), 0.0, vocabulary - 1.0)
        likeliest = self.cast(top, I32)
        weights = self.soft_max(self.mul(logits, cooler))
        tokens = self._search(weights, at, vocabulary, count)
        if in_order:  # a row without a filter keeps its draw: what others ask for must not change it
            order = self.argsort(weights, _DESCENDING)
            weights = self._picked(weights, order, vocabulary, vocabulary, count)
            found = self._search(self._filter(weights, top_k, top_p, min_p, vocabulary, count), at, vocabulary, count)
            likely = self.get_rows(self.reshape_3d(order, 1, vocabulary, count), self.cast(found, I32))
            likely = self.cast(self.reshape_2d(likely, DRAWS, count), F32)
            tokens = self.add(tokens, self.mul(self.sub(likely, tokens), filtered))
        # Where the likeliest is asked for, or a token is given (both in the place of a uniform number), that one.
        greedy = self.step(self.scale(at, -1.0))
        tokens = self.add(tokens, self.mul(self.sub(self.repeat_4d(top, DRAWS, count, 1, 1), tokens), greedy))
        tokens = self.add(tokens, self.mul(self.sub(at, tokens), given))
        # log p(token) = logit(token) - logit(top) + log p(top): no probability is too small for it.
        own = self._picked(logits, self.cast(tokens, I32), vocabulary, DRAWS, count)
        above = self.sub(own, self._picked(logits, likeliest, vocabulary, 1, count))
        highest = self.log(self._picked(self.soft_max(logits), likeliest, vocabulary, 1, count))
        return self.concat(tokens, self.add(above, highest), 0)

    def _picked(self, values: int, indices: int, width: int, picked: int, count: int) -> int:
        """Return of each row of `values` (width, rows) those at `indices` (picked, rows)."""
        return self.reshape_2d(self.get_rows(self.reshape_3d(values, 1, width, count), indices), picked, count)

    def _search(self, weights: int, at: int, width: int, count: int) -> int:
        """Return where the cumulative weight first is above `at` (DRAWS, rows) of its sum, as float32 (DRAWS, rows).

        First among spans, then within one.
        """
        spans, rows = -(-width // SPAN), DRAWS * count
        if spans * SPAN > width:
            weights = self.pad(weights, spans * SPAN - width, 0, 0, 0)
        weights = self.reshape_3d(weights, SPAN, spans, count)
        upto = self.cumsum(self.reshape_2d(self.sum_rows(weights), spans, count))
        at = self.mul(self.scale(at, _BELOW_ONE), self._place(upto, spans - 1, spans, count))
        each = self.repeat_4d(self.reshape_3d(upto, spans, 1, count), spans, DRAWS, count, 1)
        passed = self._above(self.reshape_2d(each, spans, rows), self.reshape_2d(at, 1, rows), spans)
        span = self.reshape_2d(self.clamp(passed, 0.0, spans - 1.0), DRAWS, count)
        chosen = self.cast(span, I32)
        begins = self.concat(self.scale(self._place(upto, 0, spans, count), 0.0), upto, 0)  # before each span
        before = self._picked(begins, chosen, spans + 1, DRAWS, count)
        weighs = self.sub(self._picked(upto, chosen, spans, DRAWS, count), before)
        within = self.cumsum(self.get_rows(weights, chosen))  # (span, draws, rows)
        whole = self._place(within, SPAN - 1, SPAN, rows)
        share = self.reshape_2d(self.scale(self.div(self.sub(at, before), weighs), _BELOW_ONE), 1, rows)
        inner = self._above(self.reshape_2d(within, SPAN, rows), self.mul(share, whole), SPAN)
        inner = self.clamp(inner, 0.0, SPAN - 1.0)
        index = self.add(self.scale(span, float(SPAN)), self.reshape_2d(inner, DRAWS, count))
        return self.clamp(index, 0.0, width - 1.0)

    def _place(self, values: int, place: int, width: int, count: int) -> int:
        """Return one place of each row of `values` (width, rows), (1, rows)."""
        return self.cont(self.view_2d(values, 1, count, width * 4, place * 4))

    def _above(self, cumulative: int, at: int, width: int) -> int:
        """Return for each row the first index at which `cumulative` (width, rows) is above `at` (1, rows)."""
        return self.scale_bias(self.sum_rows(self.step(self.sub(cumulative, at))), -1.0, float(width))

    def _filter(self, weights: int, top_k: int, top_p: int, min_p: int, width: int, count: int) -> int:
        """Return the weights (width, rows), likeliest first, with zeros where a filter cuts off."""
        # A filter of one is a factor: 1 where step's argument is positive.
        rank = self.scale_bias(self.cumsum(self.scale_bias(weights, 0.0, 1.0)), 1.0, -1.0)
        kept = self.mul(weights, self.step(self.neg(self.sub(rank, top_k))))
        upto = self.cumsum(kept)
        before = self.sub(upto, kept)
        enough = self.mul(top_p, self._place(upto, width - 1, width, count))
        first = self._place(weights, 0, width, count)
        likely = self.step(self.sub(weights, self.scale(self.mul(min_p, first), _BELOW_ONE)))
        return self.mul(self.mul(kept, self.step(self.neg(self.sub(before, enough)))), likely)


def _inputs(asked: RowRequest) -> list[float]:
    """Return a row's inputs: 1 / temperature, whether given and filtered, top-k, top-p, min-p; its draws."""
    if asked.given is not None:
        return [1.0, 1.0, 0.0, 1.0, 2.0, 0.0, float(asked.given)] + [0.0] * (DRAWS - 1)
    how = asked.sampling
    uniforms = [_LIKELIEST if at is None or how.top_k == 1 else at for at in asked.uniforms]
    uniforms += [0.0] * (DRAWS - len(uniforms))
    top_k, top_p = how.top_k or float("inf"), how.top_p if how.top_p < 1 else 2.0
    return [1 / how.temperature, 0.0, float(how.filtered), top_k, top_p, how.min_p, *uniforms]
