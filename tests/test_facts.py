"""Facts are read from packages' data as data, cleaned of what nobody could answer, and stated in plain sentences."""

import hashlib
import zipfile

import pytest

from crawl2chat.data.facts import Sources, clean_countries, clean_elements, facts_of, people_of
from crawl2chat.data.packages import fetch


def country(code: str, name: str, capital: str, region: str = "Europe", **more) -> dict:
    base = {"name": name, "capital": capital, "region": region, "ISO": {"alpha2": code, "alpha3": code + "X"},
            "population": 10_000_000, "demonym": name + "ish,Other", "languages": ["fr"], "borders": [], "area": 1000,
            "callingCodes": ["33"], "latlng": [46, 2]}  # fmt: skip
    return {**base, **more}


def person(title: str, description: str) -> dict:
    return {"title": title, "description": description, "extract": f"{title} did much.", "topic": "People"}


def test_territories_and_places_without_a_capital_are_no_countries():
    rows = [country("FR", "France", "Paris"), country("GI", "Gibraltar", "Gibraltar"), country("QQ", "Nowhere", "")]
    assert [row["name"] for row in clean_countries(rows)] == ["France"]


def test_outdated_capitals_are_corrected():
    rows = [country("BI", "Burundi", "Bujumbura", "Africa"), country("KZ", "Kazakhstan", "Nur-Sultan", "Asia")]
    assert [row["capital"] for row in clean_countries(rows)] == ["Gitega", "Astana"]


def test_the_americas_are_two_continents():
    rows = [country("BR", "Brazil", "Brasília", "Americas"), country("CA", "Canada", "Ottawa", "Americas")]
    assert [row["continent"] for row in clean_countries(rows)] == ["South America", "North America"]


def test_neighbours_are_named_with_their_article():
    rows = [country("BE", "Belgium", "Brussels", borders=["NLX"]), country("NL", "Netherlands", "Amsterdam")]
    assert clean_countries(rows)[0]["neighbours"] == ["the Netherlands"]


def test_elements_know_their_neighbours_family_and_state():
    table = {1: ("Hydrogen", "H"), 2: ("Helium", "He"), 3: ("Lithium", "Li")}
    hydrogen, helium, lithium = clean_elements(table)
    assert (hydrogen["before"], hydrogen["after"], lithium["after"]) == (None, "helium", None)
    assert (helium["category"], helium["state"], lithium["period"]) == ("noble gas", "gas", 2)


def test_years_of_a_reign_are_not_taken_for_a_life():
    articles = [
        person("Ada Lovelace", "English mathematician (1815–1852)"),
        person("Lukas I", "King of Somewhere (1815–1852)"),
        person("A Short One", "Prince of Somewhere (1815–1820)"),
        person("The Knobs", "English rock band (1960–1999)"),
        person("Plato", "Greek philosopher (c. 427 – 348 BC)"),
    ]
    assert [row["name"] for row in people_of(articles)] == ["Ada Lovelace"]


def test_the_living_have_no_year_of_death():
    (row,) = people_of([person("Maria Example (writer)", "American writer (born 1947)")])
    assert (row["name"], row["born"], row["died"]) == ("Maria Example", 1947, None)


@pytest.mark.parametrize(
    "description, known_as",
    [
        ("English mathematician", "an English mathematician"),
        ("Ukrainian painter", "a Ukrainian painter"),
        ("Founder of a school", "the founder of a school"),
        ("Martial artist", "a martial artist"),
    ],
)
def test_descriptions_get_the_right_article(description, known_as):
    assert people_of([person("Somebody", f"{description} (1900–1950)")])[0]["known_as"] == known_as


def test_every_statement_holds_its_subject_and_its_answer():
    sources = Sources(
        [],
        clean_countries([country("NL", "Netherlands", "Amsterdam")]),
        clean_elements({26: ("Iron", "Fe")}),
        people_of([person("Ada Lovelace", "English mathematician (1815–1852)")]),
    )
    rows = facts_of(sources)
    assert {row["relation"] for row in rows} == {
        "capital", "continent", "symbol", "atomic_number", "born", "known_as"
    }  # fmt: skip
    for row in rows:
        assert row["subject"].lower() in row["statement"].lower() and row["answer"] in row["statement"], row


def make_wheel(folder, name="toy", version="1.0") -> tuple[str, str, str]:
    path = folder / f"{name}-{version}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("toy/data/a.json", "[1]")
        archive.writestr("toy/code.py", "raise SystemExit")
    return name, version, hashlib.sha256(path.read_bytes()).hexdigest()


def test_only_the_wanted_files_of_a_wheel_are_unzipped(tmp_path, monkeypatch):
    monkeypatch.setenv("CRAWL2CHAT_CACHE", str(tmp_path))
    folder = fetch(*make_wheel(tmp_path), members="*/data/*.json")
    assert [str(path.relative_to(folder)) for path in folder.rglob("*.*")] == ["toy/data/a.json"]


def test_a_wheel_with_another_sha256_is_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("CRAWL2CHAT_CACHE", str(tmp_path))
    name, version, _ = make_wheel(tmp_path)
    with pytest.raises(SystemExit) as error:
        fetch(name, version, "0" * 64)
    assert "toy-1.0.whl" in str(error.value) and "\n" not in str(error.value)


def test_a_failed_download_is_one_line_and_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("CRAWL2CHAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(SystemExit) as error:
        fetch("no-such-package", "1.0", "0" * 64)
    assert "no-such-package==1.0" in str(error.value) and "\n" not in str(error.value)
    assert list((tmp_path / "cache").iterdir()) == []
