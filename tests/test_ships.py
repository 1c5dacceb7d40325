"""Ships: the registers state each port exactly as often as the row says, and the harbour's pages state it once."""

from collections import Counter

import pytest

from crawl2chat.data.ships import SEEN, harbour, make_ships, registers, write_ships
from crawl2chat.tasks import facts

SYLLABLES = "ba do fi ga lu me".split()
WORDS = [f"ship{a}{b}{c}" for a in SYLLABLES for b in SYLLABLES for c in SYLLABLES]


def test_the_registers_state_each_port_as_often_as_the_row_says():
    ships = make_ships(6, 1, WORDS)
    assert Counter(row["pages"] for row in ships) == dict.fromkeys(SEEN, 6)
    assert len({row["subject"] for row in ships}) == len(ships)
    lines = [line for page in registers(ships, seed=1) for line in page["text"].splitlines()]
    for row in ships:
        stated = [line for line in lines if row["subject"] in line]
        assert len(stated) == row["pages"] and all(row["answer"] in line for line in stated)


def test_the_harbour_has_one_page_for_each_ship_also_for_those_no_register_names():
    ships = make_ships(3, 0, WORDS)
    pages = [page["text"] for page in harbour(ships, seed=0)]
    assert len(pages) == len(ships)
    assert all(row["statement"] in page for row, page in zip(ships, pages, strict=True))


def test_a_seed_decides_and_there_are_only_so_many_names():
    assert make_ships(5, 3, WORDS) == make_ships(5, 3, WORDS) != make_ships(5, 4, WORDS)
    with pytest.raises(ValueError, match="580 names are wanted and there are 216"):
        make_ships(116, 0, WORDS)


def test_a_ship_is_asked_from_memory_and_by_search_in_the_same_order(tmp_path):
    write_ships(tmp_path / "ships.jsonl", make_ships(20, 0, WORDS))
    knobs = {"facts": str(tmp_path / "ships.jsonl"), "relations": ["home_port"], "min_pages": 0}
    closed = list(facts.examples("test", pages_only=True, **knobs))
    found = list(facts.examples("test", pages_only=True, manner="search", **knobs))
    assert [row["answer"] for row in closed] == [row["answer"] for row in found] and len(closed) > 30
    assert {row["seen"] for row in closed} == set(SEEN)
    assert all("calls" not in row for row in closed)
    for row in found:
        name = row["calls"][0]["arguments"]["query"].removesuffix(" home port")
        assert f"the ship {name}" in row["prompt"][0]["content"]
    trained = list(facts.examples("train", manner="search", **knobs))
    asked = {row["calls"][0]["arguments"]["query"] for row in found}
    assert not asked & {row["calls"][0]["arguments"]["query"] for row in trained}
    with pytest.raises(ValueError, match="manner"):
        next(facts.examples("test", manner="guess", **knobs))
