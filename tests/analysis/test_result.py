import json

import torch

import curvprobe as cp
from curvprobe.subspace.eigenspace import plan_memory


def words(text: str) -> str:
    """A text without its line breaks and columns."""
    return " ".join(text.split())


def test_the_text_names_the_candidates_that_move_it_most(analysis):
    first = int(analysis.ranking.order[0])
    rows = [line.split() for line in analysis.table().split("\n")]
    columns = analysis.ranking.columns().values()
    assert [str(first), *(f"{float(column[first]):.3g}" for column in columns)] in rows
    assert "in bfloat16 it would hide the increment's change" in words(analysis.table())


def test_the_text_fits_a_terminal_and_is_plain(analysis):
    text = analysis.table()
    assert max(len(line) for line in text.split("\n")) <= 80
    assert text.isascii()
    assert text.isprintable() or set(text) - {"\n"} == {c for c in text if c.isprintable()}


def test_result_file_holds_every_number_with_its_error(case, tmp_path):
    analysis = cp.analyze(case.risk(), case.candidates, dim=3, out=tmp_path, sigma=1e-2)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["versions"]["torch"] == torch.__version__
    assert result["config"]["seed"] == 0
    assert result["sigma"] == {"value": 1e-2, "source": "given", "verdict": analysis.verdict}
    assert len(result["eigenspace"]["residuals"]) == 3
    for name, estimate in analysis.estimates().items():
        assert result["first_candidate"][name]["value"] == estimate.value
        assert result["first_candidate"][name]["stderr"] == estimate.stderr


def test_table_and_dataframe(analysis):
    rows = [" ".join(line.split()) for line in analysis.table().split("\n")]
    controlled, direct = analysis.controlled, analysis.direct
    for name, found in (("controlled", controlled), ("direct Monte Carlo", direct)):
        reach, rms = f"+- {found.reach:.2g}", f"{found.rms:.3g}"
        assert f"Delta_2^(4), {name} {found.value:.3g} {reach} {rms} truth" in rows
    assert f"Delta_1, at the solution {analysis.delta1.value:.3g} exact {analysis.delta1.value:.3g} truth" in rows
    assert sum(row.startswith("Delta_") for row in rows) == len(analysis.estimates())
    frame = analysis.to_dataframe()
    assert list(frame["value"]) == [estimate.value for estimate in analysis.estimates().values()]


def test_every_estimate_names_its_target(analysis):
    targets = {name: entry["target"] for name, entry in analysis.to_json()["first_candidate"].items()}
    assert {name for name, target in targets.items() if target == "quadratic model"} == {
        "delta2_subspace_closed_form",
        "delta2_subspace_quadratic_monte_carlo",
        "delta2_isotropic_closed_form",
    }


def test_the_result_says_what_was_chosen_for_the_work(case, tmp_path):
    risk = case.risk(memory_budget=2**20)
    cp.analyze(risk, case.candidates, dim=2, sigma=1e-2, out=tmp_path)
    engine = json.loads((tmp_path / "result.json").read_text())["config"]["engine"]
    assert engine == {
        "memory_budget": 2**20,
        "microbatch_size": risk.microbatch_size,
        "solver_microbatch_size": plan_memory(risk, 2)[0].microbatch_size,
        "graph_kept_between_products": True,
        "compile": False,
        "tangents_at_once": 1,
        "basis_size": 13,
        "basis_device": "cpu",
    }
    other = cp.analyze(case.risk(microbatch_size=7), case.candidates, dim=2, sigma=1e-2)
    assert other.config["engine"]["microbatch_size"] == 7
    assert other.config["engine"]["graph_kept_between_products"] is False


def test_the_concentration_is_told_where_it_is_asked_for(case, tmp_path):
    from curvprobe.plots import save_figures

    analysis = cp.analyze(case.risk(), case.candidates, dim=2, concentration=True, out=tmp_path)
    curve = cp.concentration_curve(case.risk(), case.risk().on(case.candidates), sigma=analysis.sigma, dim=2)
    assert analysis.concentration.names == curve.names
    assert torch.allclose(analysis.concentration.shape, curve.shape, rtol=1e-3, equal_nan=True)
    again = cp.analyze(case.risk(), case.candidates, dim=2, concentration=True, out=tmp_path)
    assert again.seconds["concentration"] == 0
    assert torch.equal(again.concentration.shape, analysis.concentration.shape)
    written = json.loads((tmp_path / "result.json").read_text())["concentration"]
    assert written["subspaces"]["hessian"]["shape"] == analysis.concentration.shape[0].tolist()
    assert "How much of it the first D directions hold" in again.table()
    null = " ".join(f"{value:.3g}" for value in curve.null.tolist())
    assert f"null, D / N {null}" in words(again.table())
    assert (tmp_path / "concentration.png") in save_figures(again, tmp_path)
    assert cp.analyze(case.risk(), case.candidates, dim=2).concentration is None


def test_a_decrement_that_does_not_exist_is_said_so(case):
    analysis = cp.analyze(case.risk(), case.candidates, dim=2, which="smallest")
    assert float(analysis.subspace.eigenvalues[0]) < 0
    assert "is not defined" in analysis.table()


def test_every_part_shows_itself_in_one_line(analysis):
    for name, part in vars(analysis).items():
        if name in ("config", "versions", "seconds", "examination"):  # words of their own
            continue
        assert "\n" not in repr(part), name
        assert len(repr(part)) < 700, name
    assert repr(analysis) == f"Analysis(k=30, num_params=45, dim=4, sigma={analysis.sigma:.3g})"
    assert repr(analysis.subspace).startswith("Eigenspace(basis=<float64 (45, 4)>, eigenvalues=<float64 (4,)>")
    assert repr(analysis.decay).startswith("DecayCurve(ks=<int64 (27,)>")
