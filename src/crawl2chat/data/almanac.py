"""Pages written from facts about countries and elements: every fact in many pages and in many wordings."""

import random

from crawl2chat.data.facts import Sources, upper
from crawl2chat.data.pages import Page, slug

ALMANAC = "https://almanac.example.org"


def pages(sources: Sources, rng: random.Random) -> list[Page]:
    """All almanac pages."""
    result = []
    for c in sources.countries:
        x, y, k = c["the_name"], c["capital"], c["continent"]
        blocks = [
            ("p", f"{upper(x)} is a country in {k}. The capital of {x} is {y}. About {c['population']} people live there, "
             f"and they call themselves {c['demonym']}."),
            ("p", f"What is the capital of {x}? {y}. Which continent is {x} part of? {k}. If you ask people in {y} "
             f"where they live, they answer that they live in the capital city and that it is a fine place to be."),
            ("p", f"On a map of {k} you can see {x}. {y} is the capital of {x}, and the government sits there."),
        ]  # fmt: skip
        url = f"{ALMANAC}/countries/{slug(c['name'])}/profile"
        result.append(Page(url, c["name"], blocks, "almanac", facts=[(x, "capital"), (x, "continent")]))
    for e in sources.elements:
        x, s, n = e["name"], e["symbol"], e["number"]
        blocks = [
            ("p", f"{upper(x)} is a {e['category']}. The symbol of {x} is {s}, and its atomic number is {n}. Every atom "
             f"of {x} has {n} protons in its nucleus."),
            ("p", f"What is the symbol of {x}? {s}. What is the atomic number of {x}? {n}. In the table the box with the "
             f"number {n} holds the letters {s}, and they stand for {x}."),
            ("p", f"Element {n} is {x}. At room temperature {x} is a {e['state']}, and it stands in period {e['period']}."),
        ]  # fmt: skip
        url = f"{ALMANAC}/elements/{slug(x)}/profile"
        result.append(Page(url, upper(x), blocks, "almanac", facts=[(x, "symbol"), (x, "atomic_number")]))
    return result
