"""Where things lie. Every other module asks here; no path is built from a module's own place or the working directory.

A workspace is a folder of one layout. The user's own is `GUDA_HOME` (default: `guda` in the home folder); the shipped
one, read only, holds the embedded model and the emoji. What is looked for is taken from the user's workspace, else from
the shipped one; what is made is written to the user's. `GUDA_HOME` may be a repository of the Hugging Face Hub,
`hub:user/name@revision` (`from_hub`); then nothing is written.

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

    published/<model>/<set>/    what `guda unlearn` makes of a run for the hub: a workspace of its own, without pictures

A workspace may also be what is in one folder below `runs/` alone. Everything that can be made again without hours
of work lies in the cache, `GUDA_CACHE`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from guda_core import from_hub
from guda_core.errors import OptionError

_PACKAGE = Path(__file__).resolve().parent
# In an installed package the shipped folders lie in the package, in a checkout of the repository beside it.
IN_CHECKOUT = not (_PACKAGE / "shipped").is_dir()
ROOT = _PACKAGE.parent if IN_CHECKOUT else _PACKAGE / "shipped"
ASSETS = ROOT / "assets"  # the shipped workspace, and the figures of the laboratory
BENCHMARKS = ASSETS / "benchmarks"  # figures, and the arrays and queries that they come from
SHIPPED_RUN = ASSETS / "runs" / "emoji" / "emoji"  # of the embedded model and the emoji
STYLE_GROUPS = ROOT / "style_groups"  # the shipped group sets
DOCS = ROOT / "docs"  # pages and their pictures
UPLOADS = "guda-uploads-"  # how the names of the app's own folders for uploads begin


# Of a run: what says of all that was made what it is, and what is one file.
MADE = (
    "*.json",
    "*.safetensors",
    "adapters/*/*.json",
    "oracle/*/*.json",
    "features/*/*.json",
    "features/*.safetensors",
)


def is_file(path: str | Path) -> bool:
    """Whether there is such a file. No name is an error, however long or odd (`Path.is_file` raises for some)."""
    return os.path.isfile(path)  # noqa: PTH113


def is_there(path: str | Path) -> bool:
    """Whether there is anything of that name, likewise."""
    return os.path.exists(path)  # noqa: PTH110


def is_folder(path: str | Path) -> bool:
    """Whether there is such a folder, likewise."""
    return os.path.isdir(path)  # noqa: PTH112


def at_home(path: str | Path) -> Path:
    """The path with `~` in it written out; as it is where there is no such person or home."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def below(folder: Path, name: str | Path) -> Path | None:
    """Where a file that somebody else named lies below the folder; None where the name leads out of it, by `..`, as a
    whole path or, on Windows, to another disk or machine."""
    root = Path(os.path.normpath(folder.absolute()))
    whole = Path(os.path.normpath(root / name))
    return folder / whole.relative_to(root) if whole.is_relative_to(root) else None


@dataclass(frozen=True)
class Layers:
    """Folders that are looked through in order; the first is the one that is written to."""

    folders: tuple[Path, ...]

    def __truediv__(self, name: str) -> Path:
        """Where the name is: in the first folder that has it, else in the one where it would be written."""
        return next((f / name for f in self.folders if (f / name).exists()), self.folders[0] / name)

    def own(self, name: str) -> Path:
        """Where the name is written. Raises OptionError in a workspace that is read only."""
        return writable(self.folders[0]) / name

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
    """The folders and files of one model and group set. mine: in the user's workspace, shipped: in the other."""

    mine: Path
    shipped: Path

    @property
    def own(self) -> Path:
        """Where they are written. Raises OptionError in a workspace that is read only."""
        return writable(self.mine)

    def layers(self, name: str) -> Layers:
        """A folder of the run in both workspaces."""
        return Layers(tuple(dict.fromkeys((self.mine / name, self.shipped / name))))

    def file(self, name: str) -> Path:
        """A file of the run: the user's, else the shipped one, else where it would be written."""
        return Layers((self.mine, self.shipped)) / name

    def stamp(self) -> tuple[tuple[str, int], ...]:
        """Which files that say what was made are there, in both workspaces, and since when, in nanoseconds."""
        folders = dict.fromkeys((self.mine, self.shipped))
        return tuple(stamp for folder in folders for stamp in stamps(folder, MADE))

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


