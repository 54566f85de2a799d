"""Tables for notebooks, read back by a parser of HTML."""

from __future__ import annotations

from html.parser import HTMLParser

from rankwise.notebook import html_table


class Cells(HTMLParser):
    """The texts of a table, line by line, each with its tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.lines: list[list[tuple[str, str]]] = []
        self.inside = ""
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: object) -> None:
        self.tags.add(tag)
        self.inside = tag if tag in ("th", "td") else ""
        if tag == "tr":
            self.lines.append([])
        if self.inside:
            self.lines[-1].append((tag, ""))

    def handle_data(self, data: str) -> None:
        assert self.inside, f"{data!r} stands in no cell"
        tag, text = self.lines[-1].pop()
        self.lines[-1].append((tag, text + data))

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""


def test_cells_come_in_their_order_and_as_texts() -> None:
    found = Cells(html_table(["step", 2], [[1, "é"], [None, 0.5]])).lines
    assert found == [[("th", "step"), ("th", "2")], [("td", "1"), ("td", "é")], [("td", "None"), ("td", "0.5")]]


def test_no_cell_can_leave_its_place() -> None:
    evil = ["<script>alert(1)</script>", "</td></tr></table>", "&lt;", "\"'&amp;"]
    found = Cells(html_table(evil, [evil]))
    assert [text for _, text in found.lines[0]] == evil
    assert [text for _, text in found.lines[1]] == evil
    assert found.tags == {"table", "thead", "tbody", "tr", "th", "td"}


def test_generators_are_taken_and_nothing_is_an_empty_table() -> None:
    once = html_table((name for name in "ab"), ((cell for cell in line) for line in ["cd"]))
    assert once == html_table(["a", "b"], [["c", "d"]])
    assert Cells(html_table([], [])).lines == [[]]
