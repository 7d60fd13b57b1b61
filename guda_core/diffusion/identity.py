"""The identity of a model: a hash of what is loaded and enters a score, not of files.

    identity = SHA-256 of the weights of every part by name, shape and float32 value, the settings that matter, the
               noise schedule's settings, what the network predicts, the latent's shape and the tokenizer

So line ends, a file that nothing reads, another storage type with the same values, or a config that a newer library
saved again change nothing; a changed weight or setting does. Weights are hashed as loaded, before they are cast to
the type that they run in. Of a config, those settings count that are unlike the class's own defaults: libraries add
settings, and write them all down, with defaults that change nothing.

Version 0.1 hashed files. The models that it shipped keep the names that adapters, features and reports know them by
(`KNOWN`); of other models the old name can be made again from the same files (`hash_folder`).
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from guda_core.diffusion.finite import check_finite

# identity -> the name that version 0.1 gave it: the embedded model's
KNOWN: Mapping[str, str] = {
    "df63d1876e20150f194da4691bc8bb696ff887b0613c406f0038640e28ec2906": (
        "50d513a4cc14e282ae3ef6b9af7bc8b6245c6999090e166fc314eea42392c97e"
    ),
}
# of transformers' text encoders, beside the weights' shapes; their defaults change between versions
TEXT_SETTINGS = ("hidden_act", "layer_norm_eps", "num_attention_heads", "model_type")
NO_MATTER = ("sample_size", "force_upcast", "dropout")  # the size is in the latent's shape; the others are for training
SCHEDULE = (
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr",
)  # fmt: skip
PROBE = "A red FOX, two: cats' 3.5% of caf\u00e9 \u732b"  # what a tokenizer makes of it, tells its rules


def hash_weights(module: nn.Module, what: str) -> str:
    """SHA-256 over names, shapes and float32 values of a module's weights.

    Raises:
        ModelError: a weight is not finite.
    """

    def one(named: tuple[str, Tensor]) -> str:
        name, p = named
        values = check_finite(p.detach().float().cpu().contiguous(), f"The weight {name} of {what}")
        return f"{name} {list(p.shape)} {hashlib.sha256(values.numpy()).hexdigest()}"

    state = {n.removeprefix("text_model."): p for n, p in module.state_dict().items()}  # as transformers 4 called them
    kept = sorted((n, p) for n, p in state.items() if not n.endswith("position_ids"))  # a count, not a weight
    with ThreadPoolExecutor() as pool:
        return hashlib.sha256("\n".join(pool.map(one, kept)).encode()).hexdigest()


def settings_of(module: nn.Module) -> dict[str, Any]:
    """The settings of a module of diffusers or transformers that can change what it computes."""
    config: Any = module.config
    if hasattr(config, "to_diff_dict"):  # of transformers
        return {k: getattr(config, k, None) for k in TEXT_SETTINGS}
    defaults = {k: p.default for k, p in inspect.signature(type(module).__init__).parameters.items()}
    return {
        k: v for k, v in config.items() if k in defaults and k not in NO_MATTER and _plain(v) != _plain(defaults[k])
    }


def tokens_of(tokenizer: Any) -> dict[str, Any]:
    """What a tokenizer makes of prompts: its vocabulary's hash, its length, and the tokens of one odd sentence."""
    words = json.dumps(sorted(tokenizer.get_vocab().items())).encode()
    length = int(tokenizer.model_max_length)
    ids = tokenizer([PROBE], padding="max_length", truncation=True, max_length=min(length, 64)).input_ids
    return {"vocabulary": hashlib.sha256(words).hexdigest(), "length": length, "probe": list(ids[0])}


def identity(
    parts: Mapping[str, nn.Module],
    *,
    scheduler: Mapping[str, Any],
    prediction: str,
    latent_shape: Sequence[int],
    tokenizer: Any = None,
    others: Sequence[Any] = (),
    more: Mapping[str, Any] | None = None,
) -> str:
    """The identity. parts: name -> module, in their loaded type. scheduler: the settings of diffusers' scheduler.
    others: further tokenizers. more: further settings that matter.

    Raises:
        ModelError: a weight is not finite.
    """
    record = {
        "parts": {n: {"weights": hash_weights(m, n), "settings": settings_of(m)} for n, m in parts.items()},
        "schedule": {k: scheduler.get(k) for k in SCHEDULE if scheduler.get(k)},
        "prediction": prediction,
        "latent": list(latent_shape),
        "tokens": None if tokenizer is None else tokens_of(tokenizer),
        **({"others": [tokens_of(t) for t in others]} if others else {}),
        **(more or {}),
    }
    return hashlib.sha256(_plain(record).encode()).hexdigest()


def with_lora(base: str, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> str:
    """The identity after a LoRA was merged: of the model's own and the file's tensors, not of their sum.

    The sum's last bits depend on the machine.
    """
    digests = {n: hashlib.sha256(t.float().contiguous().numpy()).hexdigest() for n, t in tensors.items()}
    shapes = {n: list(t.shape) for n, t in tensors.items()}
    return hashlib.sha256(_plain([base, digests, shapes, settings]).encode()).hexdigest()


def _plain(value: Any) -> str:
    """One text for equal settings; tuples and lists are alike, and so are 1 and 1.0."""
    return json.dumps(_even(value), sort_keys=True, default=str)


def _even(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _even(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_even(v) for v in value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    return value


def hash_folder(folder: Path) -> str:
    """The name that version 0.1 gave a model in the Stable Diffusion layout: SHA-256 over names and bytes of files."""
    weighed = ("unet", "text_encoder", "vae")
    h = hashlib.sha256()
    files = [p for part in weighed for p in (folder / part).glob("*.safetensors")]
    files += [folder / part / "config.json" for part in weighed] + [folder / "scheduler" / "scheduler_config.json"]
    for p in sorted(files):
        h.update(p.relative_to(folder).as_posix().encode() + b"\0")
        h.update(hashlib.sha256(p.read_bytes()).digest())
    return h.hexdigest()


def hash_module(module: nn.Module, alphas_cumprod: Tensor, prediction: str) -> str:
    """The name that version 0.1 gave an unconditional model: SHA-256 over weights, schedule and prediction."""
    h = hashlib.sha256(prediction.encode() + alphas_cumprod.double().numpy().tobytes())
    for name, p in sorted(module.state_dict().items()):
        h.update(f"{name}{list(p.shape)}".encode())
        h.update(p.detach().to(torch.float32).cpu().contiguous().numpy().tobytes())
    return h.hexdigest()
