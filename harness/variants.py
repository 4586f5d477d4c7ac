"""The variants of a model that a run compares: the base, the adapter, and every format that export writes.

One entry of `VARIANTS` holds all facts about a variant; lists elsewhere (config defaults, what export writes, what is compared with what, size
estimates, the gate's default limits, labels) are derived from it. A new GGUF type is one entry here and one in
`harness.formats.quantize.FILE_TYPES`. This module imports nothing of the harness.
"""

from __future__ import annotations

from dataclasses import dataclass

BASE = "base"
BASE_FEW_SHOT = "base_fewshot"
"""The base with some training questions, and their answers, in front of each question: what can be had without fine-tuning."""
UNTUNED = (BASE, BASE_FEW_SHOT)
"""Variants that answer without any training."""
ADAPTER = "adapter"
MERGED = "merged_16bit"
"""The 16-bit model: every other format is made from it and compared with it."""
GGUF = "gguf_"
"""Prefix of the names of GGUF files: `gguf_q8_0`."""
NF4_BITS = 4.15
"""Of a linear layer's weight: 4 bits, 8 for the scale of each 64 weights, and the scales' own scales (double quantisation; Dettmers et al. 2023,
arXiv 2305.14314, section 3)."""


@dataclass(frozen=True)
class Variant:
    """One variant, in the order of `VARIANTS`: as a model passes through the pipeline, GGUF files from the largest to the smallest."""

    name: str
    label: str
    """As people read it."""
    backend: str
    """Which of `harness.registry.BACKENDS` answers with it."""
    writer: str = ""
    """`module:function` that exports it (see `harness.formats`); empty: not exported."""
    compared_with: tuple[str, ...] = (BASE,)
    """Tested against these, where they answered."""
    default: bool = False
    """Exported and answered with unless the config says otherwise."""
    bits: float = 16
    """Bits of a weight on disk, the few tensors of more bits included, rounded up."""
    embedding_bits: float | None = None
    """Of embedding and output weights, where they differ from `bits`."""
    size_bound: float = 0
    """Largest size as a multiple of the 16-bit base's, for the check of free space before export."""
    is_leaf: bool = False
    """Made from MERGED, and compared with the adapter whose 4-bit base it is; no later format is compared with it."""
    max_loss: float | None = None
    """`gate.fidelity` by default: the most it may lose on a metric against MERGED."""
    max_divergence: float | None = None
    """`gate.divergence` by default: mean Kullback-Leibler divergence from MERGED, nats."""
    max_size_ratio: float | None = None
    """`gate.size_ratio` by default: its size as a multiple of the base's."""


def _gguf(
    kind: str,
    bits: float,
    size_bound: float,
    *,
    default: bool = False,
    max_loss: float | None = None,
    max_divergence: float | None = None,
    max_size_ratio: float | None = None,
) -> Variant:
    """A GGUF type. Bits by `harness.formats.quantize.tensor_type` at Llama-3 8B's shapes."""
    return Variant(
        name=f"{GGUF}{kind}",
        label=f"GGUF {kind.upper()}",
        backend="llamacpp",
        writer="harness.formats.gguf:export",
        compared_with=(BASE, ADAPTER, MERGED),
        default=default,
        bits=bits,
        size_bound=size_bound,
        max_loss=max_loss,
        max_divergence=max_divergence,
        max_size_ratio=max_size_ratio,
    )


_LIST = (
    Variant(BASE, "Base", "transformers", compared_with=(), default=True),
    Variant(BASE_FEW_SHOT, "Base, few-shot", "transformers"),
    Variant(ADAPTER, "Adapter", "transformers", default=True, max_divergence=0.1),
    Variant(
        MERGED,
        "Merged 16-bit",
        "transformers",
        writer="harness.formats.merged:export_16bit",
        compared_with=(BASE, ADAPTER),
        default=True,
        size_bound=1.05,
    ),
    Variant(
        "merged_4bit",
        "Merged 4-bit",
        "transformers",
        writer="harness.formats.merged:export_4bit",
        compared_with=(BASE, ADAPTER, MERGED),
        default=True,
        bits=NF4_BITS,
        embedding_bits=16,
        size_bound=0.6,
        is_leaf=True,
        max_loss=0.05,
        max_divergence=0.1,
    ),
    _gguf("f32", 32, 2.1),
    _gguf("f16", 16, 1.05, default=True, max_divergence=0.005, max_size_ratio=1.1),
    _gguf("q8_0", 8.53, 0.6, default=True, max_loss=0.02, max_divergence=0.005, max_size_ratio=0.7),
    _gguf("q6_k", 6.59, 0.5),
    _gguf("q5_k_m", 5.73, 0.45),
    _gguf("q5_0", 5.65, 0.45),
    _gguf("q4_k_m", 4.95, 0.4, default=True, max_loss=0.05, max_divergence=0.1, max_size_ratio=0.5),
    _gguf("q4_0", 4.75, 0.4),
    _gguf("iq4_xs", 4.5, 0.4),
    _gguf("q3_k_m", 4.15, 0.4),
    _gguf("q2_k", 3.31, 0.35),
)
VARIANTS: dict[str, Variant] = {variant.name: variant for variant in _LIST}


