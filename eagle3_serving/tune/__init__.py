"""What pays on this machine, with this drafter, at these loads: measured costs and acceptance, and what follows from them."""
