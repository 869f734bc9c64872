"""docs/models.md says what the tests beside this file show: each row ends in a comment that names its test."""

import ast
import re
from pathlib import Path

FOLDER = Path(__file__).parent
PAGE = FOLDER.parents[1] / "docs" / "models.md"

ROWS = re.findall(r"^\| (.+?) \| (works|refused) \| (.*?)<!-- (\w+) --> \|$", PAGE.read_text(), flags=re.MULTILINE)
"""What is asked, the verdict, what to do, and the test's name."""

TESTS = [
    node
    for path in sorted(FOLDER.glob("test_*.py"))
    if path.name != Path(__file__).name
    for node in ast.parse(path.read_text()).body
    if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
]


def is_find(test: ast.FunctionDef) -> bool:
    """Whether it is expected to fail: it shows what should be, and the page what is."""
    return any("xfail" in ast.unparse(decorator) for decorator in test.decorator_list)


def calls(test: ast.FunctionDef) -> list[tuple[str, list[ast.expr]]]:
    found = [node for node in ast.walk(test) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    return [(call.func.id, call.args) for call in found]


def remedies(test: ast.FunctionDef) -> list[str]:
    """Words that the test expects in the error."""
    return [ast.literal_eval(arguments[0]) for name, arguments in calls(test) if name == "refused"]


def test_no_row_lacks_its_comment():
    assert len(ROWS) == len(re.findall(r"\| (?:works|refused) \|", PAGE.read_text()))


def test_every_row_has_a_test_and_every_test_a_row():
    assert sorted(name for *_, name in ROWS) == sorted(test.name for test in TESTS if not is_find(test))


def test_verdicts_are_what_the_tests_check():
    checked = {test.name: "refused" if remedies(test) else "works" for test in TESTS}
    assert {name: verdict for _, verdict, _, name in ROWS} == {name: checked[name] for *_, name in ROWS}


def test_rows_that_work_are_held_against_plain_double_backward():
    by_name = {test.name: {name for name, _ in calls(test)} for test in TESTS}
    for _, verdict, _, name in ROWS:
        assert verdict == "refused" or any(called.startswith(("agrees", "check_")) for called in by_name[name]), name


def test_rows_that_are_refused_have_the_error_s_words():
    expected = {test.name: remedies(test) for test in TESTS}
    for _, _, advice, name in ROWS:
        for words in expected[name]:
            assert words in advice.replace("`", ""), name
