"""Merged models compared bit by bit with PEFT's own merge and bitsandbytes' own quantisation."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.errors import ArtifactError, ModelError
from harness.formats import merged, safetensors_reader
from tests.helpers import small_run
from tests.helpers.models import CORPUS, save_model
from tests.helpers.weights import by_peft, weights


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run.save_adapter(tmp_path_factory.mktemp("adapter"), tiny_model)


@pytest.fixture(scope="module")
def merged_16bit(tiny_model: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("merged") / "16"
    assert merged.write_16bit(tiny_model, adapter, out) == {"tensors": 20, "merged": 14}
    return out


@pytest.fixture(scope="module")
def merged_4bit(merged_16bit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("merged") / "4"
    merged.write_4bit(merged_16bit, out)
    return out


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == expected[name].dtype and torch.equal(tensor, expected[name]), name


# ------------------------------------------------------------------------------------------------------------ 16 bits


def test_16_bits_are_those_of_peft(tiny_model: Path, adapter: Path, merged_16bit: Path) -> None:
    found = weights(merged_16bit)
    assert_equal(found, by_peft(tiny_model, adapter))
    base = weights(tiny_model)
    assert sum(not torch.equal(found[name], base[name]) for name in base) == 14


def test_rank_stabilised_lora_is_scaled_as_peft_does(tiny_model: Path, tmp_path: Path) -> None:
    adapter = small_run.save_adapter(
        tmp_path / "a", tiny_model, r=8, alpha=4, use_rslora=True, target_modules=["q_proj", "down_proj"]
    )
    merged.write_16bit(tiny_model, adapter, tmp_path / "m")
    assert_equal(weights(tmp_path / "m"), by_peft(tiny_model, adapter))


def test_a_sharded_base_gives_the_same_shards(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", shard="500KB")
    adapter = small_run.save_adapter(tmp_path / "adapter", base)
    out = tmp_path / "out"
    merged.write_16bit(base, adapter, out)
    assert len(list(out.glob("*.safetensors"))) == len(list(base.glob("*.safetensors"))) > 3
    assert_equal(weights(out), by_peft(base, adapter))
    assert (
        json.loads((out / safetensors_reader.INDEX).read_text())["weight_map"]
        == json.loads((base / safetensors_reader.INDEX).read_text())["weight_map"]
    )
    merged.check(out, 20)


def test_a_zero_adapter_gives_the_base(tiny_model: Path, tmp_path: Path) -> None:
    merged.write_16bit(tiny_model, small_run.save_adapter(tmp_path / "a", tiny_model, std=0.0), tmp_path / "m")
    assert_equal(weights(tmp_path / "m"), weights(tiny_model))


def test_tokenizer_and_configs_come_with_it(tiny_model: Path, merged_16bit: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json"):
        assert (merged_16bit / name).read_bytes() == (tiny_model / name).read_bytes()


# ------------------------------------------------------------------------------------------------------------- 4 bits


def load_4bit(folder: Path, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, **options).eval()


def test_4_bits_are_those_of_quantising_on_loading(merged_16bit: Path, merged_4bit: Path) -> None:
    from transformers import AutoTokenizer, BitsAndBytesConfig

    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    found, expected = load_4bit(merged_4bit), load_4bit(merged_16bit, quantization_config=settings)
    assert_equal(found.state_dict(), expected.state_dict())
    assert sum(type(m).__name__ == "Linear4bit" for m in found.modules()) == 14
    ids = AutoTokenizer.from_pretrained(merged_16bit)(CORPUS[0], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert torch.equal(found(ids).logits, expected(ids).logits)


UNDER_WAY = """
import sys
from pathlib import Path
from harness.formats import merged

def begun(tensor, as_is=merged._as_is):
    package = sys.modules.get("bitsandbytes")
    print("whole" if package and not package.__spec__._initializing else "partial")
    return as_is(tensor)

