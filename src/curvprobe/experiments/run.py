"""One experiment from its name to result file and figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from curvprobe.experiments import convergence, decay, error_map, fc, ratio, timing, validity
from curvprobe.experiments.cost import DryRun, dry_run
from curvprobe.experiments.machine import describe
from curvprobe.experiments.options import Options
from curvprobe.experiments.solutions import Language
from curvprobe.losses import causal_lm
from curvprobe.risk import EmpiricalRisk
from curvprobe.store import SCHEMA_VERSION, Store, to_json, write_atomically
from curvprobe.tasks.digits import digits

Preset = Literal["cpu", "paper"]

EXPERIMENTS: dict[str, ModuleType] = {
    "decay": decay,
    "ratio": ratio,
    "validity": validity,
    "convergence": convergence,
    "error-map": error_map,
    "timing": timing,
    "fc": fc,
}
"""Each has ``ABOUT``, ``PRESETS``, ``cost``, ``measure``, ``findings`` and ``figures``."""

_GROWING = ("decay", "ratio")
_LITERAL = (*_GROWING, "convergence", "error-map")
_PACED_BY = 32
"""Examples by which the pace of a machine is judged, at most."""


@dataclass(frozen=True)
class Finished:
    """What an experiment found: as values, as sentences, and where it lies."""

    result: dict[str, Any]
    findings: list[str]
    paths: list[Path]


def check_options(name: str, options: Options) -> None:
    """Refuse options that the experiment has no use for.

    Raises:
        ValueError: says which.
    """
    if options.weights == "converged" and name not in _GROWING:
        raise ValueError(f"converged weights came for {name}; expected for {' or '.join(_GROWING)} only")
    if options.literal and name not in _LITERAL:
        always = "; timing always has the paper's procedure beside" if name == "timing" else ""
        raise ValueError(f"literal came for {name}; expected for {', '.join(_LITERAL)} only{always}")
    if options.device != "cpu" and not _has_language(name, options):
        raise ValueError(f"the device {options.device} came for {name} on scikit-learn's digits, which runs on the cpu")
    if options.text is not None and not _has_language(name, options):
        raise ValueError(f"a text came for {name} on scikit-learn's digits, which needs none")


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
    module, options = _module(name), options or Options()
    check_options(name, options)
    folder = Store.at(out).directory
    assert folder is not None
    store = Store.at(folder / "stages" if stages is None else stages)
    chosen = module.PRESETS[preset] if settings is None else settings
    expected = module.cost(chosen, options).seconds(_pacemaker(name, chosen, options, store))
    say(f"{name}: estimate {expected / 60:.1f} minutes on this machine, less what is finished already")
    result = module.measure(chosen, options, store)
    findings = module.findings(result)
    record: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "experiment": name,
        "preset": preset if settings is None else "own",
        "options": asdict(options) | {"text": None if options.text is None else options.text.name},
        "settings": asdict(chosen),
        "machine": describe(),
        "estimate_seconds": expected,
        "seconds": sum(store.seconds.values()),  # of all points, also those of earlier runs
        "findings": findings,
        "result": result,
    }
    write_atomically(folder / "result.json", to_json(record))
    paths = [folder / "result.json"]
    try:
        from curvprobe.plots import save

        paths += save(module.figures(result), folder)
    except ImportError as error:
        say(f"No figures: {error}")
    return Finished(record, findings, paths)


def rehearse(name: str, *, preset: Preset = "cpu", options: Options | None = None) -> DryRun | float:
    """What the full run would take: of a language model, by passing one sequence through it at its full size; of a
    classifier of digits, the seconds on this machine."""
    module, options = _module(name), options or Options()
    check_options(name, options)
    settings = module.PRESETS[preset]
    cost, risk = module.cost(settings, options), _pacemaker(name, settings, options, Store(None), examples=1)
    if not _has_language(name, options):
        return float(cost.seconds(risk))
    needed = settings.ks[-1] + settings.candidates if name in _GROWING else settings.trained + 1
    return dry_run(cost, settings.language, risk, needed, len(settings.language.sequences(options.text, Store(None))))


def _module(name: str) -> ModuleType:
    if name not in EXPERIMENTS:
        raise ValueError(f"the experiment is {name!r}; expected one of {', '.join(EXPERIMENTS)}")
    return EXPERIMENTS[name]


def _has_language(name: str, options: Options) -> bool:
    return name != "fc" and options.weights == "sequential"


def _pacemaker(name: str, settings: Any, options: Options, store: Store, examples: int | None = None) -> EmpiricalRisk:
    """The experiment's model, untrained, on a few of its examples: by default its sample, where that is small."""
    examples = examples or min(_PACED_BY, getattr(settings, "k", _PACED_BY))
    if not _has_language(name, options):
        return digits(512, rounds=0).risk()[: 16 * examples]  # an image is much less than a sequence
    language: Language = settings.language
    model = language.model(options.seed).to(options.device).eval()
    tokens = language.sequences(options.text, store)[:examples].to(options.device)
    return EmpiricalRisk(model, causal_lm, tokens)
