"""Single examples' curvatures in a subspace, operation by operation, without a Hessian product.

A loss is a composition of operations, and its second derivative along two directions collects what each of them adds:
``u^T H v = sum over operations of < adjoint, f''[tangent_u, tangent_v] >``. What a linear operation adds is nothing.
One example is recorded (``recording``); its values and adjoints are found for many examples at once, and D tangents are
pushed through (``sweep``), by what is known of each operation (``operations`` and the files that it names).

Imports the rest of curvature, risk and the ground; curvature and subspace may import it.
"""
