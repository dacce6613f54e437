"""Every kind of transformer in small: few layers and narrow, so that files and runs are small, but with every trait.

Widths differ from each other wherever the architecture lets them, so that one cannot pass for another. The numbers
of layers, heads and neurons are those of `EXPECTED`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from .case import Case, named, tokens
from .expected import EXPECTED

WIDTH, WIDE, HEAD = 64, 128, 24
"""Widths of the residual stream, with 4 and 8 heads; width of a head where it may differ from width / heads."""

VOCABULARY = 1000
SPREAD = 0.1
"""Standard deviation of weights: 0.02, the usual one, is for streams ten times as wide, and silences narrow ones."""

NO_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def _encoder_config(name: str) -> dict[str, Any]:
    """A configuration in the words that most architectures use."""
    (stack,) = EXPECTED[name]
    return {
        "hidden_size": WIDTH,
        "num_hidden_layers": stack.layers,
        "num_attention_heads": stack.heads,
        "intermediate_size": stack.neurons,
        "initializer_range": SPREAD,
    }


def _bert() -> Case:
    from transformers import BertConfig, BertModel

    config = BertConfig(vocab_size=VOCABULARY, max_position_embeddings=48, **_encoder_config("bert"))
    return tokens(BertModel(config), ["last_hidden_state", "pooler_output"])


def _distilbert() -> Case:
    from transformers import DistilBertConfig, DistilBertModel

    (stack,) = EXPECTED["distilbert"]
    config = DistilBertConfig(
        vocab_size=VOCABULARY, max_position_embeddings=48, dim=WIDTH, n_layers=stack.layers, n_heads=stack.heads,
        hidden_dim=stack.neurons, initializer_range=SPREAD,
    )  # fmt: skip
    return tokens(DistilBertModel(config), ["last_hidden_state"])


def _gpt2() -> Case:
    from transformers import GPT2Config, GPT2LMHeadModel

    (stack,) = EXPECTED["gpt2_mini"]
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=48, n_embd=WIDTH, n_layer=stack.layers, n_head=stack.heads,
        n_inner=stack.neurons, initializer_range=SPREAD, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return tokens(GPT2LMHeadModel(config), ["logits"], use_cache=False)


def _decoder(name: str, prefix: str, **options: Any) -> Case:
    """A decoder of the Llama kind."""
    import transformers

    (stack,) = EXPECTED[name]
    given = {
        **_encoder_config(name),
        **NO_TOKENS,
        "hidden_size": WIDE if stack.heads > stack.kv_heads else WIDTH,
        "vocab_size": VOCABULARY,
        "num_key_value_heads": stack.kv_heads,
        "max_position_embeddings": 48,
        **options,
    }
    config = getattr(transformers, f"{prefix}Config")(**given)
    return tokens(getattr(transformers, f"{prefix}ForCausalLM")(config), ["logits"], use_cache=False)


def _t5(name: str) -> tuple[Any, Any]:
    from transformers import T5Config, T5Model

    (stack,) = EXPECTED[name]
    config = T5Config(
        vocab_size=VOCABULARY, d_model=WIDTH, d_kv=HEAD, d_ff=stack.neurons, num_layers=stack.layers,
        num_heads=stack.heads,
    )  # fmt: skip
    return config, T5Model(config)


def _t5_encoder() -> Case:
    return tokens(_t5("t5_encoder")[1].encoder, ["last_hidden_state"])


def _t5_decoder() -> Case:
    return tokens(_t5("t5_decoder")[1].decoder, ["last_hidden_state"], source=WIDTH, use_cache=False)


def _whisper(name: str) -> Any:
    from transformers import WhisperConfig, WhisperModel

    (stack,) = EXPECTED[name]
    return WhisperModel(
        WhisperConfig(
            vocab_size=VOCABULARY, num_mel_bins=20, d_model=WIDTH, encoder_layers=stack.layers,
            decoder_layers=stack.layers, encoder_attention_heads=stack.heads, decoder_attention_heads=stack.heads,
            encoder_ffn_dim=stack.neurons, decoder_ffn_dim=stack.neurons, max_source_positions=50,
            max_target_positions=48, init_std=SPREAD, decoder_start_token_id=1, **NO_TOKENS,
        )
    )  # fmt: skip


def _whisper_encoder() -> Case:
    features = {"input_features": torch.randn(2, 20, 100)}
    return named(_whisper("whisper_encoder").encoder, features, ["last_hidden_state"])


def _whisper_decoder() -> Case:
    return tokens(_whisper("whisper_decoder").decoder, ["last_hidden_state"], source=WIDTH, use_cache=False)


def _vit() -> Case:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(image_size=32, patch_size=8, num_labels=10, **_encoder_config("vit"))
    return named(ViTForImageClassification(config), {"pixel_values": torch.randn(2, 3, 32, 32)}, ["logits"])


def _clip() -> Case:
    from transformers import CLIPConfig, CLIPModel

    towers = [
        {"hidden_size": width, "num_hidden_layers": stack.layers, "num_attention_heads": stack.heads,
         "intermediate_size": stack.neurons, "projection_dim": 56}
        for stack, width in zip(EXPECTED["clip"], (WIDTH, 96), strict=True)
    ]  # fmt: skip
    text = {"vocab_size": VOCABULARY, "max_position_embeddings": 48, **NO_TOKENS, **towers[0]}
    image = {"image_size": 32, "patch_size": 8, **towers[1]}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=image, projection_dim=56))
    inputs = tokens(model, []).inputs | {"pixel_values": torch.randn(3, 3, 32, 32)}
    words = {0: "texts", 1: "sequence"}
    dynamic = {"input_ids": words, "attention_mask": words, "pixel_values": {0: "images"}}
    return named(model, inputs, ["logits_per_image", "text_embeds", "image_embeds"], dynamic)


def _wav2vec2() -> Case:
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    config = Wav2Vec2Config(
        vocab_size=40, conv_dim=(32,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
        **_encoder_config("wav2vec2"),
    )  # fmt: skip
    axes = {"input_values": {0: "batch", 1: "samples"}}
    return named(Wav2Vec2ForCTC(config), {"input_values": torch.randn(2, 4000)}, ["logits"], axes)


def _mamba() -> Case:
    """The scan is a loop in Python, hence the length is fixed; steps are long, or the states would hardly matter."""
    from transformers import MambaConfig, MambaForCausalLM

    (stack,) = EXPECTED["mamba"]
    config = MambaConfig(
        vocab_size=VOCABULARY, hidden_size=stack.neurons // 2, expand=2, num_hidden_layers=stack.layers,
        state_size=12, time_step_rank=6, time_step_min=0.1, time_step_max=1.0, **NO_TOKENS,
    )  # fmt: skip
    inputs = {"input_ids": torch.randint(1, VOCABULARY, (2, 6))}
    return named(MambaForCausalLM(config), inputs, ["logits"], use_cache=False)


CASES: dict[str, Callable[[], Case]] = {
    "bert": _bert,
    "distilbert": _distilbert,
    "gpt2_mini": _gpt2,
    "llama": partial(_decoder, "llama", "Llama"),
    "mistral": partial(_decoder, "mistral", "Mistral", sliding_window=8),
    "phi": partial(_decoder, "phi", "Phi"),
    "phi3": partial(_decoder, "phi3", "Phi3"),
    "gemma": partial(_decoder, "gemma", "Gemma", head_dim=HEAD),
    "gemma2": partial(_decoder, "gemma2", "Gemma2", head_dim=HEAD, sliding_window=8),
    "qwen2": partial(_decoder, "qwen2", "Qwen2"),
    "qwen3": partial(_decoder, "qwen3", "Qwen3", head_dim=HEAD),
    "t5_encoder": _t5_encoder,
    "t5_decoder": _t5_decoder,
    "whisper_encoder": _whisper_encoder,
    "whisper_decoder": _whisper_decoder,
    "vit": _vit,
    "clip": _clip,
    "wav2vec2": _wav2vec2,
    "mamba": _mamba,
}
