"""`guda replay`: computes a report again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from guda_core.cli.loading import service_as_made
from guda_core.cli.sign_command import SIGNER, checked
from guda_core.cli.terminal import HomeOption, LoraOption, bar_of, say
from guda_core.errors import OptionError

SAID = {
    "equal": "Equal: every score is bitwise the same.",
    "within tolerance": (
        "Within tolerance: every number is the same to one part in a thousand (or 0.001 nats). In half precision, a "
        "number may also move by a sixth of its interval, and scope's statistic by 0.2. A picture that was drawn or "
        "prepared again may differ a little."
    ),
    "different": "Different.",
}


def replay(
    report: Annotated[Path, typer.Argument(help="The zip of a report, or its report.json beside picture.png.")],
    model: Annotated[
        str | None, typer.Option("--model", help="The model, if not the card that the report names.")
    ] = None,
    lora: LoraOption = None,
    group_set: Annotated[
        str | None, typer.Option("--set", help="A group set, if not the one that the report names.")
    ] = None,
    signature: Annotated[
        Path | None, typer.Option("--signature", help="A signature of the report; it is checked first. With --signer.")
    ] = None,
    signer: Annotated[Path | None, typer.Option("--signer", help=SIGNER)] = None,
    home: HomeOption = None,
) -> None:
    """Compute a report again: equal, within tolerance, or different and where. Exit code 1 when different."""
    if (signature is None) != (signer is None):
        raise OptionError("--signature and --signer go together: the signature, and the public key of who signed.")
    from guda_core.reports.findings import AROUND, SCOPE, Verdict, differences
    from guda_core.reports.read import read_report
    from guda_core.reports.replay import replay as run

    if signature is not None and signer is not None:
        say(f"Signed by the holder of the key {checked(report, signature, signer)}.")
    read = read_report(report)
    device, made = read.record["hardware"]["device"], read.record["model"]
    chosen = group_set or read.record["group_set"]["id"]
    service = service_as_made(model, made["id"], chosen, "This report is", device=device, dtype=made["dtype"])
    verdict = None
    with bar_of("replay") as tell:
        for item in run(read, service):
            if isinstance(item, Verdict):
                verdict = item
            else:
                tell(item.progress, item.what)
    assert verdict is not None
    say(SAID[verdict.outcome])
    for title, changes in (
        ("What the answer is computed from:", verdict.inputs),
        ("The answer:", verdict.scores),
        (f"{SCOPE}:", verdict.scope),
        (f"{AROUND}:", verdict.environment),
    ):
        if changes:
            say(title)
        for said in differences(changes):
            say(f"  {said}")
    if verdict.outcome == "different":
        raise typer.Exit(1)
