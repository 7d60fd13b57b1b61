"""Single files: a whole Stable Diffusion 1.x, 2.x or XL in one .safetensors, by the names of its first code.

Such a file holds weights alone. What else a model is comes from `configs/`, which we wrote from the published
architectures, or from a folder beside the file with its name (`style.safetensors`, `style/`): diffusers' layout without
weights. The tokenizer is that folder's, or a `tokenizer` folder's beside the file, or the Hub's. diffusers renames the
tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from transformers import CLIPTokenizer

from guda_core.diffusion import weights
from guda_core.diffusion.base_model import Card
from guda_core.diffusion.memory import lacked_memory
from guda_core.diffusion.model_files import INDEX, read_json
from guda_core.diffusion.weights import Header
from guda_core.errors import ModelError
from guda_core.paths import is_file

CONFIGS = Path(__file__).with_name("configs")
CLIP = "openai/clip-vit-large-patch14"  # whose vocabulary they all read
UNET = "model.diffusion_model."
INPUT = f"{UNET}input_blocks.0.0.weight"
TEXT = {  # where the text encoder is in a file -> its layout
    "conditioner.embedders.1.model.": "sdxl",
    "cond_stage_model.model.": "sd21",
    "cond_stage_model.transformer.": "sd15",
}
OTHERS = {  # part of a name -> what the file is then
    "lora_": "a LoRA. Name it with --lora, beside the model that it was made for",
    "joint_blocks.": "a Stable Diffusion 3. Its single files often lack parts; use its folder in diffusers' layout",
    "double_blocks.": "a FLUX. Its single files lack the text encoders; use its folder in diffusers' layout",
    "conditioner.embedders.0.model.": "a refiner of Stable Diffusion XL, which does not draw a picture alone",
    "control_model.": "a ControlNet, which does not draw a picture alone",
    "down_blocks.": "one part of a folder in diffusers' layout. Name that folder",
}


def layout_of(path: Path) -> Path:
    """The folder with a single file's configuration: its own beside it, or ours.

    Raises:
        ModelError: the file is missing or damaged, or no whole model of a known layout.
    """
    if not is_file(path):
        raise ModelError(f"There is no file {path}.")
    name, own = _layout(path, weights.header(path)), path.with_suffix("")
    return own if (own / INDEX).is_file() else CONFIGS / name


def fields_of(path: Path) -> tuple[Path, dict[str, Any]]:
    """The folder with a single file's configuration, and the fields of a card that the file says beside it.

    Raises:
        ModelError: as `layout_of`; or the file leaves open what the model predicts.
    """
    folder = layout_of(path)
    if folder == CONFIGS / "sd21":
        raise ModelError(
            f"{path.name} is a Stable Diffusion 2, which draws at 512 pixels and predicts epsilon, or at 768 and "
            "predicts v_prediction; the file does not say which. Name it in a card (a .yaml file) with `source: file`, "
            "`resolution` and `prediction_type`."
        )
    return folder, {"prediction_type": "v_prediction"} if "v_pred" in weights.header(path) else {}


def _layout(path: Path, tensors: Header) -> str:
    text = next((name for front, name in TEXT.items() if any(k.startswith(front) for k in tensors)), None)
    shape = tensors[INPUT][1] if INPUT in tensors else ()
    channels = shape[1] if len(shape) == 4 else None
    if text is not None and channels == 4:
        return text
    if channels not in (None, 4):
        raise ModelError(
            f"The network in {path.name} reads {channels} channels, not 4. Models for inpainting, depth or editing "
            "read a second picture and cannot be scored."
        )
    found = next((what for part, what in OTHERS.items() if any(part in k for k in tensors)), None)
    if found:
        raise ModelError(f"{path.name} is {found}.")
    raise ModelError(
        f"{path.name} holds no whole Stable Diffusion: a network or a text encoder is not among its {len(tensors)} "
        "tensors."
    )


def open_file(card: Card, pipeline: type[DiffusionPipeline], without: Mapping[str, Any]) -> Any:
    """A card's single file as one of diffusers' pipelines, in the type that most of it is stored in.

    Raises:
        ModelError: the file is missing, damaged or of another kind, or its tokenizer cannot be found.
    """
    path = Path(card.path)
    folder = layout_of(path)
    index, tensors = read_json(folder / INDEX), weights.header(path)
    if index.get("_class_name") != pipeline.__name__:
        raise ModelError(
            f"{path.name} is a {index.get('_class_name')}, which a card of kind '{card.kind}' does not read. Correct "
            "`kind` in the card."
        )
    tokenizers = {k: _tokenizer(path, folder, k) for k in index if k.startswith("tokenizer")}
    try:
        pipe: Any = pipeline.from_single_file(  # type: ignore[attr-defined]
            str(path), config=str(folder), local_files_only=True, dtype=weights.stored_type(path), **tokenizers,
            **without,
        )  # fmt: skip
    except Exception as e:
        if lacked_memory(e):
            raise
        raise ModelError(f"{path} is damaged or incomplete: {e}") from e
    if "ztsnr" in tensors:
        said = {k: v for k, v in pipe.scheduler.config.items() if k != "_use_default_values"}
        settings = {**said, "rescale_betas_zero_snr": True}
        pipe.scheduler = type(pipe.scheduler).from_config(settings)
    return pipe


def _tokenizer(path: Path, folder: Path, name: str) -> CLIPTokenizer:
    for place in (folder / name, path.parent / name, path.parent / "tokenizer"):
        if place.is_dir():
            return CLIPTokenizer.from_pretrained(place, trust_remote_code=False)
    more = {} if name == "tokenizer" and folder.name != "sd21" else {"pad_token": "!"}  # OpenCLIP's
    try:
        found = CLIPTokenizer.from_pretrained(CLIP, trust_remote_code=False, **more)
        if len(found) < 1000:  # transformers makes an empty one where the Hub cannot be reached
            raise OSError("no vocabulary")
        return found
    except Exception as e:
        raise ModelError(
            f"{path.name} holds no tokenizer, and {CLIP} could not be downloaded from the Hugging Face Hub: "
            f"{type(e).__name__}. Connect to the internet once so that it is cached, or put the model's `tokenizer` "
            "folder beside the file."
        ) from e
