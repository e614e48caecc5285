"""Step 2: is it right on this device: against the CPU, against plain decoding, against the exact law.

Integers and masks must be equal to the CPU's; floats within the tolerance in the row (fp32, TF32 off: what another order
of summation makes). Tokens of speculative decoding must equal plain decoding's on the same device, in fp32. Sampled
tokens are held to `target_law` by chi-square. Last come the project's own tests that are marked gpu.
"""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.graphs import GraphedTarget
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.shapes import TINY, Shape, random_drafter, random_parents, random_target
from benchmarks.gpu.sink import Sink
from benchmarks.gpu.statistics import chi_square
from eagle3_serving import tree
from eagle3_serving.attention import attend, prefix_attention, tree_attention
from eagle3_serving.engine import DecodeOptions, EmbeddedEngine
from eagle3_serving.engine.rows import KVPool, plan_rows
from eagle3_serving.eval.prompts import read_prompts

ROOT = Path(__file__).resolve().parent.parent.parent
FLOAT = 2e-5  # relative, fp32
LEAST_P = 1e-4  # of a law's chi-square: one false alarm in ten thousand

Check = Callable[[Settings], dict[str, Any]]
Loader = Callable[[Settings], tuple[EmbeddedEngine, list[list[int]]]]


def run(settings: Settings, sink: Sink, out: Path) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    for name, check in checks(settings):
        if not sink.has(name):
            sink.add(name, **check(settings))


def checks(settings: Settings) -> Iterator[tuple[str, Check]]:
    yield "tree operations, exact", tree_operations
    yield "draft decoder", draft_decoder
    yield "tree attention", split_attention
    for mode in ("chain", "tree", "tree with lookup", "tree in graphs"):
        yield f"toy target, {mode}: tokens as plain", partial(tokens_as_plain, mode, _toy)
    yield "law of top proposals", partial(law, False)
    yield "law of drawn proposals", partial(law, True)
    if settings.target:
        for mode in ("chain", "tree", "tree in graphs"):
            yield f"real target, {mode}: tokens as plain", partial(tokens_as_plain, mode, _real)
        yield "real target against the CPU", against_cpu
    yield "tests marked gpu", marked_tests


# ---- the tree


def _same(here: Any, there: Any) -> str:
    """What differs between two results, first on the CPU, then on the device; empty where nothing does."""
    if isinstance(here, Tensor):
        there = there.cpu()
        if here.dtype != there.dtype or here.shape != there.shape:
            return f"{here.dtype} {tuple(here.shape)} became {there.dtype} {tuple(there.shape)}"
        if here.is_floating_point():
            finite = here.isfinite()
            same = torch.equal(finite, there.isfinite()) and torch.allclose(here[finite], there[finite], rtol=FLOAT)
            return "" if same else f"floats differ by up to {(here - there)[finite].abs().max():.2e}"
        return "" if torch.equal(here, there) else f"{int((here != there).sum())} of {here.numel()} values differ"
    return next((found for a, b in zip(here, there, strict=True) if (found := _same(a, b))), "")


