"""MinHash in datatrove's four stages, and what it found: clusters, the largest, what equal texts alone would miss."""

from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.utils.hashing import HashConfig

from crawl2chat.data.config import MinHash
from crawl2chat.data.executors import Workers
from crawl2chat.data.steps import Digests, Rejected
from crawl2chat.data.words import english

AT_ONCE = 1 << 24  # hashes compared at once: 128 MB


@dataclass
class Duplicates:
    """Clusters of near-duplicates: their number, their pages, the largest, {size: clusters}, pages taken away.

    exact: pages that would go if only equal texts were compared; missed_by_exact: those that go for their likeness.
    memory_gb: the most that a process of stages 2 and 3 held.
    """

    clusters: int = 0
    pages: int = 0
    largest: int = 0
    sizes: dict[int, int] = field(default_factory=dict)
    removed: int = 0
    exact: int = 0
    missed_by_exact: int = 0
    memory_gb: float = 0.0

    def line(self) -> str:
        share = self.missed_by_exact / max(self.removed, 1)
        return (
            f"minhash: {self.clusters:,} clusters of {self.pages:,} pages, the largest of {self.largest:,}; "
            f"{self.removed:,} pages go, {self.missed_by_exact:,} of them ({share:.1%}) are no exact copies; "
            f"peak memory {self.memory_gb:.2f} GB"
        )

    def to_json(self) -> dict:
        return asdict(self)


class MinHashStages:
    """The four stages below `work`: signatures/ and texts/ of the first pass, pairs/, duplicates/."""

    def __init__(self, recipe: MinHash, work: Path):
        self.config = MinhashConfig(**vars(recipe), hash_config=HashConfig(hash_fc="sha1", precision=64))
        self.work = work
        self.signatures, self.texts, self.pairs, self.duplicates = (
            work / name for name in ("signatures", "texts", "pairs", "duplicates")
        )

    def sign(self) -> list[PipelineStep]:
        """The end of the first pass: the last step takes the documents in."""
        return [Digests(self.texts), MinhashDedupSignature(str(self.signatures), self.config, language=english())]

    def compare(self, workers: Workers) -> None:
        """Stages 2 and 3, in the memory of 1,000 lines a rank, and of 190 bytes a page that has a duplicate."""
        pairs, found = str(self.pairs), str(self.duplicates)
        buckets = MinhashDedupBuckets(str(self.signatures), pairs, config=self.config, lines_to_buffer=1000)
        workers.run("minhash-buckets", [buckets], self.config.num_buckets)
        cluster = MinhashDedupCluster(pairs, found, self.config, save_cluster_size=True, lines_to_buffer=1000)
        workers.run("minhash-clusters", [cluster], 1, leftovers=("duplicates/*",))

    def drop(self) -> PipelineStep:
        """Stage 4: it takes documents away by their position, so it reads what the first pass wrote, rank by rank."""
        return MinhashDedupFilter(str(self.duplicates), Rejected(self.work / "rejected", "minhash", "duplicate"))

    def report(self, workers: Workers) -> Duplicates:
        """What stages 1 to 3 left on the disk, counted; hashes are compared in parts that fit into memory."""
        counts: dict[int, int] = {}
        for file in sorted(self.duplicates.glob("*.sizes")):
            sizes, pages = np.unique(np.fromfile(file, "<u4").reshape(-1, 2)[:, 1], return_counts=True)
            for size, count in zip(sizes.tolist(), pages.tolist(), strict=True):
                counts[size] = counts.get(size, 0) + count
        sizes = {size: counts[size] // size for size in sorted(counts)}
        pages, clusters = sum(counts.values()), sum(sizes.values())
        memory = max(workers.memory(name) for name in ("minhash-buckets", "minhash-clusters"))
        different = self.different(pages)
        return Duplicates(
            clusters, pages, max(sizes, default=0), sizes, pages - clusters, pages - different, different - clusters,
            round(memory, 3),
        )  # fmt: skip

    def different(self, pages: int) -> int:
        """How many different texts the pages of all clusters have."""
        parts, count = pages // AT_ONCE + 1, 0
        for part in range(parts):
            found = [np.empty(0, np.uint64)]
            for file in sorted(self.duplicates.glob("*.sizes")):
                rows = np.fromfile(file, "<u4").reshape(-1, 2)[:, 0]
                hashes = np.fromfile(self.texts / f"{int(file.stem):05d}.u8", "<u8")[rows]
                found.append(hashes[hashes % np.uint64(parts) == part])
            count += len(np.unique(np.concatenate(found)))
        return count
