"""The public implementation's tree code (SafeAILab/EAGLE, Apache-2.0, seen at cb7e084), driven from a checkout.

No line of it stands here: `eagle.model.cnets` and `eagle.model.utils` are imported from the folder the user names, and
only the models inside are stood in for, by objects that hand out canned tensors. It works on one request at a time.

Shape letters: K frontier nodes, R = N + 1 rows of the verify pass, L tokens so far, H hidden, V vocabulary.
"""

import hashlib
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FILES = ("eagle/model/cnets.py", "eagle/model/utils.py")


@dataclass(frozen=True)
class PublicCode:
    """The two modules, and the first digits of each file's SHA-256: which version was measured."""

    cnets: ModuleType
    utils: ModuleType
    versions: dict[str, str]


# what `topK_genrate` gives: tokens [1, R], retrieve indices, mask [1, 1, R, R], positions [R]
PublicTree = tuple[Tensor, Tensor, Tensor, Tensor]


def load_public(folder: Path) -> PublicCode:
    """Import the tree code of a checkout; FileNotFoundError names what the folder lacks."""
    for name in FILES:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{name} is not in the folder: is it a checkout of SafeAILab/EAGLE?")
    sys.path.insert(0, str(folder.resolve()))
    try:
        cnets, utils = (importlib.import_module(name.removesuffix(".py").replace("/", ".")) for name in FILES)
    finally:
        sys.path.pop(0)
    versions = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest()[:12] for name in FILES}
    return PublicCode(cnets, utils, versions)


class PublicRequest:
    """One request's draft and acceptance. The stand-ins cost a module call and a few attribute look-ups a draft step.

    `logits`: one [K, V] tensor a depth, of which the first has one row; `hidden_KH`: K is its top-k.
    """

    def __init__(
        self,
        code: PublicCode,
        logits: Sequence[Tensor],
        hidden_KH: Tensor,
        target_ids: Tensor,
        target_vocab: int,
        nodes: int,
        context: int,
    ) -> None:
        self.utils = code.utils
        self.logits = logits
        self.hidden_1KH = hidden_KH[None]
        self.model = _stand_in(code.cnets, self, target_ids, target_vocab, nodes, context)
        # the last id is the token just sampled; the first is never looked at
        self.ids_1L = torch.ones(1, context + 2, dtype=torch.long, device=hidden_KH.device)
        self.target: Any = _Target()

    def build(self) -> PublicTree:
        self.model.steps = iter(self.logits)
        tree: PublicTree = self.model.topK_genrate(self.hidden_1KH, self.ids_1L, None, None)
        return tree

    def accept(self, tree: PublicTree, logits_1RV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Best leaf, accepted length, and the target's logits after it."""
        tokens_1R, retrieve, _, positions_R = tree
        self.target.logits_1RV = logits_1RV
        paths, _, _ = self.utils.tree_decoding(self.target, tokens_1R, None, positions_R, self.ids_1L, retrieve)
        candidates = F.pad(tokens_1R, (0, 1), value=-1)[0, retrieve.to(tokens_1R.device)]
        best, length, after_V = self.utils.evaluate_posterior(paths, candidates, None)
        return best, length, after_V


class _Target:
    """In the place of the target model: its logits are there already."""

    use_eagle3 = False
    logits_1RV: Tensor

    def __call__(self, tokens_1R: Tensor, **settings: Any) -> tuple[None, Tensor, None]:
        return None, self.logits_1RV, None


def _stand_in(
    cnets: ModuleType, request: PublicRequest, target_ids: Tensor, target_vocab: int, nodes: int, context: int
) -> Any:
    """Its draft model without weights: `forward` and `lm_head` hand out what is canned, all else is its own code."""
    device = target_ids.device
    hidden_1KH = request.hidden_1KH
    kv = ((torch.zeros(1, 1, context, 1, device=device),) * 2,)

    class StandIn(cnets.Model):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            nn.Module.__init__(self)

        def forward(self, hidden_states: Tensor, **settings: Any) -> tuple[Tensor, Any]:
            return hidden_1KH, kv

        def lm_head(self, hidden: Tensor) -> Tensor:
            step: Tensor = next(self.steps)
            return step

    model: Any = StandIn()
    draft_vocab = len(target_ids)
    model.config = SimpleNamespace(vocab_size=target_vocab, draft_vocab_size=draft_vocab)
    model.d2t = target_ids - torch.arange(draft_vocab, device=device)
    model.top_k = hidden_1KH.shape[1]
    # it counts the root as a node of its `total_tokens` and takes it off again; its `depth` starts below the first
    model.total_tokens = nodes
    model.depth = len(request.logits) - 1
    model.logsoftmax = nn.LogSoftmax(dim=-1)
    model.norm = nn.Identity()
    model.embed_tokens = nn.Embedding(1, 1, device=device)
    model.stable_kv = kv
    model.init_tree()
    return model
