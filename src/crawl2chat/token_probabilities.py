"""Every token of a conversation with the probability that the model gave it, and what it held likelier."""

import bisect

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from crawl2chat.engine import context_length
from crawl2chat.protocol import loss_mask
from crawl2chat.speaking import as_text, is_base, transcript


@torch.inference_mode()
def token_rows(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, messages: list[dict], alternatives: int = 5
) -> list[dict]:
    """{"id", "text", "role", "written": whether it bears loss, "probability", "alternatives": [{"id", "text",
    "probability"}]} of each token of the rendered conversation; the first, which nothing precedes, has none (null).

    A base model reads the conversation as a page (see speaking.py); there, and under a template that marks no turn of
    the assistant's, the whole of its turns counts as written.
    Raises ValueError for a conversation longer than the model's context.
    """
    ids, written, starts = _rendered(tokenizer, as_text(tokenizer, messages))
    if len(ids) > context_length(model):
        raise ValueError(f"they are {len(ids)} tokens and the model's context is {context_length(model)} tokens")
    logits = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0, :, : len(tokenizer)]
    shares = logits.float().softmax(-1).cpu()
    best, chosen = shares.topk(min(alternatives, len(tokenizer)), dim=-1)
    rows = []
    for at, token in enumerate(ids):
        row = {"id": token, "text": tokenizer.decode([token])}
        row |= {"role": messages[max(bisect.bisect_right(starts, at) - 1, 0)]["role"], "written": bool(written[at])}
        row |= {"probability": None, "alternatives": []}
        if at:
            row["probability"] = float(shares[at - 1, token])
            pairs = zip(chosen[at - 1].tolist(), best[at - 1].tolist(), strict=True)
            row["alternatives"] = [{"id": i, "text": tokenizer.decode([i]), "probability": p} for i, p in pairs]
        rows.append(row)
    return rows


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: list[dict]) -> tuple[list[int], list[int], list[int]]:
    """Ids, which of them bear loss, and where each message begins."""
    if is_base(tokenizer):
        begin, options = tokenizer.eos_token or "", {"add_special_tokens": False, "return_offsets_mapping": True}
        encoded = tokenizer(begin + transcript(tokenizer, messages), **options)
        ends = [len(begin + transcript(tokenizer, messages[:count])) for count in range(1, len(messages))]
        places = [start for start, _ in encoded["offset_mapping"]]
        ids, mask, starts = encoded["input_ids"], [], [0] + [bisect.bisect_left(places, end) for end in ends]
    else:
        ids, mask = loss_mask(tokenizer, messages)
        starts = [0] + [len(loss_mask(tokenizer, messages[:count])[0]) for count in range(1, len(messages))]
    if not any(mask):  # a page, or a template from elsewhere that marks nothing
        roles = [messages[bisect.bisect_right(starts, at) - 1]["role"] for at in range(len(ids))]
        mask = [int(role == "assistant") for role in roles]
    return ids, mask, starts
