import torch
from hypothesis import given
from hypothesis import strategies as st
from tree_strategies import path_to, pools

from eagle3_serving.tree import NO_PARENT, PADDING, Candidates, DraftTree, select
from eagle3_serving.tree.lookup import Lookup, graft, prompt_lookup

Paths = dict[tuple[int, ...], float]


def find(text: list[int], max_ngram: int, max_tokens: int) -> tuple[list[int], int]:
    """The continuation and the length of the match, by trying every n-gram at every place from the back."""
    for n in range(max_ngram, 0, -1):
        for end in range(len(text) - 1, n - 1, -1):
            if text[end - n : end] == text[len(text) - n :]:
                return text[end : end + max_tokens], n
    return [], 0


@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=16), min_size=1, max_size=3),
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(0, 2),
)
def test_lookup_equals_trying_every_place(texts: list[list[int]], max_ngram: int, max_tokens: int, spare: int) -> None:
    lengths = list(map(len, texts))
    # what stands past the end must not matter: here it would match
    history = [text + [text[-1]] * (max(lengths) + spare - len(text)) for text in texts]
    lookup = prompt_lookup(torch.tensor(history), torch.tensor(lengths), max_ngram, max_tokens)
    for b, text in enumerate(texts):
        tokens, match = find(text, max_ngram, max_tokens)
        assert (int(lookup.match_B[b]), int(lookup.length_B[b])) == (match, len(tokens))
        assert lookup.tokens_BL[b].tolist() == tokens + [0] * (max_tokens - len(tokens))


def test_the_longest_match_wins_over_the_latest_and_may_overlap_itself() -> None:
    history = torch.tensor([[1, 2, 3, 9, 2, 3, 8, 1, 2, 3], [7, 7, 7, 7, 0, 0, 0, 0, 0, 0]])
    lookup = prompt_lookup(history, torch.tensor([10, 4]), 3, 4)
    assert lookup.tokens_BL.tolist() == [[9, 2, 3, 8], [7, 0, 0, 0]]
    assert lookup.length_B.tolist() == [4, 1]
    assert lookup.match_B.tolist() == [3, 3]


@st.composite
def grafts(draw: st.DrawFn) -> tuple[Candidates, Lookup, torch.Tensor]:
    """Pools of few tokens, living siblings of different ones, and a branch of tokens as few; a pool may be empty."""
    pool = draw(pools())
    if draw(st.integers(0, 9)) == 0:
        pool = Candidates(*(part[:, :0] for part in pool))
    batch, length = pool.scores_BC.shape[0], draw(st.integers(1, 5))
    tokens = pool.tokens_BC.tolist()
    for b, parents in enumerate(pool.parents_BC.tolist()):
        used: dict[int, set[int]] = {}
        for node, parent in enumerate(parents):
            taken = used.setdefault(parent, set())
            if pool.scores_BC[b, node] == -torch.inf:
                tokens[b][node] = draw(st.integers(0, 2))
            else:
                free = [token for token in range(24) if token not in taken][:3]
                tokens[b][node] = draw(st.sampled_from(free))
                taken.add(tokens[b][node])
    branch = draw(
        st.lists(st.lists(st.integers(0, 2), min_size=length, max_size=length), min_size=batch, max_size=batch)
    )
    lengths = draw(st.lists(st.integers(0, length), min_size=batch, max_size=batch))
    chance = st.lists(st.sampled_from([0.0, -0.25, -0.5, -2.0]), min_size=length, max_size=length)
    chances = draw(st.lists(chance, min_size=batch, max_size=batch))
    tokens_BC = torch.tensor(tokens, dtype=torch.long).view(batch, -1)
    lookup = Lookup(torch.tensor(branch), torch.tensor(lengths), torch.ones(batch, dtype=torch.long))
    return pool._replace(tokens_BC=tokens_BC), lookup, torch.tensor(chances)


def live_paths(pool: Candidates, b: int) -> Paths:
    """Every living candidate's tokens from the root on, and its score; asserts that no two have the same tokens."""
    parents, tokens, scores = (part[b].tolist() for part in (pool.parents_BC, pool.tokens_BC, pool.scores_BC))
    paths: Paths = {}
    for node, score in enumerate(scores):
        if score > -torch.inf:
            path = tuple(tokens[n] for n in path_to(parents, node))
            assert path not in paths
            paths[path] = score
    return paths


