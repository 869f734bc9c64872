"""The tables of docs/acceptance.md, from what `make acceptance` has found."""

from __future__ import annotations

from typing import Any

from benchmark import markdown, page

ABOUT = "| network | package | what it is | inputs; labels | parameters | probed |"
FOUND = "| network | k | loss; of candidates | first eigenvalue | products | doctor | trust | doctor, s | analysis, s |"
CHECKED = (
    "| network | largest residual | first pair's | in float64 | product, random vector | product, first eigenvector |"
)


def table(result: dict[str, Any]) -> str:
    """What the networks are, what was found on each, and how far that is off plain autograd in float64."""
    rows = result["rows"]
    done = [row for row in rows if "refused" not in row]
    tables = (markdown(ABOUT, map(about, rows)), markdown(FOUND, map(found, done)), markdown(CHECKED, map(off, done)))
    refused = [f"{row['network']} is refused: {row['refused']}" for row in rows if "refused" in row]
    return page(result, *tables, *refused, note=f"D = {result['dim']}")


def about(row: dict[str, Any]) -> str:
    """What a network is."""
    probed = f"{row['probed']:,}" if "probed" in row else ""
    parts = (row["network"], row["package"], row["kind"], row["data"], f"{row['parameters']:,}", probed)
    return f"| {' | '.join(parts)} |"


def found(row: dict[str, Any]) -> str:
    """What the doctor and the analysis say of it."""
    checks = [check["check"] for check in row["checks"] if check["verdict"] != "pass"]
    marks = [f"{name} {word}" for name, word in row["trust"].items() if word != "yes"]
    parts = (
        row["network"],
        str(row["k"]),
        f"{row['loss']:.3g}; {row['held_out_loss']:.3g}",
        f"{row['eigenvalues'][0]:.3g}",
        str(row["products"]),
        row["doctor"] + (f": {', '.join(checks)}" if checks else ""),
        ", ".join(marks) or "all yes",
        f"{row['doctor_seconds']:.3g}",
        f"{row['seconds']:.3g}",
    )
    return f"| {' | '.join(parts)} |"


def off(row: dict[str, Any]) -> str:
    """How far it is off plain autograd in float64: residuals, and products against central differences."""
    of_products = (row["product_error"], row["first_product_error"])
    numbers = (max(row["residuals"]), row["residuals"][0], row["first_residual"], *of_products)
    return f"| {row['network']} | {' | '.join(f'{number:.1g}' for number in numbers)} |"