merged._as_is = begun
merged.write_4bit(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_bitsandbytes_is_whole_before_tensors_are_worked_on_side_by_side(merged_16bit: Path, tmp_path: Path) -> None:
    """If one of several threads imports it, another can use its functions before its kernels are registered."""
    command = [sys.executable, "-c", UNDER_WAY, str(merged_16bit), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert done.returncode == 0, done.stderr[-2000:]
    assert {line for line in done.stdout.splitlines() if line in ("whole", "partial")} == {"whole"}


def test_4_bits_are_smaller_and_near(merged_16bit: Path, merged_4bit: Path) -> None:
    sizes = [sum(f.stat().st_size for f in m.glob("*.safetensors")) for m in (merged_16bit, merged_4bit)]
    assert sizes[1] < 0.6 * sizes[0]
    exact, rounded = load_4bit(merged_16bit), load_4bit(merged_4bit)
    ids = torch.arange(1, 40)[None]
    with torch.no_grad():
        assert not torch.equal(exact(ids).logits, rounded(ids).logits)
        assert torch.nn.functional.cosine_similarity(exact(ids).logits, rounded(ids).logits, dim=-1).mean() > 0.98


# ----------------------------------------------------------------------------------------------------------- refusals


def test_an_adapter_for_another_base_is_refused(adapter: Path, tmp_path: Path) -> None:
    narrow = save_model(tmp_path / "narrow", hidden_size=128)
    with pytest.raises(
        ModelError, match=r"the adapter's model.layers.0\S+ is \d+ x \d+; merge it onto the base that it was trained on"
    ):
        merged.write_16bit(narrow, adapter, tmp_path / "out")
    shallow = save_model(tmp_path / "shallow", num_hidden_layers=1)
    with pytest.raises(ModelError, match=r"adapts 'model.layers.1.\S+', which \S+shallow does not have"):
        merged.write_16bit(shallow, adapter, tmp_path / "out2")
    assert not (tmp_path / "out2").exists()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"use_dora": True}, "uses use_dora"),
        ({"bias": "lora_only"}, "is not a plain LoRA adapter"),
        ({"modules_to_save": ["lm_head"]}, "uses modules_to_save"),
        ({"rank_pattern": {"q_proj": 2}}, "uses rank_pattern"),
        ({"alpha_pattern": {"q_proj": 2}}, "uses alpha_pattern"),
    ],
)
def test_other_adapters_than_plain_lora_are_refused(
    tiny_model: Path, tmp_path: Path, options: dict[str, Any], problem: str
) -> None:
    adapter = small_run.save_adapter(tmp_path / "a", tiny_model, **options)
    with pytest.raises(ModelError, match=rf"a: {problem}.*; train with plain LoRA"):
        merged.write_16bit(tiny_model, adapter, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_an_adapter_with_other_tensors_is_refused(tiny_model: Path, adapter: Path, tmp_path: Path) -> None:
    strange = shutil.copytree(adapter, tmp_path / "a")
    save_file(
        load_file(strange / "adapter_model.safetensors") | {"x": torch.zeros(2)}, strange / "adapter_model.safetensors"
    )
    with pytest.raises(ModelError, match="holds tensors that are not LoRA's A and B"):
        merged.adapter_tensors(strange)


def test_a_damaged_adapter_is_named(adapter: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(adapter, tmp_path / "a")
    file = broken / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=r"adapter_model.safetensors: cannot be read .*; train again"):
        merged.adapter_tensors(broken)
    file.unlink()
    with pytest.raises(ArtifactError, match=r"adapter_model.safetensors: cannot be read .*; train again"):
        merged.adapter_tensors(broken)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e38])
def test_an_adapter_with_values_that_are_not_finite_is_refused(
    tiny_model: Path, adapter: Path, tmp_path: Path, value: float
) -> None:
    broken = shutil.copytree(adapter, tmp_path / "a")
    values = load_file(broken / "adapter_model.safetensors")
    values[sorted(values)[1]][0, 0] = value
    values[sorted(values)[0]][0, 0] = 1e3
    save_file(values, broken / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"merging \S+ gave values that are NaN or infinite"):
        merged.write_16bit(tiny_model, broken, tmp_path / "m")


# -------------------------------------------------------------------------------------------------------------- check


def test_the_check_passes_what_was_written(merged_16bit: Path, merged_4bit: Path) -> None:
    assert merged.check(merged_16bit, 20) == {"tensors": 20}
    written = merged.check(merged_4bit, len(weights(merged_4bit)))["tensors"]
    assert written > 20


