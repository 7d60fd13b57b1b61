"""The embedded CLIP (Radford et al. 2021): a small transformers' CLIPModel, contrastive, on pictures and captions.

Its text tower becomes the diffusion model's text encoder, its image tower the CLIP baseline. It sees every picture but
those of the held-out objects ("pretrain" split).
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, trainers
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

from guda_core.data.captions import StyleCaptions, draw
from guda_core.data.dataset import Item, Pictures, described
from guda_core.diffusion.pixels import to_unit
from guda_core.records import GroupSet
from guda_core.unlearning.loop import LoopConfig, Progress, run


@dataclass(frozen=True)
class ClipConfig:
    """Sizes of the two towers. max_tokens: longest prompt. vocabulary: entries of the byte-pair encoding."""

    vocabulary: int = 3000
    max_tokens: int = 32
    text_width: int = 128
    text_layers: int = 4
    image_width: int = 144
    image_layers: int = 5
    patch: int = 8
    projection: int = 128
    shift: int = 4
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(steps=800, batch=160, lr=1e-3, warmup=60, weight_decay=0.05, seed=2)
    )


def train_tokenizer(texts: Sequence[str], config: ClipConfig) -> CLIPTokenizer:
    """A CLIP tokenizer whose byte-pair encoding is learned from the texts."""
    blank = CLIPTokenizer().backend_tokenizer
    learner = Tokenizer.from_str(blank.to_str())
    alphabet = sorted(
        {c for t in texts for c in t.lower() if not c.isspace()} | set("abcdefghijklmnopqrstuvwxyz0123456789")
    )
    learner.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=config.vocabulary,
            min_frequency=1,
            special_tokens=["<|startoftext|>", "<|endoftext|>"],
            initial_alphabet=alphabet,
            end_of_word_suffix="</w>",
            show_progress=False,
        ),
    )
    import json

    model = json.loads(learner.to_str())["model"]
    vocab = dict(model["vocab"])
    for c in alphabet:  # so that any word can be spelled: each letter also as the end of a word
        vocab.setdefault(f"{c}</w>", len(vocab))
    merges = [tuple(m) for m in model["merges"]]
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=config.max_tokens)


def make_clip(config: ClipConfig, tokenizer: CLIPTokenizer, resolution: int) -> CLIPModel:
    torch.manual_seed(config.loop.seed)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.text_width,
        intermediate_size=4 * config.text_width,
        num_hidden_layers=config.text_layers,
        num_attention_heads=4,
        max_position_embeddings=config.max_tokens,
        projection_dim=config.projection,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPVisionConfig(
        hidden_size=config.image_width,
        intermediate_size=3 * config.image_width,
        num_hidden_layers=config.image_layers,
        num_attention_heads=6,
        image_size=resolution,
        patch_size=config.patch,
        projection_dim=config.projection,
    )
    return CLIPModel(
        CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=config.projection)
    )


def tokenise(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> dict[str, Tensor]:
    """Texts padded and cut to the model's length: input_ids and attention_mask, (B, L) int64."""
    length = tokenizer.model_max_length
    out = tokenizer(list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    return {"input_ids": out["input_ids"], "attention_mask": out["attention_mask"]}


def tokenizer_for(pictures: Pictures, group_set: GroupSet, config: ClipConfig) -> CLIPTokenizer:
    """A tokenizer learned from what captions of these pictures, and of the set's held-out objects, are written with."""
    captioner, names = StyleCaptions(group_set), sorted(set(pictures.names) | set(group_set.held_out_objects))
    texts = [captioner.write(described("", n), ()) for n in names]
    texts += list(itertools.chain.from_iterable(g.descriptors for g in group_set.groups.values())) * 8
    return train_tokenizer(texts, config)


def jitter(x: Tensor, shift: int, g: torch.Generator) -> Tensor:
    """Random mirror images and shifts by up to `shift` pixels (white comes in); x: (N, 3, H, W) in [-1, 1]."""
    flip = torch.rand(len(x), generator=g) < 0.5
    x = torch.where(flip[:, None, None, None], x.flip(-1), x)
    padded = F.pad(x, [shift] * 4, value=1.0)
    h, w = x.shape[-2:]
    at = torch.randint(2 * shift + 1, (len(x), 2), generator=g).tolist()
    return torch.stack([p[:, i : i + h, j : j + w] for p, (i, j) in zip(padded, at, strict=True)])


def vary(captioner: StyleCaptions, item: Item, g: torch.Generator) -> str:
    """Mostly the full caption; sometimes the object or the descriptors alone, so that short prompts mean something."""
    u = float(torch.rand((), generator=g))
    if u < 0.1:
        return captioner.content(item)
    if u < 0.2:
        return ", ".join(draw(captioner.phrases(item.group), captioner.group_set.descriptors_per_caption, g))
    return captioner.caption(item, g)


def train(
    pictures: Pictures, group_set: GroupSet, config: ClipConfig, checkpoint: Path, device: str = "cpu"
) -> Generator[tuple[Progress, CLIPModel, CLIPTokenizer], None, None]:
    """Symmetric InfoNCE over batches of pictures and captions; yields (progress, model, tokenizer) each step, at the
    end with the model on the CPU. device: where it is trained; all is drawn on the CPU."""
    captioner, tokenizer = StyleCaptions(group_set), tokenizer_for(pictures, group_set, config)
    model: Any = make_clip(config, tokenizer, pictures.pixels.shape[1]).train()
    model.to(device)
    pixels = torch.from_numpy(pictures.pixels)
    size = Counter(pictures.groups)
    evenly = torch.tensor([1 / size[k] for k in pictures.groups])  # some styles drew fewer objects than others

    def loss_of(step: int, g: torch.Generator) -> Tensor:
        at = torch.multinomial(evenly, config.loop.batch, replacement=False, generator=g)
        x = jitter(to_unit(pixels[at]).contiguous(), config.shift, g)
        captions = [vary(captioner, pictures[i], g) for i in at.tolist()]
        tokens = {k: v.to(device) for k, v in tokenise(tokenizer, captions).items()}
        logits = model(pixel_values=x.to(device), **tokens).logits_per_image.cpu()  # (B, B)
        same = torch.tensor([[a == b for b in captions] for a in captions], dtype=torch.float32)
        target = same / same.sum(dim=1, keepdim=True)
        return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target))

    for progress in run(model, loss_of, config.loop, checkpoint):
        yield progress, model, tokenizer
    model.eval().to("cpu")
    yield Progress(config.loop.steps, config.loop.steps, float("nan"), 0.0, "done"), model, tokenizer


@torch.no_grad()
def image_features(model: CLIPModel, pixels: np.ndarray, batch: int = 128) -> Tensor:
    """(N, H, W, 3) uint8 -> (N, D) float32 of unit length."""
    out = []
    for i in range(0, len(pixels), batch):
        f = model.visual_projection(model.vision_model(to_unit(pixels[i : i + batch]).contiguous()).pooler_output)
        out.append(F.normalize(f.float(), dim=-1))
    return torch.cat(out)


@torch.no_grad()
def text_features(model: CLIPModel, tokenizer: CLIPTokenizer, texts: Sequence[str]) -> Tensor:
    """Texts -> (N, D) float32 of unit length."""
    f = model.text_projection(model.text_model(**tokenise(tokenizer, texts)).pooler_output)
    return F.normalize(f.float(), dim=-1)
