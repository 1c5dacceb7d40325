"""TRL's SFTTrainer, safe to kill, by Muon where asked, and quicker on a CPU."""

from dataclasses import dataclass

from trl import SFTConfig, SFTTrainer

from crawl2chat.checkpoints import ResumeKeys, SafeCheckpoints
from crawl2chat.loss import return_the_loss_alone
from crawl2chat.muon import MuonKeys, MuonOptimizer


@dataclass
class SFTArguments(ResumeKeys, MuonKeys, SFTConfig):
    """TRL's, with `optim: muon` and how a run goes on."""


class FinetuningTrainer(SafeCheckpoints, MuonOptimizer, SFTTrainer):
    """SFTTrainer on rows of {"input_ids", "labels"}.

    On a CPU, TRL's fused head works on every position, in fp32 going back; here the head meets only the positions that
    bear loss, which takes TRL's entropy and token accuracy out of the log. On a GPU its kernel does the same.
    """

    def __init__(self, model, args: SFTArguments, **kwargs):
        plain = args.use_cpu and args.loss_type == "nll" and not args.label_smoothing_factor
        self.loss_alone = plain and return_the_loss_alone(model)
        super().__init__(model=model, args=args, **kwargs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if not self.loss_alone or return_outputs or num_items_in_batch is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        return super(SFTTrainer, self).compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
