"""The items of the GPU check, in the order that they run: a new one is a file with its function, and a line here."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from maskpro_deploy.gpu_check import engines, environment, evaluation, learning, products, serving, weights
from maskpro_deploy.gpu_check.items import Item
from maskpro_deploy.gpu_check.models import ONE_B, SMOL


@dataclass(frozen=True, slots=True)
class Entry:
    """An item, and the seconds that it has whatever the budget: imports, making a model and building take their time."""

    run: Item
    least_s: float = 60.0


ITEMS: dict[str, Entry] = {
    "environment": Entry(environment.report_environment),
    "learn-135m": Entry(partial(learning.time_learning, SMOL), 180.0),  # compiling the steps took 18 s on an H100
    "learn-1b": Entry(partial(learning.time_learning, ONE_B), 240.0),
    "learn-joint": Entry(partial(weights.time_joint, SMOL), 240.0),
    "recover": Entry(partial(weights.time_recovery, SMOL), 240.0),
    "products": Entry(products.measure_products, 180.0),  # two more processes look for what works
    "tensorrt": Entry(partial(engines.measure_library, "tensorrt"), 300.0),
    "tensorrt-rtx": Entry(partial(engines.measure_library, "tensorrt-rtx"), 180.0),
    "engine-7b": Entry(engines.measure_engine_7b, 420.0),
    "onnxruntime": Entry(partial(serving.measure_onnxruntime, "cuda"), 180.0),
    "onnxruntime-tensorrt-rtx": Entry(partial(serving.measure_onnxruntime, "tensorrt-rtx"), 300.0),
    "evaluation": Entry(evaluation.compare_perplexities, 180.0),
    "serve-tensorrt": Entry(partial(serving.measure_serving, serving.NATIVE), 420.0),
    "serve-tensorrt-rtx": Entry(partial(serving.measure_serving, serving.NATIVE_RTX), 240.0),
    "serve-onnxruntime-tensorrt": Entry(partial(serving.measure_serving, serving.ONNXRUNTIME), 420.0),
}
