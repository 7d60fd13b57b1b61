"""What was measured on a GPU, as a table (for `readme.py`)."""

from __future__ import annotations

from typing import Any

from experiments.tables.committed import Lines, read, table
from guda_core.unlearning.defaults import OF_LARGE


def _part(name: str) -> dict[str, Any]:
    record = read("gpu")
    return record["parts"].get(name, {}) if record else {}


def pass_seconds() -> float | None:
    """Seconds that a pass of Stable Diffusion 1.5 takes for one picture of 512 pixels, float16, in a whole attribution
    of effort quick; None where no GPU was measured."""
    rate = _part("scoring").get("quick", {}).get("passes_s")
    return 1 / rate if rate else None


def gpu_shares() -> dict[str, float]:
    """Effort -> passes a second of an attribution as a share of the network's alone; {} where none was measured."""
    found = _part("scoring")
    return {e: found[e]["share_of_bare"] for e in ("quick", "full") if "share_of_bare" in found.get(e, {})}


def unlearning_seconds() -> float | None:
    """Seconds that all steps of one group's unlearning take, of the same model, with checkpointing; None as above."""
    each = _part("unlearning").get("float16, checkpointing", {}).get("step_s")
    return None if each is None else each * OF_LARGE["stable_diffusion"]["steps"]


def _best(part: dict[str, Any], dtype: str) -> float:
    return max(r["passes_s"] for r in part[dtype].values() if r["passes_s"])


@table("gpu")
def gpu(record: dict[str, Any]) -> Lines:
    """Rates, attribution, unlearning and number types."""
    parts = record["parts"]
    scored, types, own = parts["scoring"], parts["types"], parts["embedded"]
    checked, unchecked = (parts["unlearning"][f"float16, {w}checkpointing"] for w in ("", "no "))
    plain, beside = parts["unlearning"]["plain LoRA step, checkpointing"], parts["unlearning"]["float16 beside float32"]
    off = ", ".join(f"{types[d]['largest_off_in_se']:.1f} ({d})" for d in ("float16", "bfloat16"))
    rows = {
        "UNet of Stable Diffusion 1.5 alone, 512 px, float16": f"{_best(parts['bare'], 'float16'):.0f} passes a second",
        "UNet of Stable Diffusion XL alone, 1024 px, float16": f"{_best(parts['sdxl_bare'], 'float16'):.0f} passes a "
        "second",
        **{
            f"a picture, {scored['groups']} groups, effort {e}": f"{scored[e]['seconds']:.1f} s, "
            f"{100 * scored[e]['share_of_bare']:.0f}% of the UNet's rate, {scored[e]['peak_gib']:.0f} GiB"
            for e in ("quick", "full")
        },
        "switch an adapter": f"{scored['switch_ms']:.1f} ms",
        "a step of unlearning, float16, checkpointing": f"{checked['step_s']:z.2f} s, {checked['peak_gib']:.1f} GiB",
        "the same without checkpointing": f"{unchecked['step_s']:z.2f} s, {unchecked['peak_gib']:.1f} GiB",
        "beside a plain LoRA step, with checkpointing": f"{plain['ratio']:.1f} times its time",
        "float16 beside float32, after a few steps: largest weight, loss": f"{100 * beside['largest_b_off']:.1f}%, "
        f"{100 * beside['loss_off']:.1f}% off",
        "scores beside float32, in standard errors": f"at most {off}",
        "the embedded model beside the CPU": ("the same ranks" if own["same_ranks"] else "OTHER RANKS")
        + f", at most {own['largest_difference_nats']:z.2f} nats off",
    }
    yield from [(f"on {record['device']}, random weights", ""), *rows.items()]


RENDER = {"gpu": gpu}
