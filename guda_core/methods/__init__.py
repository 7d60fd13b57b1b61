"""Attribution methods, one a file. Each answers a query with `Attribution`s that refine.

METHODS: id -> (name as shown, module). Modules are imported when used.
"""

METHODS: dict[str, tuple[str, str]] = {
    "clip": ("CLIP similarity", "guda_core.methods.clip"),
    "guda": ("GUDA (unlearning)", "guda_core.methods.guda"),
}
