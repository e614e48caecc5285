"""Whether a request is drafted for: by what it asks, its length, its kind of traffic, and what was accepted of it lately.

A request asks by fields that the engine hands through: on vLLM `extra_args` (`vllm_xargs` in an OpenAI body), on SGLang
`custom_params`.

| field | meaning |
|---|---|
| `eagle3` | `off` (false, 0): nothing is drafted for this request; `on` (true, 1): as the server does it |
| `eagle3_draft_tokens` | a whole number: most draft tokens verified for it a step, 0 as `off` |

Two fields, since OpenAI bodies of vLLM turn `true` into 1. The server asks by environment variables:

| variable | default | nothing is drafted for a request |
|---|---|---|
| `EAGLE3_GATE_CONTEXT` | none | of this many tokens or more, prompt and answer together |
| `EAGLE3_GATE_TEMPERATURE` | none | sampled above this temperature |
| `EAGLE3_GATE_GRAMMAR` | `0` | held to a grammar, where `1` |
| `EAGLE3_GATE_ACCEPTED` | `0.1` | of whose drafts fewer than this are accepted a step, lately; `0` drafts on |

The first three are off, since where drafting stops to pay differs by model and machine. The last is on: drafting costs
more than a tenth of a step wherever it was measured (a chain of 3 on an H100 22%), so that who gains less than a tenth of
a token a step only loses. It is off, unless it is set, where the engine has CUDA graphs of drafted steps and none of plain
ones: there a plain step may be the slower. It knows no engine and no device.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from eagle3_serving.errors import InputError

SWITCH_FIELD, MOST_FIELD = "eagle3", "eagle3_draft_tokens"
FIELDS = frozenset({SWITCH_FIELD, MOST_FIELD})
Reason = Literal["request", "context", "temperature", "grammar", "accepted"]

ACCEPTED_GATE = "EAGLE3_GATE_ACCEPTED"
ACCEPTED = 0.1  # accepted drafts a step below which a request only loses
TRIES = 8  # verified steps by which a request is first judged: none of 8 at half a token a step is one text in 250
MEMORY = 16  # steps over which what is accepted is a mean: a text changes
LOOK = 4  # steps that are drafted when a request is looked at again
PATIENCE = 32  # steps without drafts before that; twice as many after each look that found nothing
LONGEST_PATIENCE = 512
REOPENS = 2.0  # times the bound: who hovers at it shall not come and go


@dataclass(frozen=True)
class Gates:
    """The server's; None, False and 0 are no gate. `accepted` None: nobody said, see `settled`."""

    context: int | None = None
    temperature: float | None = None
    grammar: bool = False
    accepted: float | None = None

    @classmethod
    def read(cls, environment: Mapping[str, str] = os.environ) -> "Gates":
        """Raises InputError naming the variable that cannot be used."""
        context = _number(environment, "EAGLE3_GATE_CONTEXT", whole=True)
        accepted = _number(environment, ACCEPTED_GATE)
        grammar = environment.get("EAGLE3_GATE_GRAMMAR", "")
        if grammar not in ("", "0", "1"):
            raise InputError(f"EAGLE3_GATE_GRAMMAR is {grammar!r}: 0 or 1")
        return cls(
            context=None if context is None else int(context),
            temperature=_number(environment, "EAGLE3_GATE_TEMPERATURE"),
            grammar=grammar == "1",
            accepted=accepted,
        )

    def settled(self, plain_steps: bool) -> "Gates":
        """With what `accepted` means where nobody said it. `plain_steps`: the engine is as ready for them as for drafted ones."""
        return self if self.accepted is not None else replace(self, accepted=ACCEPTED if plain_steps else 0.0)


