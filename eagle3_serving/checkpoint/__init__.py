"""Checkpoints of every dialect: read, checked, converted, loaded. One neutral form in the middle."""

from eagle3_serving.checkpoint.check import check
from eagle3_serving.checkpoint.convert import Report, convert
from eagle3_serving.checkpoint.findings import Finding
from eagle3_serving.checkpoint.load import load_drafter
from eagle3_serving.checkpoint.save import save_drafter

__all__ = ["Finding", "Report", "check", "convert", "load_drafter", "save_drafter"]
