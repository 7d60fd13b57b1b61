"""The embedded model's second edition. It is prepared and not trained: it waits for a GPU.

guda groups fetch --set emoji-eleven --home experiments/second
"""

from guda_core.paths import ROOT

SETS = ROOT / "experiments" / "second" / "sets"
