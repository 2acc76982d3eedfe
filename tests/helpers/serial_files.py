"""Which tests `scripts/test` runs alone, after all others: they measure time or keep to it, or use all cores themselves.

And with which of the others it begins.
"""

from __future__ import annotations

# file -> why
SERIAL = {
    "test_bench_serve.py": "servers at work",
    "test_bench_trust.py": "real comparisons with verdicts",
    "test_benchmark_command.py": "real measurements",
    "test_benchmark_kernels.py": "real measurements",
    "test_benchmark_serve.py": "a server under load",
    "test_cuda_device.py": "measures a pause",
    "test_demo_for_real.py": "the whole path on all cores, for minutes",
    "test_engine_on_host.py": "measures pauses",
    "test_generator.py": "requests at set times",
    "test_kernels.py": "real measurements",
    "test_lifecycle.py": "deadlines of a server",
    "test_load_sweep.py": "requests at set times",
    "test_monitor.py": "waits for a run to stop",
    "test_plan.py": "peak memory and seconds of a real run",
    "test_progress.py": "measures a pause",
    "test_runtime_bindings.py": "downloads into the cache folder",
    "test_serve_command.py": "signals to a server, and its deadlines",
    "test_trt_bindings.py": "downloads into the cache folder",
}

# few tests that take long: begun first, so that no core has to wait for them at the end
FIRST = (
    "test_readme.py",
    "test_trt_graphs.py",
    "test_demo_command.py",
    "test_half_faults.py",
    "test_transformers_front_end.py",
    "test_export_commands.py",
    "test_compiled.py",
)
