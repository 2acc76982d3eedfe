"""Proof that a file or folder holds an N:M pattern, in every format that the tool reads or writes.

report = validate(Path("sparse"))
print(report.verdict)
"""

from __future__ import annotations

from maskpro_deploy.validation.check import Require, validate
from maskpro_deploy.validation.report import TensorReport, ValidationReport
from maskpro_deploy.validation.source import Reader, Source, Unchecked, Weight

__all__ = ["Reader", "Require", "Source", "TensorReport", "Unchecked", "ValidationReport", "Weight", "validate"]
