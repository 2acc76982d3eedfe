"""Measuring speed so that a sceptic believes it: interleaved arms, raw samples, intervals, the environment, a report.

Everything here takes callables: nothing knows onnxruntime or torch, so that any way to run a model is measured alike.

    stats         medians, intervals, verdicts
    arms          the timing loop: checks, warm-up, ABBA blocks, the A/A self-test
    model         a language model as an arm, and the units of work timed on it
    latency       prefill and decode over batch, prompt and context
    throughput    tokens per second over batch sizes, the best batch within a latency bound
    sweep         what both share: all cases on all arms in one run
    roofline      bytes a step must read, against memory bandwidth measured in the same run
    environment   what the figures were measured on
    result        the run as data: result.json
    summary       the run in words: table, verdicts, caveats, report.md
    page          the run as a page: report.html
    plots, report plots as SVG and self-contained HTML pages, for this and for other commands
"""
