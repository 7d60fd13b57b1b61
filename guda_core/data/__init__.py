"""Pictures, captions and group sets: where they come from, how they are read and how a style is said.

SOURCES: id -> class (`sources.source.Source`), where a group set's pictures come from. A source is one file and one
line here, or `SOURCES.add(id, class)` from outside.
"""

from guda_core.registry import Registry

SOURCES = Registry(
    "picture source",
    "guda_core.sources",
    {
        "npm-iconify": "guda_core.data.sources.iconify:Iconify",
        "folder": "guda_core.data.sources.folder:Folder",
        "listed": "guda_core.data.sources.listed:ListedFiles",
        "datasets": "guda_core.data.sources.listed:ListedRows",
        "not-published": "guda_core.data.sources.not_published:NotPublished",
        "scikit-digits": "guda_core.data.sources.labelled:Digits",
        "cifar10": "guda_core.data.sources.labelled:Cifar10",
    },
)
