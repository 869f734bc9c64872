"""The part of the scaling benchmark that tells what a solve spends beside its products, in small."""

from tests.benchmarks.test_benchmarks import run


def test_what_a_solve_spends_beside_its_products(tmp_path):
    import scaling

    result = run(scaling, tmp_path, "--parts beside --beside 1500")
    assert [row["dim"] for row in result["beside"]["rows"]] == [10, 45]
    assert all(0 <= row["share_beside"] < 1 for row in result["beside"]["rows"])
    assert "orthogonalisation" in scaling.beside_table(result["beside"])
