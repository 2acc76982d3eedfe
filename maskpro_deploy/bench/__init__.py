"""Measuring speed so that a sceptic believes it: interleaved arms, raw samples, intervals, the environment, a report.

Everything here takes callables: nothing knows onnxruntime or torch, so that any way to run a model is measured alike.

    stats         medians, intervals, verdicts
    arms          the timing of one portion: checks, warm-up, ABBA blocks
    sessions      a measurement over many sessions of each arm, and the self-test
    clocks        whether the clocks can be trusted
    model         a language model as an arm, the units of work timed on it, how near the outputs of two are
    latency       prefill and decode over batch, prompt and context
    throughput    tokens per second over batch sizes, the best batch within a latency bound
    sweep         what both share: all cases on all arms in one run
    roofline      what work takes at least, by memory bandwidth and arithmetic measured in the same run
    graph_work    bytes and products of an ONNX graph
    load          load on servers: schedules, clients, figures, reports
    environment   what the figures were measured on
    result        the run as data: result.json
    saved         result.json read back, to go on from, to add to, to compare
    compare       two results beside each other
    kernels       a model's matrix products one by one; kernels_report tells of them
    summary       the run in words: table, verdicts, caveats, report.md
    page          the run as a page: report.html
    plots, report plots as SVG and self-contained HTML pages, for this and for other commands
"""
