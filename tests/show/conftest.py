"""Property tests draw the same examples on every run, and a busy machine is no failure."""

from hypothesis import settings

settings.register_profile("show", deadline=None, derandomize=True, database=None)
settings.load_profile("show")