def tree_work(device: torch.device, seed: int, batch: int, nodes: int) -> dict[str, Any]:
    """Every operation of `eagle3_serving.tree` on seeded input, made on the CPU and moved to `device`."""
    random = torch.Generator().manual_seed(seed)
    parents_BN = random_parents(batch, nodes, seed)
    parents_BN[batch // 2, nodes // 2 :] = tree.PADDING
    rows = nodes + 1
    tokens_BR = torch.randint(4, (batch, rows), generator=random).to(device)
    argmax_BR = torch.randint(4, (batch, rows), generator=random).to(device)
    committed_B = torch.randint(1, 40, (batch,), generator=random).to(device)
    logits_BKV = (torch.randn(batch, 1, 300, generator=random) * 3).to(device)
    # of each node its own: equal ones give equal sums, and topk breaks a tie as it likes
    deeper_BKV = (torch.randn(batch, 4, 300, generator=random) * 3).to(device)
    parents_BN = parents_BN.to(device)
    layout = tree.tree_layout(tree.with_root(parents_BN))
    accepted = tree.accept_greedy(tokens_BR, layout, argmax_BR, nodes)
    rows_B = (layout.parents_BN != tree.PADDING).sum(1)
    done: dict[str, Any] = {"layout": layout, "accepted": accepted}
    done["positions"] = tree.positions(layout, committed_B)
    done["dense mask"] = tree.dense_mask(layout, committed_B, 40 + rows)
    done["packed mask"] = tree.pack_mask(layout, committed_B, rows_B, batch * tree.packed_bytes(40, rows))
    done["moves"] = tree.kv_moves(accepted, committed_B)
    candidates, frontier = tree.expand(tree.top_children(logits_BKV, 8), tree.root_frontier(batch, device), 4, 0)
    more, last = tree.expand(tree.top_children(deeper_BKV, 8), frontier, 4, 8)
    whole = tree.pool([candidates, more])
    done |= {"expanded": whole, "frontier": last, "selected": tree.select(whole, 12)}
    done["over the batch"] = tree.select_over_batch(whole, 5 * batch, 9)
    done["lookup"] = tree.prompt_lookup(tokens_BR, committed_B.clamp(max=rows), 3, 4)
    params = tree.SamplingParams.uniform(batch, 0.8, 20, 0.9, 0.01, device)
    done["target law"] = tree.target_law(logits_BKV[:, 0], params)
    return done


def tree_operations(settings: Settings) -> dict[str, Any]:
    cases = [(seed, batch, nodes) for seed in range(3) for batch, nodes in ((1, 6), (5, 17), (16, 60))]
    wrong = []
    for case in cases:
        here, there = tree_work(torch.device("cpu"), *case), tree_work(settings.torch_device, *case)
        wrong += [f"{case}: {name}: {found}" for name in here if (found := _same(here[name], there[name]))]
    return {"ok": not wrong, "cases": len(cases), "wrong": wrong[:5], "tolerance": f"exact; floats {FLOAT}"}


# ---- models


def draft_decoder(settings: Settings) -> dict[str, Any]:
    """Fusion, three chained steps and logits of one random drafter."""
    device = settings.torch_device
    here = random_drafter(TINY, torch.device("cpu"), torch.float32)
    there = random_drafter(TINY, device, torch.float32)
    there.load_state_dict(here.state_dict())
    random = torch.Generator().manual_seed(settings.seed)
    config = here.config
    aux_TF = torch.randn(2 * 9, config.num_aux * config.target_hidden_size, generator=random)
    tokens_T = torch.randint(config.vocab_size, (2 * 9,), generator=random)
    results = []
    for drafter, place in ((here, torch.device("cpu")), (there, device)):
        pool = KVPool(config.num_layers, 2, 16)
        plan = plan_rows(0, [0, 0], [9, 9], place)
        hidden_BTH, logits = drafter.fuse(aux_TF.to(place)[None]), []
        for step in range(3):
            done = drafter.step(
                tokens_T.to(place)[None],
                hidden_BTH,
                (plan.place_T + step)[None],
                lambda layer, q, k, v, pool=pool, plan=plan: pool.attend(layer, q[0], k[0], v[0], plan)[None],
            )
            hidden_BTH = done.feedback_BLH
            logits.append(drafter.logits(done.hidden_BLH))
        results.append(torch.cat(logits))
    error = float((results[0] - results[1].cpu()).norm() / results[0].norm())
    return {"ok": error < FLOAT, "error": error, "tolerance": FLOAT}


def split_attention(settings: Settings) -> dict[str, Any]:
    device, random = settings.torch_device, torch.Generator().manual_seed(settings.seed)
    layout = tree.tree_layout(tree.with_root(random_parents(3, 20, settings.seed)))
    q_BRAD = torch.randn(3, 21, 8, 64, generator=random)
    k_BSKD, v_BSKD = (torch.randn(3, 100 + 21, 2, 64, generator=random) for _ in range(2))
    want = attend(q_BRAD, k_BSKD, v_BSKD, tree.dense_mask(layout, torch.full((3,), 100), 121)).out_BRAD
    errors = {}
    for dtype, bound in ((torch.float32, FLOAT), (torch.bfloat16, 1e-2)):
        q, k, v = (x.to(device, dtype) for x in (q_BRAD, k_BSKD, v_BSKD))
        prefix = [x[:, :100].transpose(1, 2) for x in (k, v)]
        ancestors = layout.ancestors_BNN.to(device)
        over_prefix = partial(prefix_attention, k_BKSD=prefix[0], v_BKSD=prefix[1])
        found = tree_attention(q, k[:, 100:], v[:, 100:], ancestors, over_prefix)
        error = float((found.out_BRAD.float().cpu() - want).norm() / want.norm())
        errors[str(dtype).removeprefix("torch.")] = (error, bound)
    return {"ok": all(error < bound for error, bound in errors.values()), "errors_and_tolerances": errors}


def _toy(settings: Settings) -> tuple[EmbeddedEngine, list[list[int]]]:
    """A target whose random draft is often right: eight tokens and a wide spread of weights."""
    shape = Shape("toy", 32, 64, 3, 4, 2, 8, 8, 512)
    target = random_target(shape, torch.device("cpu"), torch.float32)
    drafter = random_drafter(shape, torch.device("cpu"), torch.float32)
    torch.manual_seed(settings.seed)
    with torch.no_grad():
        for model in (target.model, drafter):
            for parameter in model.parameters():
                if parameter.dim() == 2:
                    parameter.copy_(torch.randn(parameter.shape) * 0.3)
    device = settings.torch_device
    engine = EmbeddedEngine(type(target)(target.model.to(device), "toy"), drafter.to(device))
    generator = torch.Generator().manual_seed(settings.seed)
    return engine, torch.randint(8, (6, 7), generator=generator).tolist()


def _real(settings: Settings) -> tuple[EmbeddedEngine, list[list[int]]]:
    return _load(settings, settings.device), real_prompts(settings)


def _load(settings: Settings, device: str) -> EmbeddedEngine:
    drafter = Path(settings.drafter) if settings.drafter else ROOT / "checkpoints" / "smollm2-135m-instruct"
    return EmbeddedEngine.load(Path(settings.target), drafter, torch.float32, device)


def real_prompts(settings: Settings) -> list[list[int]]:
    from eagle3_serving.targets.chat import chat_ids, load_tokenizer

    tokenizer = load_tokenizer(Path(settings.target))
    texts = ["Name three colours.", "Write a Python function that adds two numbers.", "Why is the sky blue?"]
    if settings.prompts:
        texts += [prompt.turns[0][:1500] for prompt in read_prompts(map(Path, settings.prompts), family="train")[:29]]
    return [chat_ids(tokenizer, text) for text in texts[: 1 if settings.tiny else None]]


def tokens_as_plain(mode: str, load: Loader, settings: Settings) -> dict[str, Any]:
    """One by one and all at once; the measure is plain decoding on this device, without any graph."""
    engine, prompts = load(settings)
    tokens, prompts = (8, prompts[:2]) if settings.tiny else (64, prompts)
    plain = [engine.generate_many(prompts, DecodeOptions(tokens, "plain", eos_ids=()), b) for b in (1, len(prompts))]
    if mode.endswith("graphs"):
        engine.target = GraphedTarget(engine.target, bucket=64)
    options = DecodeOptions(
        tokens,
        "chain" if mode == "chain" else "tree",
        k=4,
        nodes=24,
        depth=4,
        top_k=6,
        eos_ids=(),
        lookup="lookup" in mode,
    )
    different, accepted = [], 0
    for batch, wanted in zip((1, len(prompts)), plain, strict=True):
        drafted = engine.generate_many(prompts, options, batch)
        accepted += sum(sum(said.accepted) for said in drafted)
        different += [
            f"batch {batch}, prompt {n}: {_first_difference(a.token_ids, b.token_ids)}"
            for n, (a, b) in enumerate(zip(wanted, drafted, strict=True))
            if a.token_ids != b.token_ids
        ]
    # where nothing was accepted nothing was shown
    return {"ok": not different and accepted > 0, "prompts": len(prompts), "accepted": accepted, "wrong": different[:5]}


def _first_difference(one: tuple[int, ...], other: tuple[int, ...]) -> str:
    place = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return f"token {place}"


def against_cpu(settings: Settings) -> dict[str, Any]:
    """The logits of one pass within a tolerance; how many prompts say the same is told, not asserted (near ties)."""
    here, there = _load(settings, "cpu"), _load(settings, settings.device)
    prompts = real_prompts(settings)[:4]
    errors, same = [], 0
    for prompt in prompts:
        logits = []
        for engine in (here, there):
            target = engine.target
            plan = plan_rows(0, [0], [len(prompt)], target.device)
            tokens_T = torch.tensor(prompt, device=target.device)
            logits.append(target.forward(tokens_T, plan.place_T, target.new_pool(1, len(prompt)), plan).logits_TV.cpu())
        errors.append(float((logits[0] - logits[1]).norm() / logits[0].norm()))
        said = [e.generate(prompt, DecodeOptions(16, "plain", eos_ids=())).token_ids for e in (here, there)]
        same += said[0] == said[1]
    return {"ok": max(errors) < 1e-3, "error": max(errors), "tolerance": 1e-3, "same_text": f"{same}/{len(prompts)}"}


# ---- sampling


def law(drawn: bool, settings: Settings) -> dict[str, Any]:
    """The first token that a verified tree of two depths emits, over many requests: exactly the target's law."""
    device, many, vocab = settings.torch_device, 20_000 if settings.tiny else 200_000, 12
    random = torch.Generator().manual_seed(settings.seed)
    target_VV, draft_VV = (torch.randn(vocab, vocab, generator=random).to(device) for _ in range(2))
    generator = torch.Generator(device).manual_seed(settings.seed)
    root_B1 = torch.zeros(many, 1, dtype=torch.long, device=device)
    temperature_B = torch.ones(many, device=device)
    if drawn:
        draw = tree.draw_children(draft_VV[root_B1], 3, temperature_B, generator)
        first_B3, laws = draw.tokens_BKC[:, 0], [draw.probs_BKV]
        deep = tree.draw_children(draft_VV[first_B3], 2, temperature_B, generator)
        second_B6, laws = deep.tokens_BKC.flatten(1), [*laws, deep.probs_BKV]
    else:
        first_B3 = draft_VV[root_B1].topk(3).indices[:, 0]
        second_B6 = draft_VV[first_B3].topk(2).indices.flatten(1)
    parents_BN = torch.tensor([[-1, -1, -1, 0, 0, 1, 1, 2, 2]], device=device).expand(many, -1)
    layout = tree.tree_layout(tree.with_root(parents_BN), 2)
    tokens_BR = torch.cat([root_B1, first_B3, second_B6], dim=1)
    proposals = None
    if drawn:
        row_BR = torch.tensor([[0, 1, 2, 3, -1, -1, -1, -1, -1, -1]], device=device).expand(many, -1)
        proposals = tree.Proposals(torch.cat(laws, dim=1), row_BR, torch.arange(vocab, device=device))
    params = tree.SamplingParams.uniform(many, 1.0, device=device)
    done = tree.accept_sampled(tokens_BR, layout, target_VV[tokens_BR], params, 2, generator, proposals, 3)
    entered_B = tokens_BR.gather(1, done.rows_BD[:, :1].clamp(min=0))[:, 0]
    emitted_B = torch.where(done.count_B > 0, entered_B, done.bonus_B)
    seen_V = torch.bincount(emitted_B.cpu(), minlength=vocab)
    exact_V = target_VV[0].double().softmax(-1).cpu()
    likelihood = chi_square(seen_V, exact_V)
    accepted = float(done.count_B.float().mean())
    return {
        "ok": likelihood > LEAST_P and accepted > 0.1,
        "p": likelihood,
        "accepted": accepted,
        "tolerance": f"p > {LEAST_P}",
    }


# ---- the project's own tests


def marked_tests(settings: Settings) -> dict[str, Any]:
    """`pytest -m gpu` on the files that hold such a test: the others may need what is not installed here."""
    tests = ROOT / "tests"
    mark = re.compile(r"mark\.gpu\b")
    # the step `engines` runs those of the engines; the kit's own test on CUDA is this very step
    others = {"engines", "gpu"}
    marked = (p for p in tests.rglob("test_*.py") if mark.search(p.read_text(encoding="utf-8")))
    files = sorted(str(path) for path in marked if not others & set(path.relative_to(tests).parts))
    if not files:
        return {"ok": None, "why": f"no tests in {tests}"}
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    last = (done.stdout.strip().splitlines() or [done.stderr.strip()[-200:]])[-1]
    # where there is a device, skipping all is no success
    ran = settings.torch_device.type == "cpu" or "passed" in last
    return {"ok": done.returncode == 0 and ran, "files": len(files), "said": last}


def summarise(rows: list[dict[str, Any]]) -> list[list[str]]:
    table = [["check", "right", "figures"]]
    for row in rows:
        figures = {name: value for name, value in row.items() if name not in ("key", "ok") and value not in ([], None)}
        right = {True: "yes", False: "NO", None: "-"}[row["ok"]]
        table.append([row["key"], right, ", ".join(f"{name} {value}" for name, value in figures.items())[:110]])
    return table
