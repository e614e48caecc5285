"""Colours and strokes of the drawings, by light and dark."""

VARIABLES = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1c2330; --soft: #5d6778; --faint: #e3e7ed; --line: #bcc3ce;
  --kept: #12784a; --kept-paper: #d8f3e4; --own: #1f5fd0; --own-paper: #dde9ff; --fell: #6f7989; --root: #2b3342; --root-ink: #ffffff; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181f; --ink: #e6e9ef; --soft: #a3acba; --faint: #232a35; --line: #465060;
  --kept: #46c98a; --kept-paper: #123c29; --own: #79a8ff; --own-paper: #17305e; --fell: #8c96a6; --root: #d5dae3; --root-ink: #14181f; } }
"""
# of the shapes; text is of fixed width, by which boxes are measured
SHAPES = """
.tree text { font: 12px ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; fill: var(--ink); white-space: pre; }
.tree .note { font-size: 10.5px; fill: var(--soft); }
.tree .head { font: 11px system-ui, sans-serif; fill: var(--soft); }
.tree path { fill: none; stroke: var(--line); }
.tree path.accepted { stroke: var(--kept); }
.tree path.own { stroke: var(--own); stroke-dasharray: 3 3; }
.tree rect { fill: var(--paper); stroke: var(--line); }
.tree .root rect { fill: var(--root); stroke: var(--root); } .tree .root text { fill: var(--root-ink); }
.tree .accepted rect { fill: var(--kept-paper); stroke: var(--kept); stroke-width: 1.5; } .tree .accepted text { font-weight: 600; }
.tree .own rect { fill: var(--own-paper); stroke: var(--own); stroke-width: 1.5; } .tree .own text { font-weight: 600; }
.tree .accepted .note, .tree .own .note { font-weight: 400; }
.tree .refused text { fill: var(--soft); text-decoration: line-through; } .tree .refused .note { text-decoration: none; fill: var(--fell); }
.tree .unreached text { fill: var(--fell); } .tree .unreached rect { stroke: var(--faint); }
.tree path.unreached { stroke: var(--faint); }
.tree .found rect { stroke-dasharray: 4 2; }
"""
