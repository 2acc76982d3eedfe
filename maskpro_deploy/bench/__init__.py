"""Measuring speed so that a sceptic believes it: interleaved arms, raw samples, intervals, the environment, a report.

Everything here takes callables: nothing knows onnxruntime or torch, so that any way to run a model is measured alike.

    arms          the timing of one portion: checks, warm-up, ABBA blocks; whether the clocks can be trusted
    sessions      a measurement over many sessions of each arm, and the self-test
    model         a language model as an arm, the units of work timed on it, how near the outputs of two are
    roofline      what work takes at least, by memory bandwidth and arithmetic measured in the same run
    graph_work    bytes and products of an ONNX graph
    environment   what the figures were measured on
    simulation    runs whose true answer is known, to count wrong verdicts
    stats         medians, verdicts; intervals: the interval of few values
    results       what all results share: the run as data, columns of tables, the document that describes it, reading it back
    sweeps        latency and throughput of a model alone
    kernels       a model's matrix products one by one, on a CPU
    products      single matrix products on a GPU
    load          load on servers

What enters: models, products, clients as callables. What leaves: results, as data and in words. May import: what reads
checkpoints, and below. A new column of a table is one entry in the `columns` of its benchmark.
"""
