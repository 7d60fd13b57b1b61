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
_BY_PLACE = {  # module -> the names that come from it
    "api": "load_model make_groups load_groups methods Methods generate best_caption attribute Answer",
    "offline": "unlearn draft",
    "many": "attribute_many",
    "opened_reports": "replay compare_reports Compared Verdict",
    "reports.read": "read_report Report",
    "scoring.asking": "Results",
    "records": "Attribution Group GroupScore GroupSet Query Scope",
    "errors": "GudaError GroupSetError ImageError ModelError OptionError PromptError ReportError ScoreError "
    "TrainingError UnreadError",
}
_PLACES = {name: f"guda_core.{place}" for place, names in _BY_PLACE.items() for name in names.split()}
__all__ = ["__version__", *_PLACES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module 'guda_core' has no attribute '{name}'")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
