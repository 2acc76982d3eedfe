"""Every name by which the runtime calls TensorRT, TensorRT-RTX and CUDA exists in them, as they are published."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest
from adapter_names import follow
from published_bindings import VERSIONS, published, rtx

from maskpro_deploy.backends.cuda import device as cuda_device
from maskpro_deploy.backends.tensorrt_ import executor, library
from maskpro_deploy.system.extras import missing

__all__ = ["published", "rtx"]  # fixtures
# one text, so that values are followed from one module into the next
SOURCE = "\n".join(Path(module.__file__).read_text(encoding="utf-8") for module in (executor, library))
CUDA_SOURCE = Path(cuda_device.__file__).read_text(encoding="utf-8")


def check(uses):
    assert uses.absent == set()
    assert uses.misfits == set()
    assert uses.lost == set()
    # from the first call to the last
    assert uses.used >= {
        ("Runtime", "deserialize_cuda_engine"),
        ("ICudaEngine", "get_tensor_profile_shape"),
        ("ICudaEngine", "create_execution_context"),
        ("IExecutionContext", "set_optimization_profile_async"),
        ("IExecutionContext", "set_input_shape"),
        ("IExecutionContext", "set_tensor_address"),
        ("IExecutionContext", "execute_async_v3"),
        ("IExecutionContext", "profiler"),
        ("IProfiler", "report_layer_time"),
        ("EngineInspector", "get_engine_information"),
        ("DataType", "BF16"),
        ("ILogger", "log"),
    }


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_every_name_exists_in_the_published_bindings(published, version):
    uses = follow(SOURCE, published[version][0])
    check(uses)
    assert ("Runtime", "get_engine_validity") not in uses.used


def test_every_name_exists_in_tensorrt_rtx(rtx):
    uses = follow(SOURCE, rtx)
    check(uses)
    assert uses.used >= {
        ("Runtime", "get_engine_validity"),
        ("EngineInvalidityDiagnostics", "VERSION_MISMATCH"),
        ("IRuntimeConfig", "set_runtime_cache"),
        ("IRuntimeConfig", "get_runtime_cache"),
        ("IRuntimeCache", "serialize"),
        ("IExecutionContext", "is_stream_capturable"),
    }
    names = {name for owner, name in uses.asked if owner}
    assert names <= {name for kind in rtx["classes"].values() for name in kind}


@pytest.mark.parametrize(
    ("old", "new", "where", "name"),
    [
        ("context.execute_async_v3(", "context.execute_async_v4(", "absent", "execute_async_v4"),
        ("context.set_tensor_address(", "context.set_address(", "absent", "set_address"),
        ("context.set_input_shape(", "context.set_shape(", "absent", "set_shape"),
        ("context.execute_async_v3(device.stream)", "context.execute_async_v3()", "misfits", "execute_async_v3"),
        ("engine.get_tensor_profile_shape(name, index)", "engine.get_tensor_profile_shape(name)", "misfits", "profile_shape"),
        ('"BF16", "INT64"', '"BFLOAT16", "INT64"', "absent", "BFLOAT16"),
        ('hasattr(context, "is_stream_capturable")', 'hasattr(context, "is_capturable")', "asked", "is_capturable"),
        ("kernels.serialize()", "kernels.dump()", "absent", "dump"),
    ],
)
def test_a_wrong_name_is_found(rtx, old, new, where, name):
    assert old in SOURCE
    uses = follow(SOURCE.replace(old, new), rtx)
    assert any(name in str(entry) for entry in getattr(uses, where)), getattr(uses, where)


# -- CUDA ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def driver():
    if missing("native"):
        pytest.skip("cuda-bindings is not installed")
    return importlib.import_module("cuda.bindings.driver")


def driver_calls(source):
    """(function, arguments) of every call of the driver, and every dotted name below the module."""
    calls, names = [], set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and (found := re.fullmatch(r"self\._cuda\.([\w.]+)", ast.unparse(node))):
            names.add(found[1])
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("self._call", "self._run"):
            function, *arguments = node.args
            if ast.unparse(function) != "function":
                calls.append((ast.unparse(function).removeprefix("self._cuda."), len(arguments)))
    return calls, names


def parameters(function):
    """How many a function takes, from the first line of its docstring, where the bindings write its signature."""
    inside = re.match(rf"{function.__name__}\((.*)\)", function.__doc__.strip().splitlines()[0])[1]
    return inside.count(",") + 1 if inside else 0


def test_every_call_of_the_driver_has_its_name_and_number_of_arguments(driver):
    calls, names = driver_calls(CUDA_SOURCE)
    assert len(calls) >= 20
    for name, given in calls:
        assert parameters(getattr(driver, name)) == given, name
    for name in names:
        value = driver
        for part in name.split("."):
            value = getattr(value, part)
    fields = re.findall(r"pieces\.(\w+)", CUDA_SOURCE)
    assert len(set(fields)) == 8
    assert all(hasattr(driver.CUDA_MEMCPY2D, field) for field in fields)


def test_a_wrong_call_of_the_driver_is_found(driver):
    calls, _ = driver_calls(
        CUDA_SOURCE.replace("self._cuda.cuMemsetD8Async, address, 0, nbytes,", "self._cuda.cuMemsetD8Async, address, 0,")
    )
    assert any(parameters(getattr(driver, name)) != given for name, given in calls)
    _, names = driver_calls(CUDA_SOURCE.replace("CU_STREAM_NON_BLOCKING", "CU_STREAM_WILD"))
    assert not hasattr(driver.CUstream_flags, next(n for n in names if n.startswith("CUstream_flags.")).split(".")[1])
