"""Draft trees drawn: what a drafter proposed in each step, and what the target made of it."""
