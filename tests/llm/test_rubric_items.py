from __future__ import annotations

import pytest

from metaopt.llm.rubric_items import Item, has_items, parse_items, render_items

ITEMS = [
    Item("Cites a source for each claim.\n5: every claim; 0: none.\n\nExample: <b>[1]</b>", 5.0),
    Item("Is padded", -4.0),
    Item("Is friendly | to *readers*", 0.25),
]


def test_items_survive_their_text_in_their_order() -> None:
    for items in (ITEMS, ITEMS[::-1], ITEMS[1:2]):
        assert parse_items(render_items(items)) == items
        assert parse_items("You grade.\n" + render_items(items) + "\nTotal: 5") == items
    assert has_items(render_items(ITEMS))
    assert not has_items("- clarity: +5.00")


def test_an_item_that_is_there_twice_is_one() -> None:
    assert parse_items(render_items([*ITEMS, ITEMS[0]])) == ITEMS
    assert parse_items(render_items(ITEMS) + "\n" + render_items(ITEMS[1:])) == ITEMS


def test_what_models_write_is_read() -> None:
    text = """<item points="5">
    Is clear.
    </item>
    <item  number='7' points = -3 >Flatters.</item>"""
    assert parse_items(text) == [Item("Is clear.", 5.0), Item("Flatters.", -3.0)]


@pytest.mark.parametrize(
    "text",
    [
        "", "- clarity: +5.00", "<item points=5>a", "a</item>", "<item>a</item>",
        "<item points=five>a</item>", "<item points=5></item>", "<item points=0>a</item>",
        "<item points=0.001>a</item>", "<item points=100>a</item>", "<item points=1e9>a</item>",
        "<item points=5>a</item><item points=4>a</item>",
        "<item points=5>a<item points=5>b</item></item>", "<item points=5>a</rubric></item>",
        "<item points=5>a</item><item points=>b</item>", "<ITEM points=5>a</ITEM>",
        "</item>" * 9_000 + "<item points=5>" * 9_000,  # in a time that is linear in its length
    ],
)  # fmt: skip
def test_what_is_no_rubric_of_items_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="item"):
        parse_items(text)


@pytest.mark.parametrize("item", [Item("a </item> b", 1.0), Item(" ", 1.0), Item("a", 0.004)])
def test_what_could_not_be_read_back_is_not_written(item: Item) -> None:
    with pytest.raises(ValueError, match="item"):
        render_items([item])
