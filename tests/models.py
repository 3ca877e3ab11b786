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
