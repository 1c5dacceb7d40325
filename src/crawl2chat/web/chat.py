"""The chat page: its files and the headers they go out with. `scripts/chat.py RECIPE --serve` answers them.

The page asks its own server and no other: GET /api/info, POST /v1/chat/completions and POST /api/tokens. What a model
wrote is text in it and never runs: chat.js makes its elements one by one, and the headers allow no other script.
"""

from pathlib import Path

from crawl2chat.web.ranking import HEADERS, KINDS

NAMES = "chat.css chat.js chat_parts.js chat_settings.js chat_stream.js chat_talk.js chat_tokens.js".split()
FILES = {"/": "chat.html"} | {f"/{name}": name for name in NAMES}


def page_files() -> dict[str, tuple[bytes, dict[str, str]]]:
    """URL path -> (content, headers) of all that the page is made of."""
    files = {path: Path(__file__).with_name(name) for path, name in FILES.items()}
    return {
        path: (file.read_bytes(), {"Content-Type": f"{KINDS[file.suffix]}; charset=utf-8", **HEADERS})
        for path, file in files.items()
    }
