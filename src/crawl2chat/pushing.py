"""A Trainer's `push_to_hub: true` by the outbox: training is neither stopped nor slowed by the hub.

Each saved checkpoint becomes a commit on `hub_revision` (main) with the tag `checkpoint-N`, so that
`from_pretrained(name, revision="checkpoint-N")` loads it; the finished model is the last commit. What is sent is the
model as a user loads it. Staging links the checkpoint's files (no bytes are copied); a process of its own sends them.

`hub_strategy`: `every_save` (default) as above; `end`: the finished model alone; `checkpoint` and `all_checkpoints`
add what a run goes on from, optimizer states included, below last-checkpoint/ or checkpoint-N/. Never sent:
training_args.bin, which holds this machine's paths. `hub_always_push` has no effect: no checkpoint is passed over.
"""

import atexit
import json
import os
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

from accelerate.utils import broadcast_object_list
from transformers.trainer_utils import HubStrategy

from crawl2chat import outbox
from crawl2chat.checkpoint_folder import MANIFEST
from crawl2chat.disk import size
from crawl2chat.hub import Away, Refused, may_write
from crawl2chat.stage import fail

MODEL = (
    "config.json generation_config.json model*.safetensors model.safetensors.index.json pytorch_model*.bin "
    "pytorch_model.bin.index.json adapter_config.json adapter_model.* tokenizer* special_tokens_map.json "
    "added_tokens.json vocab.* merges.txt spiece.model chat_template.* additional_chat_templates/*"
).split()
NEVER = ("training_args.bin", "finished", MANIFEST)
CARD = """---
library_name: {library}
tags: [crawl2chat]
---
# {name}

{what}, by crawl2chat. The numbers and the recipe are in the card that a release writes (`scripts/release.py --push`).
"""


class HubPushes:
    """Mixin before a transformers Trainer: what its `push_to_hub` and `hub_*` arguments do."""

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Exits 1 before training where the token may not write; a hub that is away is one line, and no matter."""
        self.hub_model_id = self.args.hub_model_id or Path(self.args.output_dir).absolute().name
        self.staged: list[str] = []
        self._sender: subprocess.Popen | None = None
        self._unseen = False  # whether something was staged that the sender may not have seen
        complaint = None
        if self.is_world_process_zero():
            try:
                private = bool(self.args.hub_private_repo if private is None else private)
                self.hub_model_id = may_write(self.hub_model_id, private, token or self.args.hub_token)
            except Refused as error:
                complaint = f"error: hub: {self.hub_model_id}: {error}; nothing was trained"
            except Away as error:
                print(f"hub: {self.hub_model_id}: not now ({error}); pushes wait in {self._box}", flush=True)
        (complaint,) = broadcast_object_list([complaint])
        if complaint:
            sys.exit(complaint if self.is_world_process_zero() else 1)
        if self.is_world_process_zero():
            atexit.register(self.finish_pushes)
            if outbox.waiting(self.args.output_dir):  # of a run that was killed
                self._send()

    @property
    def _box(self) -> Path:
        return Path(self.args.output_dir) / "outbox"

    def push_checkpoint(self, checkpoint: Path) -> None:
        """Stage a checkpoint that is whole, and see that it is sent; every rank may call it, the main one does it."""
        strategy = HubStrategy(self.args.hub_strategy)
        if not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["files"]
        files = {name: checkpoint / name for name in manifest if any(fnmatch(name, pattern) for pattern in MODEL)}
        what, texts = f"Step {self.state.global_step} of {self.state.max_steps}", {}
        if strategy != HubStrategy.EVERY_SAVE:
            whole = {name: entry for name, entry in manifest.items() if name not in NEVER}
            below = "last-checkpoint" if strategy == HubStrategy.CHECKPOINT else checkpoint.name
            files |= {f"{below}/{name}": checkpoint / name for name in whole}
            texts = {f"{below}/{MANIFEST}": json.dumps({"files": whole}, indent=1)}
        sums = {at: manifest[source.relative_to(checkpoint).as_posix()]["sha256"] for at, source in files.items()}
        self._stage(files, what, checkpoint.name, sums, texts)

    def push_model(self) -> None:
        """Stage the finished model of `output_dir`, and see that it is sent."""
        if self.is_world_process_zero():
            output = Path(self.args.output_dir)
            found = [path for pattern in MODEL for path in output.glob(pattern) if path.is_file()]
            files = {path.relative_to(output).as_posix(): path for path in found}
            self._stage(files, f"The finished model, after {self.state.global_step} steps", None, {}, {})

    def push_to_hub(self, commit_message: str | None = None, **kwargs) -> None:
        """The library's name for it."""
        if not self.args.push_to_hub:
            fail("hub: push_to_hub is not true in this run's arguments; set it, and save_model pushes too")
        self.save_model()

    def _stage(self, files: dict, what: str, tag: str | None, sums: dict[str, str], texts: dict[str, str]) -> None:
        needed = sum(path.stat().st_size for path in files.values())
        held = sum(entry["bytes"] for _, push in outbox.waiting(self.args.output_dir) for entry in push.files.values())
        free = shutil.disk_usage(self.args.output_dir).free
        if tag and held + needed > free:  # links keep the bytes of checkpoints that save_total_limit deletes
            print(f"hub: {tag} is not pushed: {size(held)} wait in {self._box} and {size(free)} are free", flush=True)
            return
        library = "peft" if "adapter_config.json" in files else "transformers"
        card = CARD.format(library=library, name=self.hub_model_id.rpartition("/")[2], what=what)
        try:
            self.staged.append(
                outbox.stage(
                    files,
                    Path(self.args.output_dir),
                    texts={"README.md": card, **texts},
                    repo_id=self.hub_model_id,
                    revision=self.args.hub_revision,
                    tag=tag,
                    private=bool(self.args.hub_private_repo),
                    message=what,
                    sums=sums,
                )
            )
        except SystemExit as error:  # training goes on
            print(str(error.code).removeprefix("error: "), flush=True)
            return
        self._unseen = True
        if self._sender is None or self._sender.poll() is not None:
            self._send()

    def _send(self) -> None:
        """A process that sends what waits; it lives on when this one is killed."""
        self._unseen = False
        source = str(Path(__file__).parents[1])
        place = {"PYTHONPATH": os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH"))))}
        place |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}
        if self.args.hub_token:
            place["HF_TOKEN"] = str(self.args.hub_token)
        command = [sys.executable, "-m", "crawl2chat.outbox", "--behind", str(self.args.output_dir)]
        self._sender = subprocess.Popen(command, env={**os.environ, **place}, stdin=subprocess.DEVNULL)

    def finish_pushes(self) -> None:
        """Wait for the sender and say in one line what the hub has and what waits; called when the process ends."""
        atexit.unregister(self.finish_pushes)
        try:
            if self._sender and self._sender.wait() == 0 and self._unseen and outbox.waiting(self.args.output_dir):
                self._send()
                self._sender.wait()
        except KeyboardInterrupt:
            self._sender.terminate()
        left = {path.name for path, _ in outbox.waiting(self.args.output_dir)}
        waits, sent = [name for name in self.staged if name in left], [n for n in self.staged if n not in left]
        line = f"hub: {self.hub_model_id} has {len(sent)} of this run's {len(self.staged)} pushes"
        if left:
            line += f", {len(waits)} wait; finish with: python -m crawl2chat.outbox {self.args.output_dir}"
        if self.staged or left:
            print(line, flush=True)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Nothing: a checkpoint is pushed when its folder has its final name."""

    def _finish_current_push(self) -> None:
        """Nothing: the process's end waits, not the end of training."""
