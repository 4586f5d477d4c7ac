"""Greedy decoding of a batch on a cache of fixed size, as fast as the device allows.

`model.generate` of transformers starts some 1,500 kernels a token from Python and grows its cache by copying it: an 8B model in bf16 waits for
Python most of the time. Here

- a batch's keys and values are kept in memory that is allocated once, as long as its longest prompt and answer (rounded up to `LENGTH_STEP`);
- prompts are computed in slices of like length, and the vocabulary is projected on each prompt's last token only;
- on CUDA a step is captured once as a graph and replayed: next token, end tokens, positions and mask all stay on the device, and the host
  looks once in `CHECK_STEPS` steps whether anybody is left;
- the unfinished rows are moved together when they are at most half: a few long answers cost a small batch's step;
- query heads that share keys and values are put to attention as one head's queries, so that no key is copied per query head.

The arithmetic is the model's own forward, and the choice the argmax of its logits, as in `generate` with `do_sample=False`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from harness.backends.decoding import kernels
from harness.backends.decoding.static_cache import Memory

LENGTH_STEP = 64
"""Cache lengths are multiples of this, for few graphs and rows aligned for attention kernels."""
CHECK_STEPS = 8
"""Steps between checks for finished rows: each check waits for the device."""
FLOAT_BYTES = 4
"""Of a float32, in which probabilities are computed."""
PREFILL_TOKENS = 8192
"""Padded prompt tokens computed at once: enough to saturate a GPU, few enough to bound activation memory."""

Generated = tuple[list[int], list[float]]
"""Token ids of an answer, and the natural logarithm of each one's probability."""


def unsupported(model: Any) -> str:
    """The reason why this decoder cannot run a model (a transformers causal language model, without PEFT's wrapper); empty if it can."""
    config = model.config.get_text_config(decoder=True)
    if not getattr(model, "_can_compile_fullgraph", False):
        return "its class does not run on a static cache"
    if config.is_encoder_decoder:
        return "it has an encoder"
    if other := set(getattr(config, "layer_types", None) or []) - {"full_attention", "sliding_attention"}:
        return f"it has layers of type {min(other)}"
    return ""


def bytes_per_token(config: Any, itemsize: int) -> int:
    """Memory of one token's keys and values in all layers, from a model's config."""
    config = config.get_text_config(decoder=True)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * width * itemsize


def tokens_in_memory(config: Any, itemsize: int, free_bytes: int, max_new_tokens: int) -> int:
    """How many padded tokens (prompts and answers) a batch may have so that `Decoder` stays within `free_bytes`; at least one row's."""
    text = config.get_text_config(decoder=True)
    # For a slice of prompts: twelve copies of a layer's hidden states, f32 counted twice, and three of the MLP's.
    work = (
        PREFILL_TOKENS
        * itemsize
        * (12 * text.hidden_size + 3 * getattr(text, "intermediate_size", 4 * text.hidden_size))
    )
    logits = (3 * itemsize + FLOAT_BYTES) * text.vocab_size / max_new_tokens
    return max(max_new_tokens + 1, int((0.9 * free_bytes - work) / (bytes_per_token(config, itemsize) + logits)))


