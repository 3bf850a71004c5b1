"""Operations on matrices that are done while an answer is read: small determinants, multiples, transposition."""

from __future__ import annotations

from itertools import islice

from rewards.mathematics.nodes import Apply, Expression, Matrix, Node, Sequence, walk

# Greatest number of nodes in an entry or a factor. The operations copy entries and factors, so without this limit,
# nested operations could make a very large tree.
_MAX_NODES = 12


def determinant(rows: tuple[tuple[Node, ...], ...]) -> Node | None:
    """The determinant of a 2 by 2 or 3 by 3 matrix of small expressions; None for other matrices."""
    size = len(rows)
    cells = [cell for row in rows for cell in row]
    if size not in (2, 3) or len(rows[0]) != size or not all(_is_small(cell) for cell in cells):
        return None
    if size == 2:
        (a, b), (c, d) = rows
        return _sum([(a, d)], [(b, c)])
    (a, b, c), (d, e, f), (g, h, i) = rows
    return _sum([(a, e, i), (b, f, g), (c, d, h)], [(c, e, g), (b, d, i), (a, f, h)])


def _sum(plus: list[tuple[Node, ...]], minus: list[tuple[Node, ...]]) -> Node:
    return Apply("add", (*(Apply("mul", each) for each in plus), *(Apply("neg", (Apply("mul", m),)) for m in minus)))


def multiple(factors: list[Node]) -> Matrix | None:
    """The product of small expressions and one matrix; None for other factors."""
    matrices = [factor for factor in factors if isinstance(factor, Matrix) and factor.kind == "matrix"]
    scalars = [factor for factor in factors if not isinstance(factor, Matrix)]
    if len(matrices) != 1 or len(scalars) != len(factors) - 1 or not all(map(_is_small, scalars)):
        return None
    rows = (tuple(Apply("mul", (*scalars, cell)) for cell in row) for row in matrices[0].rows)
    return Matrix("matrix", tuple(rows))


def transposed(node: Node) -> Matrix | None:
    """Transpose a matrix, or a vector that is written as a row in brackets; None for any other node."""
    if isinstance(node, Matrix) and node.kind == "matrix":
        return Matrix("matrix", tuple(zip(*node.rows, strict=True)))
    if not isinstance(node, Sequence) or node.brackets not in ("[]", "()") or not node.items:
        return None
    flat = all(isinstance(item, Expression) for item in node.items)
    return Matrix("matrix", tuple((item,) for item in node.items)) if flat else None


def _is_small(node: Node) -> bool:
    nodes = list(islice(walk(node), _MAX_NODES + 1))
    return len(nodes) <= _MAX_NODES and all(isinstance(each, Expression) for each in nodes)
