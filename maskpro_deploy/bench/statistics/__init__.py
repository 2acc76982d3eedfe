"""Intervals, verdicts and break-even points from paired timings; pure functions of samples.

What enters: samples. What leaves: estimates with intervals. May import: errors only.
"""
