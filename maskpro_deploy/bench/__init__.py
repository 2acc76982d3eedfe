"""Measuring speed so that a sceptic believes it: interleaved arms, raw samples, intervals, the environment, a report.

Everything here takes callables: nothing knows onnxruntime or torch, so that any way to run a model is measured alike.

    stats         medians, intervals, verdicts
    arms          the timing loop: checks, warm-up, ABBA blocks, the A/A self-test
    latency       prefill and decode over batch, prompt and context
    throughput    tokens per second over batch sizes, the best batch within a latency bound
    roofline      bytes a step must read, against memory bandwidth measured in the same run
    environment   what the figures were measured on
    result        result.json, and the same as a text table and Markdown
    plots, report a self-contained HTML page
"""
