"""What the dashboards show: of each engine a list of rows, of each row its panels. `build.py` makes Grafana's JSON of it."""

from dataclasses import dataclass, field

WHERE = 'instance=~"$instance"'
OVER = "[$__rate_interval]"


@dataclass(frozen=True)
class Panel:
    """`queries`: an expression and the legend of its lines. `unit` in Grafana's own names. `tells`: what it is, and what to do."""

    title: str
    unit: str
    tells: str
    queries: tuple[tuple[str, str], ...]
    kind: str = "timeseries"
    width: int = 8
    least: float | None = 0.0
    most: float | None = None
    stacked: bool = False


@dataclass(frozen=True)
class Dashboard:
    uid: str
    title: str
    instances: str  # a metric that every server has: its instances are offered
    rows: dict[str, tuple[Panel, ...]] = field(default_factory=dict)


def rate(metric: str, by: str = "", where: str = "") -> str:
    """Of all servers chosen, added up a second."""
    chosen = f"{WHERE}, {where}" if where else WHERE
    return f"sum{f' by ({by}) ' if by else ''}(rate({metric}{{{chosen}}}{OVER}))"


def quantiles(metric: str) -> tuple[tuple[str, str], ...]:
    return tuple(
        (f"histogram_quantile({q}, {rate(f'{metric}_bucket', 'le')})", f"p{100 * q:g}") for q in (0.5, 0.95, 0.99)
    )


def stat(title: str, unit: str, tells: str, query: str) -> Panel:
    return Panel(title, unit, tells, ((query, ""),), "stat", 6, least=None)


def _felt(engine: str) -> tuple[Panel, ...]:
    """Latencies: both engines name them alike."""
    return (
        Panel(
            "Time to the first token",
            "s",
            "With the queue. Drafting does not shorten it: where it grows, the servers are full.",
            quantiles(f"{engine}:time_to_first_token_seconds"),
        ),
        Panel(
            "Time of a token",
            "s",
            "A request's decoding time over its tokens: what drafting shortens. Compare it with drafting off at the same load.",
            quantiles(f"{engine}:request_time_per_output_token_seconds"),
        ),
        Panel(
            "Tokens a second",
            "none",
            "Generated, and read from prompts. Long prompts take passes from everybody's decoding.",
            (
                (rate(f"{engine}:generation_tokens_total"), "generated"),
                (rate(f"{engine}:prompt_tokens_total"), "of prompts"),
            ),
        ),
    )


_ACCEPTED, _DRAFTS = rate("vllm:spec_decode_num_accepted_tokens_total"), rate("vllm:spec_decode_num_drafts_total")
_DRAFTED = rate("vllm:spec_decode_num_draft_tokens_total")
_NODES, _PASSES = rate("vllm:eagle3_nodes_verified_total"), rate("vllm:eagle3_verify_passes_total")
_BUDGET, _TREES = rate("vllm:eagle3_nodes_budgeted_total"), rate("vllm:eagle3_drafts_total")
_BY_SERVER = ("vllm:spec_decode_num_accepted_tokens_total", "vllm:spec_decode_num_drafts_total")

