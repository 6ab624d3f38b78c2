"""The pairs of the family: shapes by name, twelve that are fixed and others that a seed draws."""

import random
from dataclasses import dataclass, replace

RATIOS = (4, 6, 14, 40, 85)
ACCEPTANCES = (0.5, 0.63, 0.78, 0.9)
_VOCAB = 8192
_LARGE_VOCAB = 65_536
_HEAD_DIM = 64
_UNIT = 64
"""The sizes of MLPs are multiples of this."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A pair of Llama models of one width: the target begins with the draft's layers."""

    name: str
    width: int
    num_heads: int
    num_kv_heads: int
    draft_layers: int
    draft_neurons: int
    """Neurons of the MLP of each of the draft's layers."""
    target_layers: int
    target_neurons: int
    acceptance: float
    """Probability, greedy, that a proposed token is accepted, given that all before it were."""
    vocab_size: int = _VOCAB
    tied: bool = True
    """Whether the output projection is the embedding."""
    seed: int = 0

    @property
    def head_dim(self) -> int:
        """Elements of one head."""
        return self.width // self.num_heads

    @property
    def draft_weights(self) -> int:
        """Weights that a step of the draft reads: the layers' and the output projection's."""
        return self._weights(self.draft_layers, self.draft_neurons)

    @property
    def target_weights(self) -> int:
        """Weights that a step of the target reads."""
        return self._weights(self.target_layers, self.target_neurons)

    @property
    def ratio(self) -> float:
        """Bytes of weights that a step of the target reads, relative to the draft's, at equal precision."""
        return self.target_weights / self.draft_weights

    def _weights(self, layers: int, neurons: int) -> int:
        attention = 2 * self.width * self.head_dim * (self.num_heads + self.num_kv_heads)
        return layers * (attention + 3 * self.width * neurons) + self.vocab_size * self.width


_W1024 = Shape("", 1024, 16, 4, 2, 2816, 16, 2816, 0.78)
FIXED = (
    replace(_W1024, name="4-50", width=768, num_heads=12, draft_layers=3, target_layers=15, acceptance=0.5,
            draft_neurons=2048, target_neurons=2048),
    Shape("4-78-vocab64k", 512, 8, 4, 1, 1408, 16, 4096, 0.78, vocab_size=_LARGE_VOCAB),
    Shape("4-90-untied", 1024, 16, 16, 2, 2816, 10, 2816, 0.9, tied=False),
    replace(_W1024, name="6-50", acceptance=0.5),
    Shape("6-63-untied", 768, 12, 12, 2, 2048, 14, 2560, 0.63, tied=False),
    replace(_W1024, name="6-78"),
    Shape("6-90-vocab64k", 512, 8, 2, 2, 1408, 24, 5120, 0.9, vocab_size=_LARGE_VOCAB, tied=False),
    Shape("14-63", 768, 12, 4, 1, 2048, 27, 2048, 0.63),
    Shape("14-78", 768, 12, 4, 1, 2048, 27, 2048, 0.78),
    Shape("40-50", 512, 8, 1, 1, 512, 20, 6656, 0.5),
    Shape("40-78", 512, 8, 4, 1, 512, 20, 6656, 0.78),
    Shape("85-78", 256, 4, 2, 1, 512, 24, 11_776, 0.78),
)  # fmt: skip


def find_shape(name: str) -> Shape:
    """The fixed pair of a name, or the one that "drawn-SEED-NUMBER" names. Raises ValueError where there is none."""
    for shape in FIXED:
        if shape.name == name:
            return shape
    kind, _, rest = name.partition("-")
    seed, _, number = rest.partition("-")
    if kind == "drawn" and seed.isdigit() and number.isdigit():
        return draw(int(seed), int(number) + 1)[-1]
    raise ValueError(f"there is no pair {name!r}; there are {', '.join(shape.name for shape in FIXED)}, drawn-SEED-N")


def draw(seed: int, count: int) -> list[Shape]:
    """Pairs that a seed chooses, the same ones on every machine."""
    rng = random.Random(seed)
    return [_draw(rng, f"drawn-{seed}-{number}", seed * 1000 + number + 1) for number in range(count)]


def _draw(rng: random.Random, name: str, seed: int) -> Shape:
    ratio = rng.choice(RATIOS)
    large = ratio < 14 and rng.random() < 0.4
    width = 512 if large else rng.choice((256, 384) if ratio > 40 else (512, 640) if ratio > 14 else (768, 1024))
    heads = width // _HEAD_DIM
    kv_heads = rng.choice([count for count in (1, 2, 4, heads) if heads % count == 0])
    layers = 1 if ratio > 6 else rng.choice((1, 2, 3))
    shape = Shape(
        name=name,
        width=width,
        num_heads=heads,
        num_kv_heads=kv_heads,
        draft_layers=layers,
        draft_neurons=_UNIT * rng.randint(8, 12) if ratio > 14 else width * rng.choice((2, 3)),
        target_layers=rng.randint(16, 24) if ratio > 14 else min(28, max(10, int(ratio * layers))),
        target_neurons=_UNIT,
        acceptance=rng.choice(ACCEPTANCES),
        vocab_size=_LARGE_VOCAB if large else _VOCAB,
        tied=rng.random() < 0.5,
        seed=seed,
    )
    missing = (ratio * shape.draft_weights - shape.target_weights) / (3 * width * shape.target_layers)
    # The target has the draft's layers in it: it is at least as wide as they are.
    neurons = max(shape.draft_neurons, _UNIT + round(missing / _UNIT) * _UNIT)
    return replace(shape, target_neurons=neurons)
