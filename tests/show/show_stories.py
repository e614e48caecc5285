"""Made-up stories: trees of any shape, tokens of any text."""

from hypothesis import strategies as st

from eagle3_serving.show.record import About, Node, Piece, Step, Story

ABOUT = About("a target", "a <b>drafter</b>", "tree", 0.0, True, "fp32", "0", "eagle3 show")


def parents(most: int = 60) -> st.SearchStrategy[list[int]]:
    """Parents of a tree's nodes, -1 for the root's children, each before its children."""
    sizes = st.integers(0, most)
    return sizes.flatmap(lambda size: st.tuples(*(st.integers(-1, index - 1) for index in range(size))).map(list))


def children_of(tree: list[int]) -> list[list[int]]:
    """By node, the root being 0 and node n being n + 1."""
    children: list[list[int]] = [[] for _ in range(len(tree) + 1)]
    for index, parent in enumerate(tree):
        children[parent + 1].append(index + 1)
    return children


def step(tree: list[int], texts: list[str], walked: int = 3) -> Step:
    """A step over such a tree whose walk takes the first child `walked` times; token n has text n, over and over."""
    children, path, nodes = children_of(tree), [0], list[Node]()
    while len(path) <= walked and children[path[-1]]:
        path.append(children[path[-1]][0])
    for index, parent in enumerate(tree):
        above = nodes[parent] if parent >= 0 else None
        fate = "accepted" if index + 1 in path else "refused" if parent + 1 in path else "unreached"
        reach = 0.7 * (above.reach if above else 1.0)
        nodes.append(
            Node(
                Piece(index, texts[index % len(texts)]),
                parent,
                above.depth + 1 if above else 1,
                0.5,
                0.7,
                reach,
                0.4,
                fate,  # type: ignore[arg-type]
            )
        )
    walk = tuple(node - 1 for node in path[1:])
    own = Piece(99, texts[-1])
    tokens = (*(nodes[index].token for index in walk), own)
    return Step(tokens, Piece(98, texts[0]), tuple(nodes), walk, own, 0.9)


def story(*steps: Step) -> Story:
    first = Step((Piece(1, "a"),))
    return Story("one", "Why <i>so</i>?", "an answer", (first, *steps), 2.0)