VLLM = Dashboard(
    "eagle3-vllm",
    "EAGLE-3 on vLLM",
    "vllm:num_requests_running",
    {
        "At a glance": (
            stat(
                "Accepted length",
                "none",
                "Tokens that a drafted pass of the target yields, its own token included; plain decoding yields 1. Where it falls, "
                "the traffic has moved away from what the drafter learned: measure with eagle3 eval, train on answers to your traffic.",
                f"1 + {_ACCEPTED} / {_DRAFTS}",
            ),
            stat(
                "Draft tokens accepted",
                "percentunit",
                "Share of the drafted tokens that were accepted. Low with a good accepted length means that much is drafted for it: "
                "fine at low load, dear at high load.",
                f"{_ACCEPTED} / {_DRAFTED}",
            ),
            stat(
                "Tokens a second",
                "none",
                "Generated tokens of all servers chosen. Compare with plain decoding by eagle3 bench, not with another hour: "
                "the load differs.",
                rate("vllm:generation_tokens_total"),
            ),
            stat(
                "Requests in flight",
                "none",
                "What the choice of how much to draft depends on: the more are in flight, the less a draft gains.",
                f"sum(vllm:num_requests_running{{{WHERE}}})",
            ),
        ),
        "Drafting": (
            Panel(
                "Accepted length by server",
                "none",
                "As above, for each server. One that is below the others serves other traffic, or another drafter.",
                (
                    (
                        f"1 + {rate(_BY_SERVER[0], 'instance')} / {rate(_BY_SERVER[1], 'instance')}",
                        "{{instance}}",
                    ),
                ),
                least=1.0,
            ),
            Panel(
                "Acceptance by position",
                "percentunit",
                "Share of drafts whose n-th token in a row was accepted (0 is the first). Positions near zero are verified for nothing: "
                "draft fewer (num_speculative_tokens, or a shallower tree).",
                (
                    (
                        f"{rate('vllm:spec_decode_num_accepted_tokens_per_pos_total', 'position')} / on () group_left () {_DRAFTS}",
                        "position {{position}}",
                    ),
                ),
                most=1.0,
            ),
            Panel(
                "Draft tokens a pass",
                "none",
                "Tokens verified beside each request's own. It must fall as the load rises, where a schedule or trees by load are on "
                "(EAGLE3_PROFILE, EAGLE3_TREES); where it does not, run eagle3 tune. The tree lines are empty where chains are drafted.",
                (
                    (f"{_DRAFTED} / {_DRAFTS}", "all drafts"),
                    (f"{_NODES} / {_PASSES}", "trees, verified"),
                    (f"{_BUDGET} / {_TREES}", "trees, budgeted"),
                ),
            ),
            Panel(
                "Trees",
                "none",
                "Passes a second that verified a tree of the plugin's, and their accepted length. All zero: chains are drafted "
                "(a GPU under EAGLE3_MODE=auto, or Model Runner V1), or a fallback is in force.",
                (
                    (_PASSES, "passes a second"),
                    (f"1 + {rate('vllm:eagle3_tokens_accepted_total')} / {_PASSES}", "accepted length"),
                ),
            ),
            Panel(
                "Fallbacks",
                "none",
                "Since the servers started: requests drafted a chain in the place of a tree, and servers without trees, by reason. Requests "
                "with penalties or grammars are as meant; scope server is not: its log says why in one line.",
                (
                    (
                        f"sum by (scope, reason) (vllm:eagle3_fallbacks_total{{{WHERE}}})",
                        "{{scope}}: {{reason}}",
                    ),
                ),
                stacked=True,
            ),
            Panel(
                "Drafted passes a second",
                "none",
                "Passes of a request that verified a draft. Zero while tokens are generated: nothing is drafted at this load, as a "
                "profile may rightly say, or vLLM runs without its drafter.",
                ((_DRAFTS, "drafted"),),
            ),
        ),
        "What users feel": _felt("vllm"),
        "Load": (
            Panel(
                "Requests",
                "none",
                "Waiting ones are those that the servers have no place for: more servers, or more memory for keys and values.",
                (
                    (f"sum(vllm:num_requests_running{{{WHERE}}})", "running"),
                    (f"sum(vllm:num_requests_waiting{{{WHERE}}})", "waiting"),
                ),
            ),
            Panel(
                "Keys and values in use",
                "percentunit",
                "Near 100% requests wait or are preempted. A drafter takes a little of the same memory.",
                ((f"max by (instance) (vllm:kv_cache_usage_perc{{{WHERE}}})", "{{instance}}"),),
                most=1.0,
            ),
            Panel(
                "Preemptions and ends",
                "none",
                "Requests that ended, by reason, and preemptions: each of those computes its text again. Aborts are clients that "
                "hung up; errors are in the log.",
                (
                    (rate("vllm:request_success_total", "finished_reason"), "{{finished_reason}}"),
                    (rate("vllm:num_preemptions_total"), "preempted"),
                ),
            ),
        ),
    },
)

_TREE, _DREW = "steps, top_k, tokens", 'steps!="0"'
_OF_TREE = "{{steps}},{{top_k}},{{tokens}}"

