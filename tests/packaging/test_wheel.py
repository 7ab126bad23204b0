"""What is in the wheel: all three packages, what they carry, and nothing else."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

from compress import __version__

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PACKAGES = ("compress", "compress_kernels", "compress_cli")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    return Path(next(iter(WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"]))))


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_it_holds_the_three_packages_and_nothing_else(names: set[str]) -> None:
    tops = {name.split("/")[0] for name in names}
    assert tops == {*PACKAGES, f"compress_llm-{__version__}.dist-info"}
    for package in PACKAGES:
        assert {f"{package}/__init__.py", f"{package}/py.typed"} <= names


def test_it_holds_every_source_and_data_file(names: set[str]) -> None:
    for folder, package in (
        (ROOT, "compress"),
        (ROOT / "kernels", "compress_kernels"),
        (ROOT / "cli", "compress_cli"),
    ):
        files = [
            path
            for path in (folder / package).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        ]
        assert {path.relative_to(folder).as_posix() for path in files} <= names


def test_it_holds_the_recipes(names: set[str]) -> None:
    recipes = {f"compress/assets/recipes/{path.name}" for path in (ROOT / "recipes").glob("*.yaml")}
    assert recipes
    assert recipes <= names


def test_its_scripts_and_requirements(wheel: Path) -> None:
    info = f"compress_llm-{__version__}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        scripts = archive.read(f"{info}/entry_points.txt").decode()
        metadata = message_from_bytes(archive.read(f"{info}/METADATA"))
    assert "compress = compress_cli.main:app" in scripts
    assert "compress-llm = compress_cli.main:app" in scripts
    assert metadata["Name"] == "compress-llm"
    required = [entry for entry in metadata.get_all("Requires-Dist", []) if "extra ==" not in entry]
    optional = ("triton", "bitsandbytes", "datasets", "lm-eval", "compressed-tensors", "scipy", "matplotlib")
    assert not [entry for entry in required if entry.startswith(optional)]


def test_an_unpacked_wheel_finds_what_it_carries(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = (
        "from compress.assets import embedded_model, embedded_text, recipes_dir\n"
        "from compress.recipe.recipe import shipped\n"
        "print(recipes_dir(), embedded_model(), embedded_text('calibration'), embedded_text('heldout'))\n"
        "print(*shipped())"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    paths, shipped = ran.stdout.splitlines()
    assert all(
        Path(path).is_relative_to(tmp_path.resolve()) and Path(path).exists() for path in paths.split()
    )
    assert shipped.split() == sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))


def test_every_requirement_has_a_pinned_version() -> None:
    pinned = {
        _normal(line.partition("==")[0])
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    }
    extras = [entry for group in PROJECT["optional-dependencies"].values() for entry in group]
    names = {_normal(re.split(r"[\[><=;\s]", entry)[0]) for entry in (*PROJECT["dependencies"], *extras)}
    assert names - {"compress-llm"} <= pinned


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def test_a_wheel_with_kernels_in_it_says_for_which_platform_it_is(wheel: Path, tmp_path: Path) -> None:
    assert wheel.name.endswith("py3-none-any.whl")
    root = tmp_path / "project"
    for name in ("pyproject.toml", "README.md", "LICENSE", "recipes", "tools", "cli"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(ROOT / name)
    ignored = shutil.ignore_patterns("embedded", "__pycache__", "prebuilt")
    for name in ("kernels", "compress"):
        shutil.copytree(ROOT / name, root / name, ignore=ignored)
    library = root / "kernels" / "compress_kernels" / "native" / "prebuilt" / "native.so"
    library.parent.mkdir()
    library.write_bytes(b"")
    made = Path(next(iter(WheelBuilder(str(root)).build(directory=str(tmp_path), versions=["standard"]))))
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert made.name.endswith(f"py3-none-{platform}.whl")
    with zipfile.ZipFile(made) as archive:
        assert "compress_kernels/native/prebuilt/native.so" in archive.namelist()
