"""A tiny random BLIP, which says something of every picture, and always the same of the same picture."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import BertTokenizerFast, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]")
WORDS = ("a", "cat", "dog", "house", "on", "the", "hill", "red", "blue", "tree", "sea", "with", "of", "boat", "sun")
SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def save_tiny_blip(folder: Path) -> Path:
    """Save it, and give the folder."""
    folder.mkdir(parents=True)
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join([*SPECIAL, *WORDS]), encoding="utf-8")
    tokenizer = BertTokenizerFast(str(vocabulary), bos_token="[DEC]")
    ids = dict(zip(SPECIAL, tokenizer.convert_tokens_to_ids(list(SPECIAL)), strict=True))
    text = {
        **SMALL, "vocab_size": len(tokenizer), "encoder_hidden_size": 16, "max_position_embeddings": 64,
        "bos_token_id": ids["[DEC]"], "eos_token_id": ids["[SEP]"], "sep_token_id": ids["[SEP]"],
        "pad_token_id": ids["[PAD]"],
    }  # fmt: skip
    torch.manual_seed(1)
    model = BlipForConditionalGeneration(
        BlipConfig(text_config=text, vision_config={**SMALL, "image_size": 32, "patch_size": 8}, projection_dim=16)
    )
    model.save_pretrained(folder)
    BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return folder
