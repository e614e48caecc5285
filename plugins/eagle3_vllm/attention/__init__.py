"""Attention of rows that form trees: a paged prefix, which every row of a request sees, and a tail of its own rows."""
