"""The report's page about the release: what leaves, the proof that it is the same model, and how to run it."""

from html import escape

from crawl2chat.runs import Run
from crawl2chat.web.fragments import said, section, table, tiles

PROOFS = {
    "token_ids_equal": "of texts have the same token ids in llama.cpp",
    "gguf_greedy_equal": "of greedy replies are the same in llama.cpp",
}


def release(run: Run) -> str:
    """Files and bytes, the shares of equal ids and replies, the bound on log-probabilities, and launch lines."""
    numbers = run.metrics.get("release")
    if numbers is None:
        return ""
    size = numbers.get("bytes")
    facts = [(said(numbers[key]), key) for key in ("files", "parameters") if key in numbers]
    facts += [(f"{size / 1e6:,.1f}\u00a0MB", "in all")] if size is not None else []
    facts += [(said(numbers[key], "share"), name) for key, name in PROOFS.items() if key in numbers]
    far, bound = (numbers.get(f"gguf_logprob_{key}") for key in ("largest_difference", "bound"))
    close = f"Log-probabilities of the likeliest tokens differ by at most {far:.4f} nats" if far is not None else ""
    close += f" (allowed are {bound:g})" if close and bound is not None else ""
    files = (run.json("release", "manifest.json") or {}).get("files") or {}
    rows = [row(name, kept) for name, kept in sorted(files.items())]
    return section(
        "Out of the door",
        "A release is code plus parameters: weights, configuration, tokenizer, chat template, a card with the numbers "
        "and the recipe that made it; and one file for llama.cpp, which has to answer as the original does.",
        tiles(facts),
        f"<p>{close}.</p>" if close else "",
        how_to_run(run),
        f"<h3>What is in it</h3>{table(['file', 'bytes', 'sha256'], rows, numeric=(1,))}" if rows else "",
    )


def row(name: str, kept: object) -> list[str]:
    """A manifest's file as cells: name, bytes, the beginning of its sha256."""
    found = kept if isinstance(kept, dict) else {"sha256": kept}
    size = found.get("bytes")
    text = escape(str(found.get("sha256", ""))[:16])
    return [f"<code>{escape(name)}</code>", f"{size:,}" if isinstance(size, int) else "", f"<code>{text}</code>"]


def how_to_run(run: Run) -> str:
    """Launch lines for what the release holds."""
    folder = run.folder / "release"
    ggufs = sorted(path.name for path in (folder / "gguf").glob("*.gguf"))
    lines = []
    if ggufs:
        file, name = f"{folder}/gguf/{ggufs[0]}", run.folder.name
        lines.append(["llama.cpp", f"llama-cli -m {file} -cnv --jinja"])
        if (folder / "Modelfile").is_file():
            lines.append(["Ollama", f"cd {folder} && ollama create {name} -f Modelfile && ollama run {name}"])
        lines.append(
            [
                "LM Studio",
                f"mkdir -p ~/.lmstudio/models/crawl2chat/{name} && cp {file} ~/.lmstudio/models/crawl2chat/{name}",
            ]
        )
    lines.append(["transformers", f"AutoModelForCausalLM.from_pretrained({str(folder)!r})"])
    lines.append(
        ["a chat page, an OpenAI-compatible server", "python scripts/chat.py recipes/laptop/chat.yaml --serve"]
    )
    rows = [[escape(name), f"<code>{escape(line)}</code>"] for name, line in lines]
    return f'<h3>Run it</h3><div class="wrapped run">{table([], rows)}</div>'
