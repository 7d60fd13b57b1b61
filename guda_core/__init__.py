"""Which groups of training pictures made a diffusion model able to make this picture?

GUDA (Group Unlearning-based Data Attribution, arXiv 2601.22651): unlearn each group from one full model offline,
then score a picture by the ELBO difference between the full model and each unlearned one.

    import guda_core

    answer = guda_core.attribute("rocket.png", "rocket, artistic style featuring thick black outline")
    print(answer.best)

Names are imported when they are first asked for: importing this package loads no other library.
"""

from importlib import import_module

__version__ = "0.2.0.dev0"
_PLACES = {  # name -> the module that it comes from
    **dict.fromkeys(
        ("load_model", "make_groups", "load_groups", "generate", "best_caption", "attribute", "Answer"), "guda_core.api"
    ),
    **dict.fromkeys(("unlearn", "draft"), "guda_core.offline"),
    "attribute_many": "guda_core.many",
    "Results": "guda_core.scoring.asking",
    **dict.fromkeys(("Attribution", "Group", "GroupScore", "GroupSet", "Query", "Scope"), "guda_core.records"),
    "GudaError": "guda_core.errors",
}
__all__ = ["__version__", *_PLACES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module 'guda_core' has no attribute '{name}'")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
