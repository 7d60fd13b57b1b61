"""Settings of the classes benchmarks: the digits, a quick form of them, and the paper's CIFAR-10 experiment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from experiments.baselines.instance import InstanceConfig
from experiments.benchmark.scores import ScoreConfig
from experiments.benchmark.strata import OLD_RULE
from experiments.train.class_models import ClassesConfig
from experiments.train.classifier import ClassifierConfig
from guda_core.attribution.gradient.das import Das
from guda_core.attribution.gradient.dtrak import Dtrak
from guda_core.attribution.gradient.kernel import KernelConfig
from guda_core.attribution.gradient.trak import Trak
from guda_core.errors import OptionError
from guda_core.unlearning.config import UnconditionalConfig
from guda_core.unlearning.loop import LoopConfig

_LOOP = LoopConfig(steps=28, batch=32, lr=5e-4, warmup=2, weight_decay=0.0, seed=5)
KERNELS = (Trak, Dtrak, Das)
FIRST = "guda-retrack"  # the row that the others are compared with
# Chosen on the digits' tuning half (`experiments.ablations.tuning`), all within a hundredth of retraining's cost.
OPERATORS = {
    FIRST: UnconditionalConfig("retrack", forget_weight=1.0, neighbours=50, bandwidth=None, loop=_LOOP),
    "guda-retrack-unsmoothed": UnconditionalConfig("retrack", loop=_LOOP),  # lambda_f and K of the paper
    "guda-esd": UnconditionalConfig("esd_fine_tuned", forget_weight=0.3, expert_steps=28, loop=_LOOP),
}


@dataclass(frozen=True)
class BenchConfig:
    """name: of the written files. models, scores, kernels (of TRAK, D-TRAK and DAS), instance, classifier: see there.
    unlearning: row name -> settings. generated: queries sampled from the full model, besides the held-out pictures, in
    ddim_steps from query_seed. second_seed: of the ceiling, None = no ceiling. instance_examples: training pictures a
    class that instance unlearning looks at, None = all (it costs a forward pass a picture and query)."""

    name: str = "digits"
    models: ClassesConfig = field(default_factory=ClassesConfig)
    scores: ScoreConfig = field(default_factory=lambda: ScoreConfig(rule=OLD_RULE))  # of the committed figures
    unlearning: Mapping[str, UnconditionalConfig] = field(default_factory=lambda: dict(OPERATORS))
    kernels: Mapping[str, KernelConfig] = field(default_factory=lambda: {m.id: m.defaults() for m in KERNELS})
    instance: InstanceConfig = field(default_factory=InstanceConfig)
    instance_examples: int | None = 10
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    generated: int = 1000
    ddim_steps: int = 50
    query_seed: int = 101
    second_seed: int | None = 4

    @property
    def command(self) -> str:
        """What runs it: `python -m experiments.digits --quick`."""
        name = self.name.removesuffix("-quick")
        how = " --quick" if name != self.name else ""
        how += " --no-ceiling" if self.second_seed is None else ""
        return f"python -m experiments.{name}{how}"


def _quick() -> BenchConfig:
    loop = LoopConfig(steps=800, batch=128, lr=1e-3, warmup=50, ema=0.995, weight_decay=0.0, seed=3)
    return BenchConfig(
        name="digits-quick",
        models=ClassesConfig(channels=(16, 32), head=16, loop=loop),
        instance_examples=5,
        generated=150,
    )


def _cifar10() -> BenchConfig:
    """The paper's experiment: 32 px, T = 4000, cosine, one timestep in ten, 2,048 queries; the network of Ho et al.

    loop: 2,400 epochs of 50,000 pictures; unlearning: 20 epochs of the forgotten class.
    """
    loop = LoopConfig(steps=937_500, batch=128, lr=2e-4, warmup=5000, ema=0.9999, weight_decay=0.0, seed=3)
    again = LoopConfig(steps=780, batch=128, lr=1e-5, warmup=10, weight_decay=0.0, seed=5)
    return BenchConfig(
        name="cifar10",
        models=ClassesConfig(
            dataset="cifar10",
            channels=(128, 256, 256, 256),
            attention=(False, True, False, False),
            layers=2,
            head=256,
            norm_groups=32,
            timesteps=4000,
            schedule="cosine",
            held_out=0,
            mixed_precision="fp16",
            loop=loop,
        ),
        scores=ScoreConfig(strata=400, draws=1),
        unlearning={
            FIRST: UnconditionalConfig("retrack", loop=again),
            "guda-esd": UnconditionalConfig("esd_fine_tuned", loop=again),
        },
        generated=2048,
    )


BENCHES = {"digits": BenchConfig, "digits-quick": _quick, "cifar10": _cifar10}


def find(name: str) -> BenchConfig:
    """The bench of that name. Raises OptionError that lists the known ones."""
    if name not in BENCHES:
        raise OptionError(f"There is no benchmark '{name}'. Known: {', '.join(BENCHES)}.")
    return BENCHES[name]()
