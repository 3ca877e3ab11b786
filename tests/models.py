"""Tiny untrained models of the real classes."""

from __future__ import annotations

from pathlib import Path


def build_clip(out: Path, *, tokenizer: Path) -> None:
    """Write a random CLIPModel with its processor; it reads text with another model's tokenizer."""
    import torch
    from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor

    torch.manual_seed(0)
    read = AutoTokenizer.from_pretrained(tokenizer, model_max_length=32)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={
            **small,
            "vocab_size": len(read),
            "max_position_embeddings": 32,
            "eos_token_id": read.eos_token_id,
            "bos_token_id": read.eos_token_id,
            "pad_token_id": read.pad_token_id,
        },
        vision_config={**small, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    CLIPModel(config).save_pretrained(out)
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(image_processor=images, tokenizer=read).save_pretrained(out)


def build_llava_next(out: Path, *, tokenizer: Path, saved_before_4_46: bool = False) -> None:
    """Write a random LlavaNextForConditionalGeneration with its processor and the markers of Llama 3's format.

    It reads text with another model's tokenizer. Old processors do not say how many tokens an image takes.
    """
    import torch
    from transformers import (
        AutoTokenizer,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextImageProcessor,
        LlavaNextProcessor,
    )

    torch.manual_seed(0)
    read = AutoTokenizer.from_pretrained(tokenizer)
    read.add_special_tokens(
        {"additional_special_tokens": ["<image>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]}
    )
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    grid = [[32, 64], [64, 32], [64, 64]]
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**small, image_size=32, patch_size=8),
        text_config=LlamaConfig(
            **small,
            num_key_value_heads=2,
            vocab_size=len(read),
            initializer_range=0.2,
            pad_token_id=read.pad_token_id,
        ),
        image_token_index=read.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=grid,
    )
    LlavaNextForConditionalGeneration(config).save_pretrained(out)
    images = LlavaNextImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_grid_pinpoints=grid
    )
    said = {} if saved_before_4_46 else {"patch_size": 8, "num_additional_image_tokens": 1}
    strategy = None if saved_before_4_46 else "default"
    LlavaNextProcessor(images, read, vision_feature_select_strategy=strategy, **said).save_pretrained(out)