def stamps(folder: Path, kinds: Iterable[str]) -> tuple[tuple[str, int], ...]:
    """Which files of these patterns the folder has, and since when, in nanoseconds."""
    return tuple((str(path), _changed(path)) for kind in kinds for path in sorted(folder.glob(kind)))


def _changed(path: Path) -> int:
    """When a file was last changed, in nanoseconds; 0 for one that is gone."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def home() -> Path:
    """The user's workspace: `GUDA_HOME`, or ~/guda. A checkout of this repository stands for its shipped workspace.

    Raises:
        OptionError: `GUDA_HOME` names a repository of the hub that cannot be had.
    """
    named = os.environ.get("GUDA_HOME")
    if from_hub.is_named(named):
        return from_hub.snapshot(str(named))
    folder = at_home(named).resolve() if named else Path.home() / "guda"
    return ASSETS if folder == ROOT else folder


def writable(folder: Path) -> Path:
    """The folder itself. Raises OptionError when it is of a workspace that came from the hub."""
    if _came_from_hub(folder):
        named = os.environ["GUDA_HOME"]
        name, revision = from_hub.repository(named)
        of = f"{name} --revision {revision}" if revision else name
        raise OptionError(
            f"The workspace {named} is read only. Bring it into a folder of your own with `hf download {of} "
            "--local-dir FOLDER`, and use --home FOLDER."
        )
    return folder


def _came_from_hub(folder: Path) -> bool:
    named = os.environ.get("GUDA_HOME")
    return from_hub.is_named(named) and folder.is_relative_to(from_hub.snapshot(str(named)))


def pictures_of(beside: Path, named: str) -> Path:
    """Where the pictures of a group set are: at `named`, looked for beside the set.

    Raises:
        OptionError: the set came from the hub, and names a place of this machine.
    """
    found = beside / at_home(named)
    if _came_from_hub(beside) and below(home(), found) is None:
        raise OptionError(
            f"This group set comes from the hub, and names a place of this machine for its pictures: {named}. It is "
            "not looked at."
        )
    return found


def sets() -> Layers:
    """The folders that hold group sets."""
    own = home()
    return Layers((STYLE_GROUPS,) if own == ASSETS else (own / "sets", STYLE_GROUPS))


def models() -> Layers:
    """The folders that hold model cards."""
    return Layers(tuple(dict.fromkeys((home() / "models", ASSETS / "models"))))


def only_set() -> str:
    """The set of a workspace that holds exactly one of its own; else ""."""
    own = home()
    found = [] if own == ASSETS else [p.parent.name for p in (own / "sets").glob("*/group_set.yaml")]
    return found[0] if len(found) == 1 else ""


def own_cards() -> list[Path]:
    """The files with the workspace's own model cards."""
    own = home()
    return [] if own == ASSETS else sorted((own / "models").glob("*.yaml"))


def run(model: str, group_set: str) -> Run:
    """What was made, or will be, for a model's card and a group set, by their ids."""
    part, own = Path("runs") / model / group_set, home()
    mine, shipped = own / part, ASSETS / part
    alone = (own / "adapters").is_dir() and not mine.is_dir() and not shipped.is_dir()
    return Run(own if alone else mine, shipped)


def cache_dir() -> Path:
    """The folder for everything that can be made again: `GUDA_CACHE`, or ~/.cache/guda."""
    return Path(os.environ.get("GUDA_CACHE") or Path.home() / ".cache" / "guda")
