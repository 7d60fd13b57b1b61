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
from guda_core.diffusion.memory import damaged
from guda_core.diffusion.model_files import INDEX, read_json
from guda_core.diffusion.weights import Header
from guda_core.errors import ModelError
from guda_core.paths import is_file

CONFIGS = Path(__file__).with_name("configs")
CLIP = "openai/clip-vit-large-patch14"  # whose vocabulary they all read
UNET = "model.diffusion_model."
INPUT = f"{UNET}input_blocks.0.0.weight"
SCHEDULER = Path("scheduler") / "scheduler_config.json"
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
VAE = ("first_stage_model.", "vae.")
OPEN_CLIP = {("sd21", "tokenizer"), ("sdxl", "tokenizer_2")}  # whose text encoders were trained with "!" as padding
MARKS = {  # tensors without values, as fine-tunes carry them -> what they say of the schedule
    "v_pred": {"prediction_type": "v_prediction"},
    "ztsnr": {"rescale_betas_zero_snr": True},
}
EDM = ("edm_mean", "edm_std", "edm_vpred.sigma_max")  # Playground 2.5 and CosXL carry them
SD2 = (
    "{} is a Stable Diffusion 2, which draws at 512 pixels and predicts epsilon, or at 768 and predicts v_prediction; "
    "the file does not say which. "
)


def layout_of(path: Path) -> Path:
    """The folder with a single file's configuration: its own beside it, or ours.

    Raises:
        ModelError: the file is missing or damaged, or no whole model of a known layout.
    """
    if not is_file(path):
        raise ModelError(f"There is no file {path}.")
    name, own = _layout(path, weights.header(path)), path.with_suffix("")
    return own if (own / INDEX).is_file() else CONFIGS / name


def described(path: Path) -> Path:
    """The folder with a single file's configuration, where the two say all that a card has to.

    Raises:
        ModelError: as `layout_of`; or they leave open which model it is.
    """
    folder = layout_of(path)
    if folder == CONFIGS / "sd21":
        raise ModelError(
            f"{SD2.format(path.name)}Name it in a card (a .yaml file) with `source: file`, `resolution` and "
            "`prediction_type`."
        )
    return folder


def schedule_of(card: Card, folder: Path) -> dict[str, Any]:
    """What a card's single file says of its schedule of noise, by the settings in `folder` and the marks in the file.

    Raises:
        ModelError: the two contradict each other; or neither they nor the card say what a Stable Diffusion 2 predicts.
    """
    path = Path(card.path)
    tensors = weights.header(path)
    said, key = read_json(folder / SCHEDULER), "prediction_type"
    marked = {k: v for name, says in MARKS.items() if name in tensors for k, v in says.items()}
    found = {told[key] for told in (said, marked) if told.get(key)}
    if len(found) > 1:
        raise ModelError(
            f"{path.name} is marked as a model that predicts '{marked[key]}'; the settings beside it say "
            f"'{said[key]}'. Correct or remove `{key}` in {folder / SCHEDULER}."
        )
    if not found and card.prediction_type is None and folder == CONFIGS / "sd21":
        raise ModelError(f"{SD2.format(path.name)}Set `{key}` in the card '{card.id}'.")
    return {**said, **marked}


def _layout(path: Path, tensors: Header) -> str:
    text = next((name for front, name in TEXT.items() if any(k.startswith(front) for k in tensors)), None)
    shape = tensors[INPUT][1] if INPUT in tensors else ()
    channels = shape[1] if len(shape) == 4 else None
    if edm := next((k for k in EDM if k in tensors), None):
        raise ModelError(
            f"{path.name} has a schedule of EDM (it holds {edm}), which is not one of a DDPM's noise, so it cannot be "
            "scored."
        )
    if text is not None and channels == 4:
        if not any(k.startswith(VAE) for k in tensors):
            raise ModelError(
                f"{path.name} holds no VAE, without which it does not draw alone. Use the model's file with a VAE, or "
                "its folder in diffusers' layout."
            )
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
    index = read_json(folder / INDEX)
    if index.get("_class_name") != pipeline.__name__:
        raise ModelError(
            f"{path.name} is a {index.get('_class_name')}, which a card of kind '{card.kind}' does not read. Correct "
            "`kind` in the card."
        )
    schedule = schedule_of(card, folder)
    tokenizers = {k: _tokenizer(path, folder, k) for k in index if k.startswith("tokenizer")}
    with damaged(f"{path} is damaged or incomplete"):
        pipe: Any = pipeline.from_single_file(  # type: ignore[attr-defined]
            str(path), config=str(folder), local_files_only=True, dtype=weights.stored_type(path), **tokenizers,
            **without,
        )  # fmt: skip
    pipe.scheduler = type(pipe.scheduler).from_config(schedule)
    return pipe


def _tokenizer(path: Path, folder: Path, name: str) -> CLIPTokenizer:
    if (folder / name).is_dir():
        return CLIPTokenizer.from_pretrained(folder / name, trust_remote_code=False)
    layout = _layout(path, weights.header(path))
    more = {"pad_token": "!"} if (layout, name) in OPEN_CLIP else {}  # whichever CLIP's the vocabulary is
    for place in (path.parent / name, path.parent / "tokenizer"):
        if place.is_dir():
            return CLIPTokenizer.from_pretrained(place, trust_remote_code=False, **more)
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
