"""Seconds to rate 10,000 battles among 10 players, with 1,000 bootstrap refits: on one and on every prompt apart.

python benchmarks/arena.py
"""

import time

import numpy as np

from crawl2chat.ratings import rate

PLAYERS, BATTLES = 10, 10_000


def planted(prompts: int, lengths: bool, seed: int = 0) -> list[dict]:
    """Battles of players 40 points apart, one in five a tie, on so many prompts."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(BATTLES):
        a, b = rng.choice(PLAYERS, 2, replace=False).tolist()
        won = rng.random() < 1 / (1 + 10 ** (40 * (b - a) / 400))
        row = {"prompt": f"prompt {number % prompts}", "a": f"player {a}", "b": f"player {b}"}
        row["winner"] = "tie" if rng.random() < 0.2 else "a" if won else "b"
        rows.append(row | ({"replies": ["x" * n for n in rng.integers(10, 200, 2)]} if lengths else {}))
    return rows


def main() -> None:
    for prompts in (200, BATTLES):
        for lengths in (False, True):
            battles, times = planted(prompts, lengths), []
            for _ in range(3):
                start = time.perf_counter()
                found = rate(battles)
                times.append(time.perf_counter() - start)
            widths = [found.high[name] - found.low[name] for name in found.players]
            print(
                f"{BATTLES:,} battles, {PLAYERS} players, {prompts:>6,} prompts, "
                f"{'with' if lengths else 'no'} lengths: {min(times):.2f} s, intervals {np.mean(widths):.0f} wide"
            )


if __name__ == "__main__":
    main()