def tree_paths(tree: DraftTree, b: int) -> set[tuple[int, ...]]:
    parents, tokens = tree.parents_BN[b].tolist(), tree.tokens_BN[b].tolist()
    return {tuple(tokens[n] for n in path_to(parents, node)) for node, p in enumerate(parents) if p != PADDING}


def branch_of(lookup: Lookup, b: int) -> tuple[int, ...]:
    return tuple(lookup.tokens_BL[b, : int(lookup.length_B[b])].tolist())


@given(grafts())
def test_a_graft_is_the_union_of_pool_and_branch(case: tuple[Candidates, Lookup, torch.Tensor]) -> None:
    pool, lookup, chance_BL = case
    grafted = graft(pool, lookup, chance_BL)
    assert grafted.scores_BC.shape[1] == pool.scores_BC.shape[1] + lookup.tokens_BL.shape[1]
    for b in range(pool.scores_BC.shape[0]):
        want, branch, score = live_paths(pool, b), branch_of(lookup, b), 0.0
        for depth in range(len(branch)):
            path = branch[: depth + 1]
            score = want[path] = max(want.get(path, -torch.inf), score + float(chance_BL[b, depth]))
        # exact: all scores are multiples of a quarter
        assert live_paths(grafted, b) == want


@given(grafts())
def test_a_grafted_pool_keeps_its_order_and_its_scores_fall(case: tuple[Candidates, Lookup, torch.Tensor]) -> None:
    grafted = graft(*case)
    for parents, scores in zip(grafted.parents_BC.tolist(), grafted.scores_BC.tolist(), strict=True):
        for node, parent in enumerate(parents):
            assert NO_PARENT <= parent < node
            assert scores[node] <= (0.0 if parent < 0 else scores[parent])


@given(grafts(), st.integers(1, 25))
def test_a_selection_of_a_grafted_pool_is_connected(case: tuple[Candidates, Lookup, torch.Tensor], nodes: int) -> None:
    grafted = graft(*case)
    tree = select(grafted, nodes)
    for b, parents in enumerate(tree.parents_BN.tolist()):
        live = sum(parent != PADDING for parent in parents)
        assert live == min(nodes, int((grafted.scores_BC[b] > -torch.inf).sum()))
        # as many different root paths as nodes, all of them the pool's: no node has lost its parent
        paths = tree_paths(tree, b)
        assert len(paths) == live and paths <= set(live_paths(grafted, b))


@given(grafts())
def test_the_branch_is_selected_as_soon_as_the_budget_allows(case: tuple[Candidates, Lookup, torch.Tensor]) -> None:
    pool, lookup, chance_BL = case
    grafted = graft(pool, lookup, chance_BL)
    for b in range(pool.scores_BC.shape[0]):
        branch = branch_of(lookup, b)
        if branch:
            paths = live_paths(grafted, b)
            budget = sum(score >= paths[branch] for score in paths.values())
            assert branch in tree_paths(select(Candidates(*(part[b : b + 1] for part in grafted)), budget), 0)


def test_a_chance_that_is_none_drafts_nothing() -> None:
    empty = Candidates(torch.zeros(1, 0, dtype=torch.long), torch.zeros(1, 0, dtype=torch.long), torch.zeros(1, 0))
    lookup = Lookup(torch.tensor([[4, 5, 6]]), torch.tensor([3]), torch.tensor([2]))
    grafted = graft(empty, lookup, torch.tensor([[0.5, float("nan"), 0.0]]))
    assert grafted.scores_BC.tolist() == [[0.0, -torch.inf, -torch.inf]]
    assert select(grafted, 3).parents_BN.tolist() == [[NO_PARENT, PADDING, PADDING]]


def test_a_candidate_never_to_be_drafted_is_not_matched() -> None:
    pool = Candidates(torch.tensor([[4, 5]]), torch.tensor([[-1, 0]]), torch.tensor([[-1.0, -torch.inf]]))
    lookup = Lookup(torch.tensor([[4, 5]]), torch.tensor([2]), torch.tensor([1]))
    grafted = graft(pool, lookup, torch.tensor([[-2.0, -0.5]]))
    assert grafted.scores_BC.tolist() == [[-1.0, -torch.inf, -torch.inf, -1.5]]
    assert grafted.parents_BC.tolist() == [[NO_PARENT, 0, NO_PARENT, 0]]
