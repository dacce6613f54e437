"""What can be removed from each transformer of the collection, as its configuration says. Knows no torch.

Heads and neurons of the layers alone: convolutions beside them and networks that compute position biases come on top.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Stack:
    """Layers of one shape.

    Attributes:
        layers: how many there are.
        heads: query heads of each attention.
        kv_heads: its key and value heads; a group of query heads leaves with its key and value head.
        neurons: hidden units of each feed-forward part; channels of the state-space mixer where there is none.
        attentions: attentions per layer, two in decoders that look at an encoder.
    """

    layers: int
    heads: int
    kv_heads: int
    neurons: int
    attentions: int = 1

    @property
    def head_units(self) -> int:
        """Groups of heads that can be removed, over all layers."""
        return self.layers * self.attentions * self.kv_heads

    @property
    def neuron_units(self) -> int:
        """Neurons that can be removed, over all layers."""
        return self.layers * self.neurons


def _plain(layers: int, heads: int, neurons: int, attentions: int = 1) -> Stack:
    """Layers whose query heads have a key and value head each."""
    return Stack(layers, heads, heads, neurons, attentions)


def _stages(layers: Iterable[int], heads: Iterable[int], widths: Iterable[int]) -> tuple[Stack, ...]:
    """Stages of a hierarchical vision transformer, whose neurons are four times its width."""
    return tuple(_plain(*stage[:2], 4 * stage[2]) for stage in zip(layers, heads, widths, strict=True))


_GROUPED = (Stack(layers=2, heads=8, kv_heads=2, neurons=200),)

EXPECTED: dict[str, tuple[Stack, ...]] = {
    # full size
    "bert_base": (_plain(12, 12, 3072),),
    "gpt2": (_plain(12, 12, 3072),),
    "whisper_tiny_encoder": (_plain(4, 6, 1536),),
    "whisper_tiny_decoder": (_plain(4, 6, 1536, attentions=2),),
    "t5_small_encoder": (_plain(6, 8, 2048),),
    "t5_small_decoder": (_plain(6, 8, 2048, attentions=2),),
    # vision
    "vit_b_16": (_plain(12, 12, 3072),),
    "vit_tiny_patch16_224": (_plain(12, 3, 768),),
    "swin_t": _stages((2, 2, 6, 2), (3, 6, 12, 24), (96, 192, 384, 768)),
    "swin_v2_t": _stages((2, 2, 6, 2), (3, 6, 12, 24), (96, 192, 384, 768)),
    "swin_tiny_patch4_window7_224": _stages((2, 2, 6, 2), (3, 6, 12, 24), (96, 192, 384, 768)),
    # a layer here is one attention, in windows or on a grid, with its feed-forward part: two of them to a block
    "maxvit_t": _stages((4, 4, 10, 4), (2, 4, 8, 16), (64, 128, 256, 512)),
    "maxvit_tiny_tf_224": _stages((4, 4, 10, 4), (2, 4, 8, 16), (64, 128, 256, 512)),
    "maxvit_rmlp_pico_rw_256": _stages((4, 4, 10, 4), (1, 2, 4, 8), (32, 64, 128, 256)),
    # small
    "bert": (_plain(2, 4, 200),),
    "distilbert": (_plain(2, 4, 200),),
    "gpt2_mini": (_plain(2, 4, 200),),
    "phi": (_plain(2, 4, 200),),
    "phi3": _GROUPED,
    "llama": _GROUPED,
    "mistral": _GROUPED,
    "gemma": _GROUPED,
    "gemma2": _GROUPED,
    "qwen2": _GROUPED,
    "qwen3": _GROUPED,
    "t5_encoder": (_plain(2, 4, 200),),
    "t5_decoder": (_plain(2, 4, 200, attentions=2),),
    "whisper_encoder": (_plain(2, 4, 200),),
    "whisper_decoder": (_plain(2, 4, 200, attentions=2),),
    "vit": (_plain(2, 4, 200),),
    "clip": (_plain(2, 4, 200), _plain(3, 6, 232)),
    "wav2vec2": (_plain(2, 4, 200),),
    "mamba": (Stack(layers=2, heads=0, kv_heads=0, neurons=136, attentions=0),),
}
"""Model -> its stacks: the encoder or the decoder, the stages, the text and the image tower."""
