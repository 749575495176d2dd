"""Pickles that name NumPy's functions as NumPy 1 does."""

import io
import pickle
import pickletools

import numpy as np

from bdjax.interop.old_numpy import PICKLE, PROTOCOL, renamed

VALUE = {"rows": np.arange(5), "share": np.float64(0.5), "text": "numpy._core.multiarray\n", "bytes": b"cnumpy._core.x\ny\n"}


def written():
    file = io.BytesIO()
    PICKLE.Pickler(file, PROTOCOL).dump(VALUE)
    return file.getvalue()


def test_functions_are_named_as_numpy_1_names_them_and_data_stay():
    names = [argument for opcode, argument, _ in pickletools.genops(written()) if opcode.name == "GLOBAL"]
    assert "numpy.core.multiarray scalar" in names and not any(name.startswith("numpy._core") for name in names)
    found = pickle.loads(written())
    np.testing.assert_array_equal(found.pop("rows"), VALUE["rows"])
    assert found == {name: value for name, value in VALUE.items() if name != "rows"}


def test_a_pickle_without_such_names_stays_as_it_is():
    plain = pickle.dumps(["numpy._core.multiarray", 3], PROTOCOL)
    assert renamed(plain) == plain