@dataclass(frozen=True)
class Asked:
    """What a request says: `on`, and `most` draft tokens a step (None: as many as the server verifies)."""

    on: bool = True
    most: int | None = None

    @classmethod
    def of(cls, fields: Any) -> "Asked":
        """Of a mapping that holds other fields too, or of what is none. Raises ValueError, in one line, for a value that
        cannot be meant."""
        if not isinstance(fields, Mapping):
            return cls()
        switch, most = fields.get(SWITCH_FIELD), fields.get(MOST_FIELD)
        word = str(switch).lower()
        if switch is not None and word not in _WORDS:
            raise ValueError(f"{SWITCH_FIELD} is {switch!r}: on or off")
        if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 0):
            raise ValueError(f"{MOST_FIELD} is {most!r}: a whole number of draft tokens, 0 for none")
        return cls(on=_WORDS.get(word, True) and most != 0, most=most)

    @classmethod
    def heard(cls, fields: Any) -> "Asked":
        """The same where nobody can be told: what cannot be meant is left out."""
        try:
            return cls.of(fields)
        except ValueError:
            return cls()


_WORDS = {"on": True, "true": True, "1": True, "1.0": True, "off": False, "false": False, "0": False, "0.0": False}


class Lately:
    """Whether drafting pays for one request, by what was accepted of it: closed after `TRIES` steps that gained less than
    `bound`, looked at again ever more rarely. Results may arrive some steps after they were asked for."""

    def __init__(self, bound: float) -> None:
        self.bound, self.closed = bound, False
        self._seen, self._mean = 0, 0.0
        self._waited, self._patience, self._looking = 0, PATIENCE, 0

    def pays(self) -> bool:
        """Whether the next step is drafted; asked once a step."""
        if not self.closed:
            return True
        if self._looking:
            self._looking -= 1
            return True
        self._waited += 1
        if self._waited <= self._patience:
            return False
        self._patience = min(2 * self._patience, LONGEST_PATIENCE)
        self._waited, self._looking = 0, LOOK - 1
        self._seen, self._mean = 0, 0.0
        return True

    def verified(self, accepted: int) -> None:
        """A draft of this request was verified."""
        self._seen += 1
        self._mean += (accepted - self._mean) / min(self._seen, MEMORY)
        if self.closed:
            if self._seen >= LOOK and self._mean >= REOPENS * self.bound:
                self.closed, self._patience = False, PATIENCE
        elif self._seen >= TRIES and self._mean < self.bound:
            self.closed = True
            self._waited = self._looking = self._seen = 0
            self._mean = 0.0


class Gate:
    """One request's, for its life. Asked once a step, in which order its reasons stand in `Reason`."""

    def __init__(self, gates: Gates, asked: Asked, temperature: float, grammar: bool) -> None:
        self.most, self.context = asked.most, gates.context
        self._lately = Lately(gates.accepted or 0.0)
        self._always: Reason | None = None
        if not asked.on:
            self._always = "request"
        elif gates.temperature is not None and temperature > gates.temperature:
            self._always = "temperature"
        elif gates.grammar and grammar:
            self._always = "grammar"

    def closed_by(self, context: int) -> Reason | None:
        """Why the next step, of a request of `context` tokens, is not drafted; None where it is."""
        if self._always is not None:
            return self._always
        if self.context is not None and context >= self.context:
            return "context"
        return None if self._lately.pays() else "accepted"

    @property
    def apart(self) -> bool:
        """Whether the request is not drafted as others are, whatever its length."""
        return self._always is not None or self.most is not None or self._lately.closed

    def verified(self, accepted: int) -> None:
        """`accepted` drafts of a step that was drafted."""
        self._lately.verified(accepted)


def _number(environment: Mapping[str, str], name: str, whole: bool = False) -> float | None:
    text = environment.get(name, "")
    if not text:
        return None
    try:
        value = float(int(text)) if whole else float(text)
    except ValueError:
        value = -1.0
    if not (1 if whole else 0) <= value < float("inf"):
        raise InputError(
            f"{name} is {text!r}: a whole number, at least 1" if whole else f"{name} is {text!r}: a number, at least 0"
        )
    return value
