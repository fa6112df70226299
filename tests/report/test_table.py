from io import StringIO

from rich.console import Console

from metaopt.report.page import Heading, markdown
from metaopt.report.table import Table


def test_latex_and_markdown_escape_what_they_must():
    table = Table(["a_b", "n"], [["[x] a|b", "1 ± 2"]], "50 % & more")
    tex = table.latex()
    assert r"\caption{50 \% \& more}" in tex
    assert r"a\_b & n \\" in tex
    assert "{}[x] a|b & 1 $\\pm$ 2" in tex
    assert r"| [x] a\|b | 1 ± 2 |" in table.markdown()
    assert table.markdown().startswith("## 50 % & more\n\n| a_b | n |\n| --- | ---: |\n")


def test_a_table_in_a_page_has_no_heading_and_escapes_marks():
    page = markdown("Page", [Heading("Part"), Table(["a"], [["<b> | *c*"]])])
    assert page == "# Page\n\n## Part\n\n| a |\n| --- |\n| \\<b\\> \\| \\*c\\* |\n"


def test_plain_text_aligns_words_to_the_left_and_numbers_to_the_right():
    table = Table(["method", "against", "n"], [["a", "the baseline", "7"], ["b", "", "1,000"]])
    assert Table(table.header, table.rows, words=2).text().splitlines() == [
        "method  against           n",
        "a       the baseline      7",
        "b                     1,000",
    ]


def test_a_terminal_wraps_long_cells():
    out = StringIO()
    Console(file=out, width=20).print(Table(["a", "n"], [["x" * 30, "1"]], "Title").rich())
    assert "Title" in out.getvalue()
    assert out.getvalue().count("x") == 30
