"""Mixed data: each row is judged by the verifiers that its columns choose."""

from __future__ import annotations

import pytest

from rewards.build import VerifierSpec
from rewards.compose import combine
from rewards.selection import applies, check_rows, choose, place_of
from rewards.verdict import correct, wrong

MATH = VerifierSpec("answer", "math", when={"kind": ("algebra", "geometry")})
CODE = VerifierSpec("tests", "my_tests.py:run", when={"kind": ("program",)})
HARD = VerifierSpec("hard", "exact", weight=0.5, when={"kind": ("program",), "level": (5, "5")})
FORM = VerifierSpec("form", "format", weight=0.1)
ALL = (MATH, CODE, HARD, FORM)


def test_a_row_is_judged_by_what_its_columns_choose() -> None:
    def names(**row: object) -> list[str]:
        return [spec.name for spec in choose(ALL, row)]

    assert names(kind="algebra", level=5) == names(kind="geometry", level=1) == ["answer", "form"]
    assert names(kind="program", level=1) == ["tests", "form"]
    assert names(kind="program", level=5) == names(kind="program", level="5") == ["tests", "hard", "form"]
    assert names() == ["form"]


def test_values_are_not_taken_for_others() -> None:
    spec = VerifierSpec("a", "math", when={"checked": (True,), "level": (1,)})
    assert applies(spec, {"checked": True, "level": 1})
    assert not applies(spec, {"checked": 1, "level": 1})
    assert not applies(spec, {"checked": True, "level": True})
    assert not applies(spec, {"checked": True, "level": "1"})


def test_a_verifier_that_does_not_apply_is_absent_and_not_zero() -> None:
    reward = combine(choose(ALL, {"kind": "algebra"}), {"answer": correct(), "form": wrong()})
    assert reward.value == 1.0 and dict(reward.parts) == {"answer": 1.0, "form": 0.0}
    with pytest.raises(ValueError, match="exactly"):
        combine(choose(ALL, {"kind": "program"}), {"answer": correct(), "form": wrong()})


def test_every_row_of_sound_data_passes() -> None:
    check_rows(ALL, [("rows:0", {"kind": "algebra", "level": 1}), ("rows:1", {"kind": "program", "level": 2})])
    check_rows((FORM,), [("rows:0", {})])
    # A first verifier without `when` judges every row; the others only add to it.
    check_rows((VerifierSpec("answer", "math"), HARD), [("rows:0", {"kind": "algebra", "level": 1})])


@pytest.mark.parametrize(
    ("specs", "row", "told"),
    [
        (
            ALL,
            {"kind": "algebr", "level": 1},
            ["row 7 of rows has kind='algebr'", "'algebra' or 'geometry'", "but form"],
        ),
        (ALL, {"kind": None, "level": 1}, ["kind=None", "correct the row"]),
        (ALL, {"knd": "algebra", "level": 1}, ["no column 'kind'", "did you mean 'knd'?"]),
        ((MATH,), {"kind": "program"}, ["kind='program'", "no verifier is configured"]),
        ((FORM, VerifierSpec("a", "math", weight=0.0, when={"kind": ("x",)})), {"kind": "y"}, None),
        ((VerifierSpec("f", "format", weight=0.0), MATH), {"kind": "y"}, ["no verifier but f"]),
    ],
)
def test_a_row_that_no_verifier_knows_is_refused_with_the_remedy(specs, row, told) -> None:
    rows = [("rows:6", {"kind": "algebra", "level": 3}), ("rows:7", row)]
    if told is None:
        check_rows(specs, rows)
        return
    with pytest.raises(ValueError) as refused:
        check_rows(specs, rows)
    assert [part for part in told if part not in str(refused.value)] == []


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("rows.jsonl:0", "row 0 of rows.jsonl"),
        ("gsm8k:data/rows.csv:12", "row 12 of gsm8k:data/rows.csv"),
        ("rows", "row rows"),
        ("a:b", "row a:b"),
    ],
)
def test_the_number_of_a_row_does_not_look_like_a_line(name: str, place: str) -> None:
    assert place_of(name) == place
