"""One experiment from its name to result file and figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from curvprobe.errors import ArgumentError, MissingExtraError
from curvprobe.experiments import convergence, decay, error_map, fc, ratio, timing, validity
from curvprobe.experiments.cost import DryRun, dry_run
from curvprobe.experiments.experiment import Experiment
from curvprobe.experiments.machine import describe
from curvprobe.experiments.options import Options
from curvprobe.experiments.solutions import Language
from curvprobe.losses import causal_lm
from curvprobe.risk.empirical import EmpiricalRisk
from curvprobe.runtime.store import RESULT, Store
from curvprobe.tasks.digits import digits

Preset = Literal["cpu", "paper"]

EXPERIMENTS: dict[str, Experiment] = {
    module.EXPERIMENT.name: module.EXPERIMENT for module in (decay, ratio, validity, convergence, error_map, timing, fc)
}
"""By name."""

EXPERIMENT_VERSION = 1
"""Of an experiment's ``result.json``."""

_PACED_BY = 32
"""Examples by which the pace of a machine is judged, at most."""


@dataclass(frozen=True)
class Finished:
    """What an experiment found: as values, as sentences, and where it lies."""

    result: dict[str, Any]
    findings: list[str]
    paths: list[Path]


def check_options(experiment: Experiment, options: Options) -> None:
    """Refuse options that the experiment has no use for.

    Raises:
        ArgumentError: says which.
    """
    name, reads = experiment.name, experiment.has_language(options)
    if options.weights == "converged" and not experiment.grows:
        growing = " or ".join(one.name for one in EXPERIMENTS.values() if one.grows)
        raise ArgumentError(f"converged weights came for {name}; expected for {growing} only")
    if options.literal and not experiment.has_literal:
        always = "; timing always has the paper's procedure beside" if name == "timing" else ""
        those = ", ".join(one.name for one in EXPERIMENTS.values() if one.has_literal)
        raise ArgumentError(f"literal came for {name}; expected for {those} only{always}")
    if options.device != "cpu" and not reads:
        raise ArgumentError(
            f"the device {options.device} came for {name} on scikit-learn's digits, which runs on the cpu"
        )
    if options.text is not None and not reads:
        raise ArgumentError(f"a text came for {name} on scikit-learn's digits, which needs none")


def run_experiment(
    name: str,
    *,
    preset: Preset = "cpu",
    settings: Any = None,
    options: Options | None = None,
    out: str | Path,
    stages: str | Path | None = None,
    say: Callable[[str], None] = print,
) -> Finished:
    """Run one of the paper's experiments, or go on with one that was interrupted.

    Args:
        name: decay, ratio, validity, convergence, error-map, timing or fc.
        preset: sizes for two cores, or the paper's for one GPU.
        settings: sizes of your own, of the experiment's ``Settings``, instead of a preset.
        options: see :class:`Options`.
        out: folder for ``result.json`` and the figures.
        stages: folder of finished points; None takes ``out/stages``. decay and ratio share theirs.
        say: takes the lines to show while it runs.

    Raises:
        ValueError: for a name or option that does not exist, or a text that is too short.
    """
    experiment, options = named(name), options or Options()
    check_options(experiment, options)
    results = Store.at(out)
    store = Store.at(Path(out) / "stages" if stages is None else stages)
    with results.held(), store.held():
        return _finished(experiment, preset, settings, options, results, store, say)


def _finished(
    experiment: Experiment,
    preset: Preset,
    settings: Any,
    options: Options,
    results: Store,
    store: Store,
    say: Callable[[str], None],
) -> Finished:
    """The experiment's points, result and figures."""
    name, out = experiment.name, results.directory
    assert out is not None
    chosen = experiment.presets[preset] if settings is None else settings
    expected = experiment.cost(chosen, options).seconds(_pacemaker(experiment, chosen, options, store))
    say(f"{name}: estimate {expected / 60:.1f} minutes on this machine, less what is finished already")
    result = experiment.measure(chosen, options, store)
    findings = experiment.findings(result)
    record: dict[str, Any] = {
        "schema_version": EXPERIMENT_VERSION,
        "experiment": name,
        "preset": preset if settings is None else "own",
        "options": asdict(options) | {"text": None if options.text is None else options.text.name},
        "settings": asdict(chosen),
        "machine": describe(),
        "estimate_seconds": expected,
        "seconds": store.seconds,  # of all points, also those of earlier runs
        "findings": findings,
        "result": result,
    }
    Store(out, store.finished).write_result(record)
    return Finished(record, findings, [out / RESULT, *_drawn(experiment, result, out, say)])


def _drawn(experiment: Experiment, result: dict[str, Any], folder: Path, say: Callable[[str], None]) -> list[Path]:
    """Paths of the figures; none where the plotting library is not installed."""
    try:
        from curvprobe.plots import save

        return save(experiment.figures(result), folder)
    except MissingExtraError as error:
        say(f"No figures: {error}")
        return []


def rehearse(name: str, *, preset: Preset = "cpu", options: Options | None = None) -> DryRun | float:
    """What the full run would take: of a language model, by passing one sequence through it at its full size; of a
    classifier of digits, the seconds on this machine."""
    experiment, options = named(name), options or Options()
    check_options(experiment, options)
    settings = experiment.presets[preset]
    cost = experiment.cost(settings, options)
    risk = _pacemaker(experiment, settings, options, Store(None), examples=1)
    if not experiment.has_language(options):
        return float(cost.seconds(risk))
    available = len(settings.language.sequences(options.text, Store(None)))
    return dry_run(cost, settings.language, risk, experiment.sequences_needed(settings), available)


def named(name: str) -> Experiment:
    """The experiment of this name."""
    if name not in EXPERIMENTS:
        raise ArgumentError(f"the experiment is {name!r}; expected one of {', '.join(EXPERIMENTS)}")
    return EXPERIMENTS[name]


def _pacemaker(
    experiment: Experiment, settings: Any, options: Options, store: Store, examples: int | None = None
) -> EmpiricalRisk:
    """The experiment's model, untrained, on a few of its examples: by default its sample, where that is small."""
    examples = examples or min(_PACED_BY, getattr(settings, "k", _PACED_BY))
    if not experiment.has_language(options):
        return digits(512, rounds=0).risk()[: 16 * examples]  # an image is much less than a sequence
    language: Language = settings.language
    model = language.model(options.seed).to(options.device).eval()
    tokens = language.sequences(options.text, store)[:examples].to(options.device)
    return EmpiricalRisk(model, causal_lm, tokens)
