"""Pages that the web has and a training set should not: spam, furniture, other languages, blocked sites, copies.

Every page knows which of FineWeb's steps should drop it; what only the masking step touches is kept.
"""

import dataclasses
import random

from crawl2chat.data.facts import Sources
from crawl2chat.data.pages import Page

SHARE = {"spam": 220, "furniture": 220, "code": 180, "lists": 180, "blocked": 200, "french": 180, "spanish": 180,
         "copy": 220, "near_copy": 220, "pii": 220}  # fmt: skip


def pages(kept: list[Page], sources: Sources, rng: random.Random, scale: float) -> list[Page]:
    """The dirt for a web of these kept pages; also plants e-mail and IP addresses in copies' and pii's own pages."""
    counts = {kind: max(2, round(number * scale)) for kind, number in SHARE.items()}
    result = []
    for number in range(counts["spam"]):
        word = rng.choice(("watches", "pills", "shoes", "loans", "phones", "tickets"))
        line = f"Buy cheap {word} online now, best cheap {word}, order {word} today with free shipping."
        result.append(Page(f"https://deals-{number}.example.com/offer/{number}", f"Cheap {word}",
                           [("p", line)] * rng.randint(12, 30), "spam", False, "gopher_repetition"))  # fmt: skip
    for number in range(counts["furniture"]):
        result.append(Page(f"https://portal-{number}.example.com/login", "Log in",
                           [("p", "Please log in to see this page. Forgot your password?")], "furniture", False,
                           "gopher_quality"))  # fmt: skip
    for language, name in (("fr", "french"), ("es", "spanish")):
        rows = [row for row in sources.foreign.get(language, []) if len(row["extract"]) > 300]
        for number in range(min(counts[name], len(rows) // 3)):
            blocks = [("p", " ".join(row["extract"].split())) for row in rows[3 * number : 3 * number + 3]]
            url = f"https://{language}.encyclopedia.example.org/{number:04d}"
            result.append(Page(url, rows[3 * number]["title"], blocks, name, False, "language", language=language))
    originals = [page for page in kept if page.kind == "almanac"]
    for number, page in enumerate(rng.sample(originals, min(len(originals) // 3, counts["copy"]))):
        page.cluster = f"copy-{number:04d}"
        url = page.url.replace(".example.org", ".example.net")
        result.append(dataclasses.replace(page, url=url, kind="copy", keep=False, filter="minhash", facts=[]))
    return result