SGLANG = Dashboard(
    "eagle3-sglang",
    "EAGLE-3 on SGLang",
    "sglang:num_running_reqs",
    {
        "At a glance": (
            stat(
                "Tokens a pass",
                "none",
                "Tokens that a pass of the target yields a request, passes without a draft included; plain decoding yields 1. Where "
                "it falls, look at which trees are chosen: the load may have risen, or the traffic moved away from the drafter.",
                f"1 + {rate('eagle3:accepted_tokens_total')} / {rate('eagle3:verified_requests_total')}",
            ),
            stat(
                "Draft tokens accepted",
                "percentunit",
                "Share of the drafted tokens that were accepted. Low with many tokens a pass means that much is drafted for it: "
                "fine at low load, dear at high load.",
                f"{rate('eagle3:accepted_tokens_total')} / {rate('eagle3:verified_nodes_total')}",
            ),
            stat(
                "Tokens a second",
                "none",
                "Generated tokens of all servers chosen. Compare with plain decoding by eagle3 bench, not with another hour: "
                "the load differs.",
                rate("sglang:generation_tokens_total"),
            ),
            stat(
                "Requests in flight",
                "none",
                "What the choice of tree depends on: the more are in flight, the less a draft gains.",
                f"sum(sglang:num_running_reqs{{{WHERE}}})",
            ),
        ),
        "Drafting": (
            Panel(
                "Passes by tree",
                "none",
                "Which tree was verified, as steps,top-k,tokens; 0 steps drafts nothing. The plugin chooses by load and by what is "
                "accepted: one tree at every load means that it has no profile or no choice (EAGLE3_PROFILE, EAGLE3_TREES).",
                ((rate("eagle3:verify_passes_total", _TREE), _OF_TREE),),
                stacked=True,
            ),
            Panel(
                "Accepted length by tree",
                "none",
                "Tokens that a drafted pass yields, by tree. A large tree that yields no more than a small one is verified for "
                "nothing: leave it out of EAGLE3_TREES.",
                (
                    (
                        f"1 + {rate('eagle3:accepted_tokens_total', _TREE, _DREW)} / {rate('eagle3:verified_requests_total', _TREE, _DREW)}",
                        _OF_TREE,
                    ),
                ),
                least=1.0,
            ),
            Panel(
                "Draft tokens a pass",
                "none",
                "Tokens verified beside each request's own, passes without a draft included. It must fall as the load rises; where "
                "it does not, run eagle3 tune.",
                (
                    (
                        f"{rate('eagle3:verified_nodes_total')} / {rate('eagle3:verified_requests_total')}",
                        "draft tokens",
                    ),
                ),
            ),
            Panel(
                "Share of passes that drafted",
                "percentunit",
                "Zero at low load: drafting is judged to lose even there. Look at the accepted length by tree; the drafter may be "
                "for other traffic, or the profile of another machine.",
                (
                    (
                        f"{rate('eagle3:verify_passes_total', '', _DREW)} / {rate('eagle3:verify_passes_total')}",
                        "drafted",
                    ),
                ),
                most=1.0,
            ),
            Panel(
                "Accepted length as SGLang counts it",
                "none",
                "SGLang's own gauge, of its last report, and the plugin's running mean. They differ while the tree changes.",
                (
                    (f"avg(sglang:spec_accept_length{{{WHERE}}})", "SGLang"),
                    (f"avg(eagle3:accepted_length{{{WHERE}}})", "plugin"),
                ),
            ),
            Panel(
                "Passes in and out of CUDA graphs",
                "none",
                "Decoding passes outside a graph (decode_none) are slow on a GPU: too little memory or time was left to capture "
                "(EAGLE3_GRAPH_GB, EAGLE3_GRAPH_SECONDS). On a CPU all are.",
                ((rate("sglang:cuda_graph_passes_total", "mode"), "{{mode}}"),),
                stacked=True,
            ),
        ),
        "What users feel": _felt("sglang"),
        "Load": (
            Panel(
                "Requests",
                "none",
                "Queued ones are those that the servers have no place for: more servers, or more memory for keys and values.",
                (
                    (f"sum(sglang:num_running_reqs{{{WHERE}}})", "running"),
                    (f"sum(sglang:num_queue_reqs{{{WHERE}}})", "queued"),
                ),
            ),
            Panel(
                "Keys and values in use",
                "percentunit",
                "Near 100% requests queue or are retracted. A drafter takes a little of the same memory.",
                ((f"max by (instance) (sglang:token_usage{{{WHERE}}})", "{{instance}}"),),
                most=1.0,
            ),
            Panel(
                "Retracted requests, and time in the queue",
                "none",
                "A retracted request computes its text again. Seconds that the slowest hundredth waits for a place.",
                (
                    (f"sum(sglang:num_retracted_reqs{{{WHERE}}})", "retracted"),
                    (
                        f"histogram_quantile(0.99, {rate('sglang:queue_time_seconds_bucket', 'le')})",
                        "queue, p99 (s)",
                    ),
                ),
            ),
        ),
    },
)
