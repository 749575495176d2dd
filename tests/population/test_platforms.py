"""The TPUs' library, installed as their compiler, is not started on a machine that has no TPU."""

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import types

import pytest

from bdjax.population import platforms

# What is installed and which machine this is are made up; JAX is its own.
SCRIPT = """
import importlib.metadata, importlib.util
import jax
from bdjax.population import platforms
importlib.util.find_spec = lambda name: name if name == "libtpu" else None
importlib.metadata.entry_points = lambda group: ()
platforms._TPU_FILES = ()
platforms.without_absent_tpu()
print(jax.config.jax_platforms, jax.default_backend())
"""


def test_jax_computes_on_the_cpu():
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_PLATFORM", "JAX_FORCE"))}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["cpu", "cpu"], done.stderr


@pytest.mark.parametrize(
    ("installed", "plugins", "files", "asked", "told"),
    [
        ("libtpu", (), (), {}, [("jax_platforms", "cpu")]),
        ("", (), (), {}, []),
        ("libtpu", (), (os.devnull,), {}, []),  # the files of a TPU's driver
        ("libtpu", ("cuda",), (), {}, []),
        ("libtpu jax_plugins", (), (), {}, []),
        ("libtpu", (), (), {"JAX_PLATFORMS": "tpu,cpu"}, []),
        ("libtpu", (), (), {"JAX_FORCE_TPU_INIT": "1"}, []),
    ],
)
def test_only_a_tpu_that_cannot_be_here_is_left_out(installed, plugins, files, asked, told, monkeypatch):
    heard = []
    config = types.SimpleNamespace(jax_platforms=None, update=lambda *given: heard.append(given))
    monkeypatch.setattr(platforms, "jax", types.SimpleNamespace(config=config))
    monkeypatch.setattr(platforms, "_TPU_FILES", files)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in installed.split() else None)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: plugins)
    for name in ("JAX_PLATFORMS", "JAX_PLATFORM_NAME", "JAX_FORCE_TPU_INIT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in asked.items():
        monkeypatch.setenv(name, value)
    platforms.without_absent_tpu()
    assert heard == told
