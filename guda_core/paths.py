"""Where things lie. Every other module asks here; no path is built from a module's own place or the working directory.

A workspace is a folder of one layout. The user's own is `GUDA_HOME` (default: `guda` in the home folder); the shipped
one, read only, holds the embedded model and the emoji. What is looked for is taken from the user's workspace, else from
the shipped one; what is made is written to the user's.

    models/*.yaml               model cards
    sets/<set>/                 group sets (shipped: style_groups/)
    runs/<model>/<set>/         what was made for a model and a set:
        adapters/<group>/       unlearning adapters, each with its health
        oracle/<group>/         retrained models
        features/<method>/      quantised gradient features
        bank.safetensors        the feature bank of CLIP similarity
        scope.json              the scope's rule
        calibration.json        the offset's weight
        latents/                encoded training pictures

Everything that can be made again without hours of work lies in the cache, `GUDA_CACHE`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
# In an installed package the shipped folders lie in the package, in a checkout of the repository beside it.
IN_CHECKOUT = not (_PACKAGE / "shipped").is_dir()
ROOT = _PACKAGE.parent if IN_CHECKOUT else _PACKAGE / "shipped"
ASSETS = ROOT / "assets"  # the shipped workspace, and the figures of the laboratory
BENCHMARKS = ASSETS / "benchmarks"  # figures, and the arrays and queries that they come from
SHIPPED_RUN = ASSETS / "runs" / "emoji" / "emoji"  # of the embedded model and the emoji
STYLE_GROUPS = ROOT / "style_groups"  # the shipped group sets
DOCS = ROOT / "docs"  # pages and their pictures


@dataclass(frozen=True)
class Layers:
    """Folders that are looked through in order; the first is the one that is written to."""

    folders: tuple[Path, ...]

    def __truediv__(self, name: str) -> Path:
        """Where the name is: in the first folder that has it, else in the one where it would be written."""
        return next((f / name for f in self.folders if (f / name).exists()), self.folders[0] / name)

    def own(self, name: str) -> Path:
        """Where the name is written."""
        return self.folders[0] / name

    def __str__(self) -> str:
        return str(self.folders[0])

    def is_dir(self) -> bool:
        """Whether there is any of the folders."""
        return any(f.is_dir() for f in self.folders)

    def glob(self, pattern: str) -> Iterator[Path]:
        """What matches in any of the folders; of one relative path only the first."""
        seen: set[str] = set()
        for folder in self.folders:
            for path in sorted(folder.glob(pattern)):
                name = path.relative_to(folder).as_posix()
                if name not in seen:
                    seen.add(name)
                    yield path


Folder = Path | Layers


@dataclass(frozen=True)
class Run:
    """The folders and files of one model and group set. own: where they are written."""

    own: Path
    shipped: Path

    def layers(self, name: str) -> Layers:
        """A folder of the run in both workspaces."""
        return Layers(tuple(dict.fromkeys((self.own / name, self.shipped / name))))

    def file(self, name: str) -> Path:
        """A file of the run: the user's, else the shipped one, else where it would be written."""
        return Layers((self.own, self.shipped)) / name

    @property
    def adapters(self) -> Layers:
        """Of unlearning adapters, one folder a group."""
        return self.layers("adapters")

    @property
    def oracle(self) -> Layers:
        """Of retrained models, one folder a group."""
        return self.layers("oracle")

    @property
    def features(self) -> Layers:
        """Of gradient features, one folder a method."""
        return self.layers("features")

    @property
    def bank(self) -> Path:
        """The feature bank of CLIP similarity."""
        return self.file("bank.safetensors")

    @property
    def scope(self) -> Path:
        """The scope's rule."""
        return self.file("scope.json")

    @property
    def calibration(self) -> Path:
        """The offset's weight."""
        return self.file("calibration.json")


def home() -> Path:
    """The user's workspace: `GUDA_HOME`, or ~/guda. A checkout of this repository stands for its shipped workspace."""
    named = os.environ.get("GUDA_HOME")
    folder = Path(named).expanduser().resolve() if named else Path.home() / "guda"
    return ASSETS if folder == ROOT else folder


def sets() -> Layers:
    """The folders that hold group sets."""
    own = home()
    return Layers((STYLE_GROUPS,) if own == ASSETS else (own / "sets", STYLE_GROUPS))


def models() -> Layers:
    """The folders that hold model cards."""
    return Layers(tuple(dict.fromkeys((home() / "models", ASSETS / "models"))))


def run(model: str, group_set: str) -> Run:
    """What was made, or will be, for a model's card and a group set, by their ids."""
    part = Path("runs") / model / group_set
    return Run(home() / part, ASSETS / part)


def cache_dir() -> Path:
    """The folder for everything that can be made again: `GUDA_CACHE`, or ~/.cache/guda."""
    return Path(os.environ.get("GUDA_CACHE") or Path.home() / ".cache" / "guda")
