"""The two commands, from files to files, and the imported networks beside PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.data import DATASETS
from bdjax.errors import UserError
from bdjax.interop import export_torch, import_torch, load, model_of, read, write
from bdjax.models import MODELS
from bdjax.types import DataSpec
from tests.interop.checkpoints import attack_result, random_state, reduced, same_bits, stored_in_memory, triggered_rows

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")
pytestmark = pytest.mark.torch


@pytest.mark.parametrize("name", ["preactresnet18", "vgg19_bn", "efficientnet_b3", "mobilenet_v3_large"])
def test_from_pytorch_to_pytorch(name, tmp_path):
    """A file in BackdoorBench's form: the imported network gives PyTorch's logits, and the export is bit-identical."""
    from tests.torch_networks import NETWORKS

    model = reduced(name, depth=1)
    state, images = random_state(model), triggered_rows()
    net = NETWORKS[name](10, model.width, 1)
    net.load_state_dict({key: torch.from_numpy(np.array(value)) for key, value in state.items()}, strict=True)
    file = tmp_path / "attack_result.pt"
    torch.save(attack_result(torch, model, net.state_dict(), stored_in_memory(images)), file)

    imported = import_torch(file, tmp_path / "in", seeds=(0, 3), ratio=0.1)
    got = load(tmp_path / "in")
    assert got.digest == imported.digest
    assert (got.model, got.width, got.depth, got.classes, got.dataset) == (name, model.width, 1, 10, "cifar10")
    assert got.points == ((0, 0.1), (3, 0.1)) and got.network == (0, 0) and len(got.variables) == 1
    np.testing.assert_array_equal(got.triggered.images, images.images)

    built, pixels = model_of(got), images.images.astype(np.float32) / np.float32(255)
    standard = (pixels - np.float32(built.spec.mean)) / np.float32(built.spec.std)
    with torch.no_grad():
        want = net.eval()(torch.from_numpy(np.ascontiguousarray(standard.transpose(0, 3, 1, 2)))).numpy()
    ours = jax.jit(lambda variables, x: built.apply(variables, x).logits)(got.variables[0], jnp.asarray(pixels))
    assert np.abs(want).max() > 0.05
    np.testing.assert_allclose(ours, want, atol=1e-4)

    for out in ("net.pt", "net.safetensors"):
        export_torch(tmp_path / out, built, got.variables[0], kept=got.kept[0])
        assert same_bits({key: read(tmp_path / out).state[key] for key in state}, state)
    export_torch(tmp_path / "record" / "result.pt", built, got.variables[0], kept=got.kept[0], triggered=got.triggered)
    again = read(tmp_path / "record" / "result.pt")
    assert (again.model, again.dataset) == (name, "cifar10") and same_bits(again.state, state)
    np.testing.assert_array_equal(again.triggered.images, images.images)
    if name != "vgg19_bn":  # its first linear weight has parts that only `kept` knows
        export_torch(tmp_path / "bare.pt", built, got.variables[0])
        assert all(same_bits({k: v}, {k: state[k]}) for k, v in read(tmp_path / "bare.pt").state.items() if v.ndim)


@pytest.fixture
def cnns(tmp_path):
    model, paths = reduced("cnn"), []
    for seed in (0, 1):
        paths.append(tmp_path / f"net{seed}.pt")
        write(paths[-1], model, random_state(model, seed))
    return paths


def test_one_file_per_seed(cnns, tmp_path):
    got = import_torch(cnns, tmp_path / "in", dataset="cifar10", seeds=(4, 2))
    assert got.points == ((4, None), (2, None)) and got.network == (0, 1) and got.triggered is None
    assert [source.file for source in got.sources] == [str(path) for path in cnns]
    model = model_of(got)
    for path, variables, kept in zip(cnns, got.variables, got.kept, strict=True):
        export_torch(tmp_path / "out.pt", model, variables, kept=kept, overwrite=True)
        assert same_bits(read(tmp_path / "out.pt").state, read(path).state)


def test_arguments(cnns, tmp_path):
    for fields, text in (
        ({"seeds": (0, 1, 2)}, "2 files and 3 seeds"),
        ({"seeds": (1, 1)}, r"seeds must be different and not negative; given \[1, 1\]"),
        ({"seeds": (-1, 1)}, "seeds must be different"),
        ({"seeds": (0, 1), "ratio": 1.5}, r"the poison ratio lies in \[0, 1\]; given 1\.5"),
        ({"seeds": (0, 1), "dataset": None}, r"net0\.pt: it does not say which data set"),
        ({"seeds": (0, 1), "dataset": "cifar11"}, r"cifar11.*cifar10"),
        ({"seeds": (0, 1), "model": "cnnn"}, r"net0\.pt: unknown model 'cnnn'"),
        ({"seeds": (0, 1), "model": "vgg19_bn"}, r"net0\.pt: the file holds cnn \(width 4, 10 classes\), not vgg19_bn .*: feat"),
    ):
        with pytest.raises(UserError, match=text):
            import_torch(cnns, tmp_path / "in", **{"dataset": "cifar10", **fields})
    assert not (tmp_path / "in").exists()
    (tmp_path / "in").mkdir()
    with pytest.raises(UserError, match="exists already"):
        import_torch(cnns[0], tmp_path / "in", dataset="cifar10")


def test_files_that_do_not_belong_together(cnns, tmp_path):
    wide = MODELS["cnn"](DATASETS["cifar10"].spec, 8)
    write(tmp_path / "wide.pt", wide, random_state(wide))
    with pytest.raises(UserError, match=r"wide\.pt holds a cnn of width 8 for cifar10, .*net0\.pt a cnn of width 4 .*apart"):
        import_torch([cnns[0], tmp_path / "wide.pt"], tmp_path / "in", dataset="cifar10", seeds=(0, 1))
    model = reduced("cnn")
    files = []
    for i, rows in enumerate((5, 4)):
        files.append(tmp_path / f"attack{i}.pt")
        told = attack_result(torch, model, random_state(model, i), stored_in_memory(triggered_rows(rows)))
        torch.save(told, files[-1])
    with pytest.raises(UserError, match="do not hold the same triggered test images"):
        import_torch(files, tmp_path / "in", seeds=(0, 1))
    assert import_torch(files, tmp_path / "in", seeds=(0, 1), triggered=False).triggered is None


def test_a_file_for_another_data_set(tmp_path):
    model, file = reduced("cnn", 43), tmp_path / "attack_result.pt"
    told = attack_result(torch, model, random_state(model), None)
    torch.save(told, file)
    with pytest.raises(
        UserError, match=r"the file has 43 classes \(linear\.weight \[43, 16\]\), the model 10: linear\.weight is"
    ):
        import_torch(file, tmp_path / "in")
    with pytest.raises(UserError, match="it belongs to cifar10, not to digits"):
        import_torch(file, tmp_path / "in", dataset="digits")
    torch.save({**told, "img_size": (64, 64, 3)}, file)
    with pytest.raises(UserError, match=r"its images are \[64, 64, 3\], those of cifar10 \[32, 32, 3\]"):
        import_torch(file, tmp_path / "in")
    small = reduced("cnn")
    torch.save({**attack_result(torch, small, random_state(small), None), "num_classes": 7}, file)
    with pytest.raises(UserError, match="it says num_classes 7, but its last layer has 10"):
        import_torch(file, tmp_path / "in")


def test_images_that_do_not_fit_the_network(tmp_path):
    model, file = reduced("cnn"), tmp_path / "attack_result.pt"
    for images, text in (
        (triggered_rows(size=16), r"triggered images are uint8\[5, 16, 16, 3\], not uint8\[n, 32, 32, 3\]"),
        (triggered_rows()._replace(attack_labels=np.full(5, 12, np.int32)), "the attack label 12; there are 10 classes"),
    ):
        torch.save(attack_result(torch, model, random_state(model), stored_in_memory(images)), file)
        with pytest.raises(UserError, match=text):
            import_torch(file, tmp_path / "in")


def test_a_network_of_no_table(tmp_path):
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"its tensors \(fc\.weight, …\) are those of no network of the table: cnn, preact"):
        import_torch(tmp_path / "a.pt", tmp_path / "in", dataset="cifar10")


def test_the_data_set_must_still_be_the_same(cnns, tmp_path):
    got = import_torch(cnns[0], tmp_path / "in", dataset="cifar10")
    assert isinstance(model_of(got).spec, DataSpec)
    with pytest.raises(UserError, match=r"digits has 10 classes and images \[16, 16, 3\], the import 10 and \[32, 32, 3\]"):
        model_of(got._replace(dataset="digits"))
