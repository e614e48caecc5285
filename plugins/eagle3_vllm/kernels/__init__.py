"""A draft tree's way through one step of vLLM in Triton kernels: nothing is read on the host, and nothing is allocated.

| module | one launch each, but for `expand`: two a depth | what it does, in the core's words |
|---|---|---|
| `begin` | before the target's pass | `tree_layout` of every request's tree, positions, rows before the root |
| `accept` | after the target's choice | `accept_greedy`, the sampled tokens, vLLM's counts, the metrics' sums |
| `moves` | after it | `kv_moves`, carried out in every layer's cache |
| `absorb` | before the drafter's pass | the inputs of that pass: accepted rows stand where a text has them |
| `expand` | at every depth of the draft | `top_children`, `Calibration.apply`, `expand`, the draft rows' mask |
| `select` | after the last depth | `likeliest_path`, `select`, draft ids to target ids |

Each is a plain function that writes into buffers of its caller's, which keep their places: a CUDA graph may hold on to them.
Tests hold each to the core under Triton's interpreter, and on a GPU where there is one.
"""
