"""Log-probabilities and values of chosen tokens, computed on rows of like length, nearly without padding.

Rows are (rows, length) ids, padded on the right. Under causal attention no token sees the padding behind it, so no
mask is needed; the head meets only the tokens that are asked for.

Every row is read whole: where each has a prompt of its own this takes 0.75 of the time that grpo.token_logps takes,
which reads a prompt once for a whole group, and with 8 replies to a prompt 1.3 to 1.6 times as long.
"""

from collections.abc import Iterator, Sequence

import torch

ROWS = 32  # of like length that go through a model together, at most
PASS = 200  # cells that take the time of a small model's pass over no cells at all
TOKENS = 4096  # that meet the head together: 32 rows of 1,024 and a vocabulary of 152,000 would take 100 GB


def token_logps(
    model: torch.nn.Module, ids: torch.Tensor, lengths: torch.Tensor, wanted: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities at `temperature` of the wanted tokens of `ids`, and the entropy in nats of the distribution
    each was drawn from: (tokens,) floats, row by row. `lengths` (rows,) counts the ids of each row; `wanted` (rows,
    length) is True where a token is asked for, never at the first. Gradients flow through the log-probabilities.
    """
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    head, places, logps, entropies = model.get_output_embeddings(), [], [], []
    for place, states, tokens in _read(model.base_model, ids, lengths, wanted):
        for part, chosen in zip(states.split(TOKENS), tokens.split(TOKENS), strict=True):
            found, entropy = ChosenLogps.apply(head(part), chosen, temperature)
            logps.append(found)
            entropies.append(entropy)
        places.append(place)
    order = torch.cat(places).argsort()
    return torch.cat(logps)[order], torch.cat(entropies)[order]


class ChosenLogps(torch.autograd.Function):
    """(log-probabilities of the chosen ids, entropies), (tokens,) each, from logits (tokens, vocab), with fewer passes
    over the vocabulary than autograd's: what is kept for the backward pass is the probabilities, once."""

    @staticmethod
    def forward(ctx, logits: torch.Tensor, chosen: torch.Tensor, temperature: float):
        scaled = logits.float() if temperature == 1 else logits.float() / temperature
        logps = scaled.log_softmax(-1)
        probabilities = logps.exp()
        entropies = -torch.linalg.vecdot(probabilities, logps)
        ctx.save_for_backward(probabilities, chosen)
        ctx.temperature, ctx.dtype = temperature, logits.dtype
        ctx.mark_non_differentiable(entropies)
        return logps.gather(-1, chosen[:, None])[:, 0], entropies

    @staticmethod
    def backward(ctx, slopes: torch.Tensor, _):
        probabilities, chosen = ctx.saved_tensors
        slopes = slopes[:, None] / ctx.temperature
        grad = (probabilities * -slopes).scatter_add_(-1, chosen[:, None], slopes)
        return grad.to(ctx.dtype), None, None


def token_values(
    model: torch.nn.Module, ids: torch.Tensor, lengths: torch.Tensor, wanted: torch.Tensor
) -> torch.Tensor:
    """What a sequence classifier with one label says before each wanted token: (tokens,) floats, row by row."""
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    places, values = [], []
    for place, states, _ in _read(model.base_model, ids, lengths, wanted):
        values.append(model.score(states).float()[:, 0])
        places.append(place)
    return torch.cat(values)[torch.cat(places).argsort()]


def _read(
    backbone: torch.nn.Module, ids: torch.Tensor, lengths: torch.Tensor, wanted: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Some wanted tokens at a time: their numbers among all, row by row; the states before them; the tokens."""
    numbers = wanted.flatten().cumsum(0).view_as(wanted) - 1
    for rows in by_length(lengths.tolist(), ROWS, sharded(backbone)):
        chunk, width = torch.tensor(rows, device=ids.device), int(lengths[rows[-1]])
        asked = wanted[chunk, 1:width]
        states = backbone(ids[chunk, :width], use_cache=False).last_hidden_state[:, :-1][asked]
        yield numbers[chunk, 1:width][asked], states, ids[chunk, 1:width][asked]


def sharded(model: torch.nn.Module) -> bool:
    """True under ZeRO-3, where all ranks must make equally many passes."""
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())


def by_length(lengths: Sequence[int], most: int, full: bool = False) -> list[list[int]]:
    """The rows' numbers in groups of at most `most`, shortest first, cut where the least time goes into padding (the
    cells of every group's rectangle) and into passes (PASS cells each); with `full` in groups of `most`."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    if full:
        return [order[i : i + most] for i in range(0, len(order), most)]
    least, begins = [0], []  # the cost of the first n rows, and where the last group of them begins
    for end in range(1, len(order) + 1):
        longest = lengths[order[end - 1]]
        cost, begin = min((least[i] + (end - i) * longest + PASS, i) for i in range(max(0, end - most), end))
        least.append(cost)
        begins.append(begin)
    groups, end = [], len(order)
    while end:
        groups.append(order[begins[end - 1] : end])
        end = begins[end - 1]
    return groups[::-1]
