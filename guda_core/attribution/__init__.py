"""Attribution methods, one a file. Each answers a query with `Attribution`s that refine (`method.Method`).

METHODS is the one list of them, cheapest first. A method is added by its file and a line here; by another package,
with an entry point of the group "guda_core.methods"; by a program, with `METHODS.add`. Service, screens, command line
and reports know methods from this list alone.
"""

from guda_core.registry import Registry

METHODS = Registry(
    "method",
    "guda_core.methods",
    {
        "clip": "guda_core.attribution.similarity:ClipSimilarity",
        "introstyle": "guda_core.attribution.introstyle:IntroStyle",
        "trak": "guda_core.attribution.gradient.trak:Trak",
        "dtrak": "guda_core.attribution.gradient.dtrak:Dtrak",
        "das": "guda_core.attribution.gradient.das:Das",
        "guda": "guda_core.attribution.guda:Guda",
        "combined": "guda_core.attribution.ensemble:GudaAndDas",
        "logo": "guda_core.attribution.logo:Logo",
    },
)
