"""Transformers at the size that people use: what cleaning and speed are measured on."""

from collections.abc import Callable

import torch

from .case import Case, named, tokens


def _bert_base() -> Case:
    from transformers import BertConfig, BertModel

    return tokens(BertModel(BertConfig()), ["last_hidden_state", "pooler_output"])


def _gpt2() -> Case:
    from transformers import GPT2Config, GPT2LMHeadModel

    return tokens(GPT2LMHeadModel(GPT2Config()), ["logits"], use_cache=False)


def _whisper_encoder() -> Case:
    from transformers import WhisperConfig, WhisperModel

    features = {"input_features": torch.randn(2, 80, 3000)}
    return named(WhisperModel(WhisperConfig()).encoder, features, ["last_hidden_state"])


def _whisper_decoder() -> Case:
    from transformers import WhisperConfig, WhisperModel

    config = WhisperConfig()
    return tokens(WhisperModel(config).decoder, ["last_hidden_state"], source=config.d_model, use_cache=False)


def _t5_encoder() -> Case:
    from transformers import T5Config, T5EncoderModel

    return tokens(T5EncoderModel(T5Config()), ["last_hidden_state"])


def _t5_decoder() -> Case:
    from transformers import T5Config, T5Model

    config = T5Config()
    return tokens(T5Model(config).decoder, ["last_hidden_state"], source=config.d_model, use_cache=False)


CASES: dict[str, Callable[[], Case]] = {
    "bert_base": _bert_base,
    "gpt2": _gpt2,
    "whisper_tiny_encoder": _whisper_encoder,
    "whisper_tiny_decoder": _whisper_decoder,
    "t5_small_encoder": _t5_encoder,
    "t5_small_decoder": _t5_decoder,
}
