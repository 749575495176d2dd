"""Which platform JAX starts: none that is not there, and what to say when it cannot start the one it was asked for."""

import glob
import importlib.metadata
import importlib.util
import os
import re

import jax

from bdjax.errors import nearest

KNOWN = ("cpu", "cuda", "gpu", "rocm", "tpu")
_CUDA = 'install it with: pip install "jax[cuda13]" (or cuda12)'
_PLUG_IN = {
    "cuda": _CUDA,
    "gpu": _CUDA,
    "rocm": "install AMD's plug-in as docs.jax.dev/en/latest/installation.html says",
    "tpu": 'on a TPU machine, install it with: pip install "jax[tpu]"',
}
_FAILED = re.compile(r"(?:Unable to initialize backend|Unknown backend:?|Backend) '?([\w-]+)'?")
_AROUND = re.compile(r"^.*?Unable to initialize backend '[\w-]+': |\s*\((?:set JAX_PLATFORMS|you may need to un)[^)]*\)\s*$")
_NOTHING = re.compile(r"no supported devices|No visible GPU|provides no devices|No TPU Platform")
_VARIABLES = ("JAX_PLATFORMS", "JAX_PLATFORM_NAME")
_TPU_FILES = ("/dev/accel*", "/dev/vfio/[0-9]*")  # of the driver, on every machine with a TPU


def on_the_cpu() -> None:
    """Let JAX start the CPU alone, unless the user asks for a platform: compiling for devices that are not here needs no other.

    A plug-in whose device is not there would not start, and JAX would not know its compiler.
    """
    if not any(os.environ.get(name) for name in _VARIABLES):
        jax.config.update("jax_platforms", "cpu")


def without_absent_tpu() -> None:
    """Let JAX compute on the CPU where the TPUs' library is installed, as their compiler, and no device but the CPU is there.

    JAX would start the library all the same, which complains in six lines that it finds no TPU. Nothing is changed where the user
    asks for a platform, where the machine has a TPU, and where another device's plug-in is installed.
    """
    asked = any(os.environ.get(name) for name in (*_VARIABLES, "JAX_FORCE_TPU_INIT")) or jax.config.jax_platforms  # type: ignore[attr-defined]
    if asked or importlib.util.find_spec("libtpu") is None or any(glob.glob(files) for files in _TPU_FILES):
        return
    if not importlib.metadata.entry_points(group="jax_plugins") and importlib.util.find_spec("jax_plugins") is None:
        jax.config.update("jax_platforms", "cpu")


def trouble(error: BaseException) -> str | None:
    """Return what stopped JAX from starting, and what to do, in one line; None where an error has another reason.

    JAX says so in a RuntimeError, and where no GPU is visible in an AssertionError without a word. So for other errors of these
    two kinds it is asked once more.
    """
    if not isinstance(error, (RuntimeError, AssertionError)):
        return None
    text = str(error)
    if "Unable to initialize backend" not in text and not text.startswith("Unknown backend"):
        try:
            jax.local_devices()
        except (RuntimeError, AssertionError) as again:
            text = str(again)
        else:
            return None
    given = [(name, os.environ[name]) for name in _VARIABLES if os.environ.get(name)]
    variable, asked = given[0] if given else ("", "")
    named = _FAILED.search(text)
    name = asked if asked in KNOWN or named is None else named[1]  # "gpu" stands for several, and JAX names the last of them
    wanted = f", which {variable} asks for" if asked else ""
    why, remedy = _reason(name, text)
    return f"JAX cannot start {name or 'a platform'}{wanted}: {why}; {remedy}, or compute on the CPU: JAX_PLATFORMS=cpu bdjax …"


def _reason(name: str, text: str) -> tuple[str, str]:
    """Why it does not start, and the remedy."""
    if "list of known backends" in text or text.startswith("Unknown backend"):
        if name in KNOWN:
            return "this JAX has no plug-in for it", _PLUG_IN.get(name, "install one")
        near = nearest(name, KNOWN)
        return "there is no such platform", (f"did you mean {near!r}? " if near else "") + f"known are {', '.join(KNOWN)}"
    if "libtpu" in text and "open" in text:
        return "libtpu, its library, is not installed", _PLUG_IN["tpu"]
    message = " ".join(_AROUND.sub("", text).split())[:240].rstrip(".")
    if re.search(r"in use|lockfile", message, re.IGNORECASE):
        return message, "wait for the process that holds it or end that process"
    if not message or _NOTHING.search(message):
        gpu = name in ("cuda", "gpu")
        look = "see what nvidia-smi says, and CUDA_VISIBLE_DEVICES" if gpu else "see which devices this machine has"
        return message or "no such device is visible to this process, or its driver is missing", look
    return message, "see that its driver and its plug-in fit this JAX"