class Decoder:
    """Answers batches of prompts greedily with one model.

    Args:
        model: a causal language model that `unsupported` has nothing against, LoRA layers in it or not.
        stop_ids: end tokens.
        pad_id: fills rows.
        max_new_tokens: of an answer, its end token included.
        graphs: capture CUDA graphs; needs a CUDA device.
    """

    def __init__(self, model: Any, stop_ids: Sequence[int], pad_id: int, max_new_tokens: int, *, graphs: bool = False):
        self.model, self.pad_id, self.max_new_tokens, self.graphs = model, pad_id, max_new_tokens, graphs
        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.dtype
        self.stops = torch.tensor(sorted(stop_ids), device=self.device, dtype=torch.long)
        config = model.config.get_text_config(decoder=True)
        self.longest: int = getattr(config, "sliding_window", None) or 2**31
        """Number of tokens from which a sliding window would differ from the full attention used here."""
        self._side: Any = None
        """Reused after a release: cuBLAS keeps a workspace for every stream that it ever ran on."""
        self.graph_problem = ""
        """The reason why steps are no longer captured, if any."""
        self._last_only = (
            {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
        )
        kernels.group_attention(model)
        self._memory = Memory(config.num_hidden_layers)
        self.release()

    def fits(self, width: int) -> bool:
        """Whether prompts of this many tokens can be answered."""
        return width + self.max_new_tokens <= self.longest

    def check(self) -> None:
        """Generates a short test answer without graphs; raises the model's error if it cannot use this cache and these masks."""
        whole = self.max_new_tokens, self.graphs
        self.max_new_tokens, self.graphs = 2, False
        try:
            self.generate([[self.pad_id] * 3, [self.pad_id]])
        finally:
            self.max_new_tokens, self.graphs = whole
            self.release()

    def release(self) -> None:
        """Frees the cache and the graphs."""
        self._states: dict[tuple[int, int], _State] = {}
        self._pool: Any = None
        self._memory.reserve(0)

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Sequence[int]]) -> list[Generated]:
        """The answers in the prompts' order, each up to its end token (included) or `max_new_tokens`.

        Raises:
            torch.OutOfMemoryError: `release` first, then try fewer prompts.
        """
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        answers: list[Generated] = [([], []) for _ in prompts]
        width = len(prompts[order[0]])
        length = -(-(width + self.max_new_tokens) // LENGTH_STEP) * LENGTH_STEP
        state = self._state(self._rows(len(prompts)), length)
        self._prefill(state, [prompts[i] for i in order])
        owners = dict(enumerate(order))
        for step in range(1, self.max_new_tokens):
            if step % CHECK_STEPS == 0:
                alive = [row for row in (~state.finished).nonzero()[:, 0].tolist() if row in owners]
                if not alive:
                    break
                if (rows := self._fewer(state.rows, len(alive))) < state.rows:
                    self._collect(
                        state, {row: owner for row, owner in owners.items() if row not in set(alive)}, answers
                    )
                    owners = {row: owners[old] for row, old in enumerate(alive)}
                    state = self._moved(state, alive, rows)
            self._step(state)
        self._collect(state, owners, answers)
        return answers

    @torch.inference_mode()
    def stream(self, prompt: Sequence[int]) -> Iterator[tuple[int, float]]:
        """Streams one answer: each token, including the end token, with the natural logarithm of its probability. Without graphs."""
        state = self._state(1, -(-(len(prompt) + self.max_new_tokens) // LENGTH_STEP) * LENGTH_STEP)
        self._prefill(state, [prompt])
        for at in range(self.max_new_tokens):
            yield int(state.tokens[0, 0]), float(state.logprobs[0, at])
            if at + 1 == self.max_new_tokens or bool(state.finished[0]):
                return
            self._forward(state)

    def _rows(self, n: int) -> int:
        """Padded number of rows for a batch of `n`: a few sizes, so that graphs are captured once."""
        if not self.graphs:
            return n
        return 1 << (n - 1).bit_length() if n <= 8 else -(-n // 8) * 8

    def _fewer(self, rows: int, n: int) -> int:
        """Rows to continue with when `n` of `rows` are left: `rows` halved as long as `n` fits, so that all batches use the same few sizes."""
        while n <= (half := self._rows(-(-rows // 2))) < rows:
            rows = half
        return rows

    def _state(self, rows: int, length: int) -> _State:
        if (rows, length) not in self._states:
            if rows * length > self._memory.positions or any(other != length for _, other in self._states):
                # Batches arrive longest prompts first, so the memory of another length is not needed again.
                self._states.clear()
                self._memory.reserve(rows * length)
            self._states[rows, length] = _State(rows, length, self.max_new_tokens, self.pad_id, self.device, self.dtype)
        return self._states[rows, length]

    def _prefill(self, state: _State, prompts: list[Sequence[int]]) -> None:
        """Computes prompts (longest first) and chooses each one's first token."""
        width, lengths = len(prompts[0]), [len(p) for p in prompts]
        state.begin(width, lengths)
        first = 0
        chosen, chances = state.tokens[:, 0].clone(), torch.zeros(state.rows, device=self.device, dtype=torch.float32)
        while first < len(prompts):
            wide = lengths[first]
            last = min(len(prompts), first + max(1, PREFILL_TOKENS // wide))
            ids = torch.tensor(
                [[self.pad_id] * (wide - len(p)) + list(p) for p in prompts[first:last]], device=self.device
            )
            pads = torch.tensor([[wide - n] for n in lengths[first:last]], device=self.device)
            columns = torch.arange(wide, device=self.device)
            # Padding attends to itself: the softmax of a fully masked row would be NaN.
            seen = ((columns <= columns[:, None]) & (columns >= pads[:, None])) | (columns == columns[:, None])
            self._memory.begin_write(state, slice(first, last), slice(width - wide, width))
            output = self.model(
                input_ids=ids,
                attention_mask=_additive(seen[:, None], self.dtype),
                position_ids=(columns - pads).clamp(min=0),
                past_key_values=self._memory.cache,
                use_cache=True,
                **self._last_only,
            )
            chosen[first:last], chances[first:last] = choose(output.logits[:, -1])
            first = last
        state.accept(chosen, chances, self.stops, self.pad_id)

    def _forward(self, state: _State) -> None:
        """Generates one token for every row without synchronising with the device."""
        self._memory.begin_write(state)
        state.mask.index_fill_(3, state.column, 0)
        output = self.model(
            input_ids=state.tokens,
            attention_mask=state.mask,
            position_ids=state.positions,
            past_key_values=self._memory.cache,
            use_cache=True,
        )
        state.column += 1
        state.positions += 1
        state.accept(*choose(output.logits[:, -1]), self.stops, self.pad_id)

    def _step(self, state: _State) -> None:
        if not self.graphs or self.graph_problem:
            self._forward(state)
        elif state.graph is not None:
            state.graph.replay()
        elif not state.warm:
            # The first step of a shape runs as it is, on a separate stream: libraries set themselves up in it, which a capture does not allow.
            self._side = self._side or torch.cuda.Stream()
            self._side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._side):
                self._forward(state)
            torch.cuda.current_stream().wait_stream(self._side)
            state.warm = True
        else:
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                    self._forward(state)
            except RuntimeError as error:
                # An operation that cannot be captured, or no memory for another graph: run the same steps eagerly.
                torch.cuda.synchronize()
                self.graph_problem = " ".join(str(error).split())[:200]
                self._forward(state)
                return
            state.graph = graph
            graph.replay()

    def _moved(self, old: _State, alive: list[int], rows: int) -> _State:
        """The state of a smaller batch with these rows, in the same memory."""
        # Fill the smaller batch with finished rows, which stay finished.
        chosen = alive + [row for row in range(old.rows) if row not in set(alive)][: rows - len(alive)]
        index = torch.tensor(chosen, device=self.device)
        new = self._state(rows, old.length)
        self._memory.move(old, new, index)
        new.take(old, index)
        return new

    def _collect(self, state: _State, owners: dict[int, int], answers: list[Generated]) -> None:
        written, chances, stops = state.output.tolist(), state.logprobs.tolist(), set(self.stops.tolist())
        for row, owner in owners.items():
            ids = written[row]
            end = next((i for i, token in enumerate(ids) if token in stops), len(ids) - 1)
            answers[owner] = ids[: end + 1], chances[row][: end + 1]


class _State:
    """The state of a batch of `rows` rows on a cache of `length` columns; its tensors keep their addresses, which a CUDA graph reads."""

    def __init__(self, rows: int, length: int, new: int, pad_id: int, device: torch.device, dtype: torch.dtype):
        self.rows, self.length, self.pad_id = rows, length, pad_id
        self.tokens = torch.full((rows, 1), pad_id, device=device)
        self.positions = torch.zeros((rows, 1), dtype=torch.long, device=device)
        self.column = torch.zeros(1, dtype=torch.long, device=device)
        self.written = torch.zeros(1, dtype=torch.long, device=device)
        self.mask = torch.zeros((rows, 1, 1, length), dtype=dtype, device=device)
        self.finished = torch.zeros(rows, dtype=torch.bool, device=device)
        self.output = torch.full((rows, new), pad_id, device=device)
        self.logprobs = torch.zeros((rows, new), device=device, dtype=torch.float32)
        self.warm = False
        self.graph: Any = None

    def begin(self, width: int, lengths: list[int]) -> None:
        """A new batch, its prompts ending at column `width`; rows beyond the prompts have finished."""
        device = self.tokens.device
        pads = torch.tensor([width - n for n in lengths] + [width] * (self.rows - len(lengths)), device=device)[:, None]
        columns = torch.arange(self.length, device=device)
        self.mask.copy_(_additive((columns >= pads) & (columns < width), self.mask.dtype)[:, None, None])
        self.positions.copy_(width - pads)
        self.column.fill_(width)
        self.written.zero_()
        self.output.fill_(self.pad_id)
        self.finished.copy_(torch.arange(self.rows, device=device) >= len(lengths))

    def take(self, other: _State, index: torch.Tensor) -> None:
        """Continues from these rows of another state."""
        for name in ("tokens", "positions", "mask", "finished", "output", "logprobs"):
            getattr(self, name).copy_(getattr(other, name)[index])
        self.column.copy_(other.column)
        self.written.copy_(other.written)

    def accept(self, chosen: torch.Tensor, chances: torch.Tensor, stops: torch.Tensor, pad_id: int) -> None:
        """Records the tokens chosen for all rows and their log-probabilities (both of shape (rows,)); finished rows get padding."""
        chosen = chosen.masked_fill(self.finished, pad_id)[:, None]
        self.output.index_copy_(1, self.written, chosen)
        self.logprobs.index_copy_(1, self.written, chances[:, None])
        self.finished |= (chosen == stops).any(1)
        self.tokens.copy_(chosen)
        self.written += 1


def greedy(logits: torch.Tensor) -> torch.Tensor:
    """The most probable token of each row; widening 16-bit logits first, as `generate` does, changes no comparison."""
    return logits.argmax(-1)


def choose(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The most probable token of each row and the natural logarithm of its probability in float32, both of shape (rows,)."""
    chosen, wide = greedy(logits), logits.float()
    return chosen, wide.gather(1, chosen[:, None])[:, 0] - wide.logsumexp(-1)


def _additive(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A mask to add to scores: 0 where `seen`, the dtype's least number elsewhere."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min)
