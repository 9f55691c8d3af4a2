"""What the tiny models are made of: configuration, tokenizer, processor, initialisation; trained by other files."""

from __future__ import annotations

import math
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from prismlens.data.drawing import COLORS, SHAPES
from prismlens.data.shapes import RELATIONS
from prismlens.models.config import LVRConfig
from prismlens.models.lvr import LVRForConditionalGeneration
from prismlens.models.processor import END, LATENT_END, SLOT, START, LVRProcessor, token_id

PATCH = 7
"""Pixels of a patch's side; two by two patches are merged, so an image token covers 14 x 14 pixels."""

SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>", START, SLOT, LATENT_END, END, "<|ctx_start|>", "<|ctx_end|>", "<|free_start|>", "<|free|>",
    "<|free_end|>", "<|tgt_start|>", "<|tgt_end|>",
)  # fmt: skip
"""Control tokens, ids 0, 1, 2, ... in this order; the last seven are for models with several stages."""

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE in which every word of the scenes' questions is one token, and any other text still encodes."""
    words = [*COLORS, *SHAPES, *RELATIONS.values()]
    corpus = [
        "user\nassistant\n",
        *(f"What is the color of the {w}?\nWhat is the shape of the {w} object?\n" for w in words),
        *(f"Where is the {w} relative to the {w}?\n(A) {w} (B) {w} (C) {w} (D) {w}\n{w}" for w in words),
    ]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=1000, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(corpus, trainer)
    bpe.add_tokens(["<answer>", "</answer>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>", clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tiny_processor(*, start: bool) -> LVRProcessor:
    """The processor of the tiny models: 7-pixel patches, images between 36 and 100 tokens."""
    size = {"shortest_edge": 84 * 84, "longest_edge": 140 * 140}
    pixels = Qwen2VLImageProcessorPil(patch_size=PATCH, merge_size=2, temporal_patch_size=2, size=size)
    return LVRProcessor(pixels, tiny_tokenizer(), start=start)


def tiny_config(tokenizer: PreTrainedTokenizerFast, *, width: int = 128, layers: int = 4, **latent: Any) -> LVRConfig:
    """The configuration of the tiny models: real Qwen2.5-VL with grouped queries, small everywhere."""
    ids = {token: token_id(tokenizer, token) for token in SPECIAL}
    head = 32
    text = {
        "vocab_size": len(tokenizer), "hidden_size": width, "intermediate_size": 3 * width,
        "num_hidden_layers": layers, "num_attention_heads": width // head, "num_key_value_heads": width // head // 2,
        "max_position_embeddings": 1024, "rms_norm_eps": 1e-6, "bos_token_id": None,
        "eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|endoftext|>"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
    }  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 64, "intermediate_size": 192, "num_heads": 4, "patch_size": PATCH,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 8 * PATCH, "out_hidden_size": width,
        "fullatt_block_indexes": [0, 1],
    }  # fmt: skip
    return LVRConfig(
        text_config=text, vision_config=vision, image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"], vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"], tie_word_embeddings=True, lvr_start_id=ids[START],
        lvr_id=ids[SLOT], lvr_latent_end_id=ids[LATENT_END], lvr_end_id=ids[END], **latent,
    )  # fmt: skip


@torch.no_grad()
def initialise(model: LVRForConditionalGeneration, seed: int) -> None:
    """Draw all weights anew: N(0, 1/fan_in) for linear layers, x 0.4 where they write to the residual stream,
    N(0, 0.1^2) for embeddings. transformers' 0.02 for everything is too small for these widths to learn."""
    generator = torch.Generator().manual_seed(seed)
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv3d)):
            if module is model.lm_head:
                continue
            scale = 0.4 if name.endswith(("o_proj", "down_proj", "attn.proj")) else 1.0
            fan_in = module.weight[0].numel()
            module.weight.normal_(0, scale / math.sqrt(fan_in), generator=generator)
            if module.bias is not None:
                module.bias.zero_()
    model.model.language_model.embed_tokens.weight.normal_(0, 0.1, generator=generator)
    model.tie_weights()