def test_the_check_finds_damage(merged_16bit: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(merged_16bit, tmp_path / "m")
    file = broken / "model.safetensors"
    whole = file.read_bytes()
    with pytest.raises(ArtifactError, match="holds 20 tensors where 21 were written"):
        merged.check(broken, 21)
    file.write_bytes(whole[:-1])
    with pytest.raises(ArtifactError, match=r"model.safetensors: is damaged"):
        merged.check(broken, 20)
    values = weights(merged_16bit)
    values["model.norm.weight"][0] = float("nan")
    save_file(values, file)
    with pytest.raises(ArtifactError, match=r"tensor 'model.norm.weight' holds values that are NaN or infinite"):
        merged.check(broken, 20)
    file.write_bytes(whole)
    (broken / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"m: has no tokenizer.json"):
        merged.check(broken, 20)


def test_a_config_that_is_not_json_is_found(merged_16bit: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(merged_16bit, tmp_path / "m")
    (broken / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config.json: cannot be read as JSON"):
        merged.check(broken, 20)


# ------------------------------------------------------------------------------------------------------------ writing


def test_the_written_file_is_safetensors_of_every_kind(tmp_path: Path) -> None:
    values = {
        "a": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
        "b": torch.ones(3, dtype=torch.float16),
        "c": torch.tensor(2.5),
        "d": torch.arange(5, dtype=torch.uint8),
        "e": torch.zeros(0, 4),
        "f": torch.arange(6.0).reshape(2, 3).T,
        "ü" * 100: torch.ones(1),
    }
    assert merged.write_safetensors(tmp_path / "x.safetensors", iter(values.items()), len(values)) == 7
    assert_equal(load_file(tmp_path / "x.safetensors"), values)


STREAM = """
import json, re, sys, torch
from pathlib import Path
import bitsandbytes.functional
from harness.formats import merged
from harness.formats.safetensors_reader import index
layers, width = int(sys.argv[2]), 1024
folder = Path(sys.argv[1])
rate = lambda key: int(re.search(key + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
def peak(action):
    Path("/proc/self/clear_refs").write_text("5")   # resets the peak
    before = rate("VmRSS")
    result = action()
    return result, rate("VmHWM") - before
names = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(layers)]
torch.set_num_threads(1)
small = torch.randn(width, width, dtype=torch.bfloat16)
(folder / "base").mkdir()
(folder / "adapter").mkdir()
for name in ("config.json", "tokenizer.json"):
    (folder / "base" / name).write_text("{}")
merged.write_safetensors(folder / "base" / "model.safetensors", ((n, small) for n in names), layers)
lora = {}
for n in names:
    stem = "base_model.model." + n.removesuffix(".weight")
    lora[stem + ".lora_A.weight"], lora[stem + ".lora_B.weight"] = torch.randn(2, width), torch.randn(width, 2)
merged.write_safetensors(folder / "adapter" / "adapter_model.safetensors", iter(lora.items()), len(lora))
(folder / "adapter" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
merged._linear_weights = lambda model: set(names)
one = lambda: merged.write_16bit(folder / "base", folder / "adapter", folder / "16")
written, sixteen = peak(one)
_, four = peak(lambda: merged.write_4bit(folder / "16", folder / "4"))
_, check = peak(lambda: merged.check(folder / "16", layers))
print(json.dumps({"tensors": written["tensors"], "16": sixteen, "4": four, "check": check}))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's memory counters")
@pytest.mark.slow
def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """20 and 100 tensors of 2 MiB, three processed at a time: the model grows by 160 MiB, the libraries' share is the same."""

    def peaks(count: int) -> dict[str, int]:
        folder = tmp_path / str(count)
        folder.mkdir()
        command = [sys.executable, "-c", STREAM, str(folder), str(count)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found.pop("tensors") == count
        return found

    few, many = peaks(20), peaks(100)
    assert max(few.values()) < 250 * 2**20, few
    assert all(many[what] - few[what] < 80 * 2**20 for what in few), (few, many)


def test_a_folder_without_an_adapter_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as error:
        merged.adapter_tensors(tmp_path)
    assert str(error.value) == f"{tmp_path}: has no adapter_config.json; put adapter_config.json beside the weights"