def exported() -> list[str]:
    """Every format that export can write."""
    return [name for name, variant in VARIANTS.items() if variant.writer]


def defaults() -> list[str]:
    """The variants that answer by default."""
    return [name for name, variant in VARIANTS.items() if variant.default]


def limits(fact: str) -> dict[str, float]:
    """Variant -> `max_loss`, `max_divergence` or `max_size_ratio`, of those that have one."""
    return {name: value for name, variant in VARIANTS.items() if (value := getattr(variant, fact)) is not None}


def is_gguf(name: str) -> bool:
    """Whether this is the name of a GGUF file that export writes (or that another version of the harness wrote)."""
    return name.startswith(GGUF)


def is_exported(name: str) -> bool:
    """Whether this is a format made from the adapter."""
    return bool(VARIANTS[name].writer) if name in VARIANTS else is_gguf(name)


def is_reserved(name: str) -> bool:
    """Whether a name is reserved, so that no further model may have it: `manifest` is the list of variants in the folder of predictions."""
    return name in VARIANTS or is_gguf(name) or name == "manifest"


def compared_with(name: str) -> tuple[str, ...]:
    """What a variant is tested against; a further model against the base."""
    return VARIANTS[name].compared_with if name in VARIANTS else (BASE, ADAPTER, MERGED) if is_gguf(name) else (BASE,)


def pairs(names: list[str], further: frozenset[str] | set[str] = frozenset()) -> list[tuple[str, str]]:
    """(left, right) of everything that is tested among `names`: all against the base, then what else each is compared with.

    Args:
        further: names of the user's own models: tested against the base; an adapter put on another base than the run's against that one, which
            `harness evaluate` adds as NAME.base. Without the run's base, the first of them takes its place. Where the base answered with few-shot
            examples too, what represents fine-tuning, and each of the user's own models, is tested against that as well.
    """
    elsewhere = [name for name in names if name in further]
    reference = BASE if BASE in names else elsewhere[0] if len(elsewhere) == len(names) else None
    found = [(name, reference) for name in names if reference and name != reference]
    found += [(name, f"{name}.{BASE}") for name in elsewhere]
    found += [
        (left, right)
        for right in (ADAPTER, MERGED)
        for left in names
        if left not in further and right in compared_with(left)
    ]
    elsewhere = [name for name in elsewhere if not name.endswith(f".{BASE}")]
    found += [(name, BASE_FEW_SHOT) for name in dict.fromkeys([tuned(names), *elsewhere]) if name]
    return [(left, right) for left, right in dict.fromkeys(found) if right in names]


def label(name: str) -> str:
    """A variant's name as people write it: `gguf_q4_k_m` is `GGUF Q4_K_M`, a further model's name is itself."""
    if name in VARIANTS:
        return VARIANTS[name].label
    return f"GGUF {name.removeprefix(GGUF).upper()}" if is_gguf(name) else name


def order(name: str) -> tuple[int, str]:
    """Sort key: the variants in the order of the pipeline, then all others by name."""
    known = list(VARIANTS)
    return (known.index(name), "") if name in VARIANTS else (len(known), name)


def tuned(names: list[str]) -> str | None:
    """The variant that represents fine-tuning: as trained where it answered, else the first that kept 16 bits, else any but the base."""
    others = [name for name in names if name not in UNTUNED]
    faithful = [name for name, variant in VARIANTS.items() if variant.bits >= 16 and name in others]
    return faithful[0] if faithful else others[0] if others else None
