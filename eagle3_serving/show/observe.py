"""Runs prompts on the embedded engine, one at a time, and writes down what each step drafted and what the target made of it.

Shape letters: V target vocabulary, Q drafted-from nodes, N draft nodes, R = N + 1 rows of a verify pass (root first).
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from eagle3_serving.engine import DecodeOptions, EmbeddedEngine
from eagle3_serving.engine.embedded import collect
from eagle3_serving.engine.options import Step as EngineStep
from eagle3_serving.engine.watch import Verified
from eagle3_serving.show.pieces import Pieces
from eagle3_serving.show.record import Fate, Node, Piece, Step, Story
from eagle3_serving.tree import PADDING, SamplingParams, target_law


class Observer:
    """Of one engine, as long as it is entered; draws of a greedy target count as its most probable token."""

    def __init__(self, engine: EmbeddedEngine, tokenizer: Any, options: DecodeOptions) -> None:
        assert engine.drafter is not None
        self.engine, self.tokenizer, self.options = engine, tokenizer, options
        self.pieces = Pieces(tokenizer)
        ids = engine.drafter.vocabulary.target_ids.tolist()
        self.draft_id = {target_id: draft_id for draft_id, target_id in enumerate(ids)}
        self.last: Verified | None = None

    def story(self, name: str, prompt: str, prompt_ids: Sequence[int]) -> Story:
        """The prompt's answer, step by step. Raises InputError as `EmbeddedEngine.serve` does."""
        steps: list[Step] = []
        said: list[EngineStep] = []
        root: Piece | None = None
        self.engine.watch = self._see
        try:
            for step in self.engine.stream(prompt_ids, self.options):
                steps.append(self._step(step, root))
                said.append(step)
                root = steps[-1].tokens[-1]
        finally:
            self.engine.watch = None
        whole = collect(said)
        answer = self.tokenizer.decode(list(whole.token_ids), skip_special_tokens=True)
        return Story(name, prompt, answer, tuple(steps), whole.accepted_length)

    def _see(self, verified: Verified) -> None:
        self.last = verified

    def _step(self, step: EngineStep, root: Piece | None) -> Step:
        tokens = tuple(map(self.pieces.of, step.token_ids))
        verified, self.last = self.last, None
        if verified is None:
            return Step(tokens, root)
        path = [row - 1 for row in verified.accepted.rows_BD[0].tolist() if row > 0]
        end_row = path[-1] + 1 if path else 0
        own, law_RV = int(verified.accepted.bonus_B[0]), self._target_law(verified.logits_BRV[0])
        return Step(
            tokens,
            root,
            nodes=tuple(self._nodes(verified, path, law_RV)),
            path=tuple(path),
            own=self.pieces.of(own),
            own_probability=float(law_RV[end_row, own]),
            cut=len(tokens) <= len(path),
        )

    def _target_law(self, logits_RV: Tensor) -> Tensor:
        """What the target's tokens are drawn from; of a greedy one its plain probabilities, whose best token it takes."""
        asked = self.options.sampling
        if asked.temperature == 0:
            return logits_RV.float().softmax(-1)
        filters = (asked.temperature, asked.top_k, asked.top_p, asked.min_p)
        return target_law(logits_RV, SamplingParams.uniform(len(logits_RV), *filters, device=logits_RV.device))

    def _nodes(self, verified: Verified, path: list[int], law_RV: Tensor) -> list[Node]:
        draft, tree = verified.draft, verified.tree
        draft_law_QV = draft.logits_BQV[0].float().softmax(-1)
        drafted = draft.candidates.tokens_BC.shape[1]  # what stands past it in the pool came out of the text
        sources = draft.source_BC[0].tolist()
        reach = tree.scores_BN[0].float().exp().tolist()
        pool, tokens, parents = (x_BN[0].tolist() for x_BN in (tree.pool_BN, tree.tokens_BN, tree.parents_BN))
        on_path, nodes = set(path), list[Node]()
        for index, (token, parent) in enumerate(zip(tokens, parents, strict=True)):
            if parent == PADDING:
                break
            source = 0 if parent < 0 else sources[pool[parent]] if pool[parent] < drafted else -1
            own = pool[index] < drafted and source >= 0
            fate: Fate = "accepted" if index in on_path else "unreached"
            if fate == "unreached" and (parent < 0 or parent in on_path):
                fate = "refused"
            nodes.append(
                Node(
                    self.pieces.of(token),
                    max(parent, -1),
                    1 if parent < 0 else nodes[parent].depth + 1,
                    float(draft_law_QV[source, self.draft_id[token]]) if own else None,
                    min(1.0, reach[index] / (1.0 if parent < 0 else max(reach[parent], 1e-30))),
                    reach[index],
                    float(law_RV[parent + 1 if parent >= 0 else 0, token]),
                    fate,
                )
            )
        return nodes
